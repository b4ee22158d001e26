"""A pipeline of three calls by llmkit: every call and every result in an SQLite file.

python solve_llmkit.py URL FOLDER SAMPLES CONCURRENCY
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from llmkit import Session
from llmkit.evals import AsyncBoundModel, Sample, Task, exact_match
from llmkit.evals.report.report import EvalReport

WANTED = '{"label": "positive"}'


async def solve(sample: Sample, model: AsyncBoundModel) -> str:
    """Ask, doubt, and ask again, in one conversation."""
    conversation = model.conversation()
    await conversation.say(str(sample.input))
    await conversation.say("Are you sure?")
    return (await conversation.say("Answer again, as JSON.")).text


def solve_in_thread(sample: Sample, model: object) -> str:
    """Do the same with the sync face."""
    conversation = model.conversation()  # type: ignore[attr-defined]
    conversation.say(str(sample.input))
    conversation.say("Are you sure?")
    text: str = conversation.say("Answer again, as JSON.").text
    return text


def main(url: str, folder: str, samples: int, concurrency: int) -> dict[str, dict[str, float]]:
    os.chdir(Path(folder))
    question = "Is the review positive or negative? Answer as JSON.\nParcel {} came in time."

    with Session("peers", ollama_api_base=url, ollama_model="stand-in", concurrency_limit=concurrency) as session:

        def measure(name: str, count: int, function: object) -> tuple[dict[str, float], EvalReport]:
            dataset = [Sample(question.format(number), WANTED) for number in range(count)]
            task = Task("pipeline", dataset, solve=function, scorers=[exact_match()])  # type: ignore[arg-type]
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            report = session.evaluate(
                task, ["ollama/stand-in"], name=name, concurrency=concurrency, warm_up=False, progress=False
            )
            spent = {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s, "samples": count}
            assert report.summary()["mean"].tolist() == [1.0], report.notes
            return spent, report

        measure("warm-up", 1, solve)
        figures = {"run": measure("run", samples, solve)[0]}
        figures["replay"], report = measure("run", samples, solve)
        assert report.work is not None
        assert report.work.sent == 0
        figures["threads"] = measure("threads", samples, solve_in_thread)[0]
    return figures


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:3], *map(int, sys.argv[3:]))))
