"""The same pipeline by inspect-ai: a solver that generates three times, on the wire of its `ollama` provider.

python solve_inspect.py URL FOLDER SAMPLES CONCURRENCY
"""

from __future__ import annotations

import json
import os
import sys
import time

LEAN = {"log_realtime": False, "log_model_api": False, "log_images": False, "score_display": False}


def main(url: str, folder: str, samples: int, concurrency: int) -> dict[str, dict[str, float]]:
    os.environ.update(INSPECT_CACHE_DIR=f"{folder}/cache", XDG_DATA_HOME=f"{folder}/data", XDG_CACHE_HOME=folder)
    from inspect_ai import Task, eval  # noqa: A004
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ChatMessageUser
    from inspect_ai.scorer import exact
    from inspect_ai.solver import solver

    @solver
    def three_calls():
        async def solve(state, generate):
            state = await generate(state)
            state.messages.append(ChatMessageUser(content="Are you sure?"))
            state = await generate(state)
            state.messages.append(ChatMessageUser(content="Answer again, as JSON."))
            return await generate(state)

        return solve

    def measure(name: str, samples: int = samples, **options: bool) -> dict[str, float]:
        question = "Is the review positive or negative? Answer as JSON.\nParcel {} came in time."
        dataset = [Sample(question.format(number), target='{"label": "positive"}') for number in range(samples)]
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        (log,) = eval(
            Task(dataset=dataset, solver=three_calls(), scorer=exact()),
            model="ollama/stand-in",
            model_base_url=f"{url}/v1",
            max_connections=concurrency,
            max_samples=concurrency,
            display="none",
            log_dir=f"{folder}/logs-{name}",
            log_format="eval",
            **options,
        )
        figures = {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s, "samples": samples}
        assert log.status == "success", log.error
        assert log.results.scores[0].metrics["mean"].value == 1.0
        return figures

    measure("warm-up", 1)
    return {"durable": measure("durable"), "leanest": measure("leanest", **LEAN)}


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:3], *map(int, sys.argv[3:]))))
