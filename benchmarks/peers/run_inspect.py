"""The same evaluation by inspect-ai, on the OpenAI-compatible wire that its `ollama` provider speaks.

    python run_inspect.py URL FOLDER SAMPLES CONCURRENCY

Twice: "durable" keeps the realtime log on, from which a killed run is recovered sample by sample; "leanest" switches
that off, so that a kill loses what is not yet flushed. Then the leanest again with a filled cache.
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
    from inspect_ai.scorer import exact
    from inspect_ai.solver import generate

    def task(samples: int, *, cache: bool) -> Task:
        question = "Is the review positive or negative? Answer as JSON.\nParcel {} came in time."
        dataset = [Sample(question.format(number), target='{"label": "positive"}') for number in range(samples)]
        return Task(dataset=dataset, solver=generate(cache=cache), scorer=exact())

    def measure(name: str, samples: int = samples, *, cache: bool, **options: bool) -> dict[str, float]:
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        (log,) = eval(
            task(samples, cache=cache),
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

    measure("warm-up", 1, cache=False)
    return {
        "durable": measure("durable", cache=False),
        "leanest": measure("leanest", cache=False, **LEAN),
        "filling": measure("filling", cache=True, **LEAN),
        "cached": measure("cached", cache=True, **LEAN),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:3], *map(int, sys.argv[3:]))))
