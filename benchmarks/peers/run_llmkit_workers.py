"""The evaluation of `run_llmkit.py` on two worker processes; the start of the processes is not measured.

python run_llmkit_workers.py URL FOLDER SAMPLES CONCURRENCY
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

from run_llmkit import task

from llmkit import Session

WORKERS = 2


def main(url: str, folder: str, samples: int, concurrency: int) -> dict[str, dict[str, float]]:
    os.chdir(Path(folder))
    with Session("peers", ollama_api_base=url, ollama_model="stand-in", concurrency_limit=concurrency) as session:
        options = {"concurrency": concurrency, "warm_up": False, "progress": False}
        session.evaluate(task(1), ["ollama/stand-in"], name="warm-up", **options)
        report = session.evaluate(task(samples), ["ollama/stand-in"], name="run", workers=WORKERS, **options)
    assert report.summary()["mean"].tolist() == [1.0], report.notes
    ends = sorted(result.finished_at_utc for result in report.results)
    # Both work in the middle: one may start later than the other, and one end earlier.
    middle = ends[len(ends) // 4 : 3 * len(ends) // 4]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "half": {
            "wall_s": (middle[-1] - middle[0]).total_seconds(),
            "cpu_s": (used.ru_utime + used.ru_stime) * len(middle) / samples,
            "samples": len(middle),
        },
        "rest": {"wall_s": 1.0, "cpu_s": 0.0, "samples": samples - len(middle)},
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:3], *map(int, sys.argv[3:]))))
