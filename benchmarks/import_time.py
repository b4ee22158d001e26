"""CPU time of `import llmkit; llmkit.Session` against `import pydantic; pydantic.BaseModel`.

    python benchmarks/import_time.py [--rounds N]

Every figure is the CPU time of a whole process, user and system. The two take turns in pairs, so that a busy machine
slows both, and the result is the median of the pairs' ratios. The process exits with 1 if that is above the target.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

TARGET = 1.5
SUBJECT = "import llmkit; llmkit.Session"
REFERENCE = "import pydantic; pydantic.BaseModel"


def measure_cpu_s(code: str) -> float:
    """Return the CPU time of a process that runs the code, in seconds."""
    before = os.times()
    subprocess.run([sys.executable, "-c", code], check=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    for code in (SUBJECT, REFERENCE):  # fills the file cache
        measure_cpu_s(code)
    pairs = [(measure_cpu_s(SUBJECT), measure_cpu_s(REFERENCE)) for _ in range(rounds)]
    ratio = statistics.median(subject / reference for subject, reference in pairs)
    print(f"{SUBJECT:40} {statistics.median(pair[0] for pair in pairs) * 1000:6.0f} ms")
    print(f"{REFERENCE:40} {statistics.median(pair[1] for pair in pairs) * 1000:6.0f} ms")
    print(f"ratio {ratio:.2f}, target at most {TARGET}")
    sys.exit(ratio > TARGET)


if __name__ == "__main__":
    main()
