"""The evaluation by llmkit: typed output, every call and every result in an SQLite file.

python run_llmkit.py URL FOLDER SAMPLES CONCURRENCY
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from llmkit import Session
from llmkit.evals import Sample, Task, field_match
from llmkit.evals.report.report import EvalReport


class Sentiment(BaseModel):
    """A verdict."""

    label: Literal["positive", "negative"]


def task(samples: int) -> Task:
    dataset = [Sample(f"Parcel {number} came in time.", {"label": "positive"}) for number in range(samples)]
    return Task(
        name="peers",
        dataset=dataset,
        prompt="Is the review positive or negative? Answer as JSON.\n{input}",
        output_type=Sentiment,
        scorers=[field_match("label")],
    )


def measure(session: Session, samples: int, concurrency: int, name: str) -> tuple[dict[str, float], EvalReport]:
    ours = task(samples)
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    # The server loads nothing, and counts what it is asked.
    report = session.evaluate(
        ours, ["ollama/stand-in"], name=name, concurrency=concurrency, warm_up=False, progress=False
    )
    return {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s, "samples": samples}, report


def main(url: str, folder: str, samples: int, concurrency: int) -> dict[str, dict[str, float]]:
    os.chdir(Path(folder))
    figures = {}
    with Session("peers", ollama_api_base=url, ollama_model="stand-in", concurrency_limit=concurrency) as session:
        measure(session, 1, 1, "warm-up")
        figures["run"], report = measure(session, samples, concurrency, "run")
        assert report.summary()["mean"].tolist() == [1.0], report.notes
        figures["replay"], report = measure(session, samples, concurrency, "run")
        assert report.work is not None
        assert (report.work.sent, len(report.results)) == (0, samples)
    return figures


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:3], *map(int, sys.argv[3:]))))
