"""The same by DSPy's cache: from disk, and from the memory of the process.

python hits_dspy.py URL FOLDER QUESTIONS
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from pathlib import Path

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import dspy  # the setting is read while it is imported


def main(url: str, folder: str, questions: int) -> dict[str, dict[str, float]]:
    prompts = [f"{'Read the complaint and name the product. ' * 8} {number}" for number in range(questions)]
    figures = {}
    for part, in_memory in (("disk", False), ("memory", True)):
        dspy.configure_cache(
            enable_disk_cache=not in_memory, enable_memory_cache=in_memory, disk_cache_dir=str(Path(folder, part))
        )
        model = dspy.LM("openai/stand-in", api_base=f"{url}/v1", api_key="none", temperature=0.0, cache=True)
        for prompt in prompts:
            model(prompt)
        wall, cpu = time.perf_counter(), time.process_time()
        for prompt in prompts:
            model(prompt)
        wall_s, cpu_s = time.perf_counter() - wall, time.process_time() - cpu
        figures[part] = {"wall_s": wall_s, "cpu_s": cpu_s, "samples": questions}
    return figures


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
