"""Stored answers a second: llmkit against the caches that people use, in the same run.

    python benchmarks/read_stored_answers.py [--rounds 3] [--questions 1000] [--without dspy]

Different questions of 330 characters, answered once; then each is asked again, one after the other, by the calling
process. llmkit checks the contract, validates the answer and records that it was served. Each in a process of its
own, one after the other, in as many rounds; medians are printed. A machine that others use too is slow for all of
them, so the ratios count: langchain made 1,200 a second where 5,000 were the goal, DSPy 4,500 (disk) to 6,500 (memory).

| peer | settings |
|---|---|
| langchain | `SQLiteCache` in front of a model without a network |
| DSPy | `configure_cache` with the disk alone, and with the memory alone, which another process does not see |

(litellm's own disk cache cannot be measured: on a hit it imports its proxy, with packages that it does not bring.)
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from typing import Final

from beside import PEERS, NotInstalledError, installed, stand_in

PROCESS_LIMIT_S = 300
PROGRAMS: Final[dict[str, tuple[str, ...]]] = {
    "llmkit": (),
    "langchain": ("langchain==1.4.7", "langchain-community==0.4.2"),
    "dspy": ("dspy==3.4.1", "litellm==1.106.2"),
}
# Least ratios of llmkit's rate to a peer's: 5,000 a second where these were measured, to what the peer made there.
GOALS: Final = {"langchain SQLiteCache": 5_000 / 1_200, "dspy disk": 5_000 / 4_500, "dspy memory": 5_000 / 6_500}
OURS: Final = ("llmkit replay", "llmkit hit")

Rates = dict[str, list[float]]


def measure(name: str, url: str, questions: int) -> dict[str, tuple[float, float]]:
    """Measure one process: by part, answers a second and CPU milliseconds for each.

    Raises:
        NotInstalledError: The peer is not there and cannot be installed.
        RuntimeError: It failed; with the end of what it wrote.
    """
    packages = PROGRAMS[name]
    python = str(installed(packages) / "bin" / "python") if packages else sys.executable
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [python, str(PEERS / f"hits_{name}.py"), url, folder, str(questions)],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=PROCESS_LIMIT_S,
            check=False,
        )
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip()[-2000:])
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    return {
        f"{name} {part}": (each["samples"] / each["wall_s"], each["cpu_s"] / each["samples"] * 1000)
        for part, each in figures.items()
    }


def run_rounds(names: list[str], rounds: int, questions: int) -> tuple[Rates, Rates]:
    """Collect rates and CPU milliseconds by part; a peer that fails is reported and skipped from then on."""
    rates: Rates = {}
    cpu_ms: Rates = {}
    with stand_in(0.0) as url:
        for _ in range(rounds):
            for name in list(names):
                try:
                    parts = measure(name, url, questions)
                except (NotInstalledError, RuntimeError, subprocess.TimeoutExpired) as error:
                    print(f"{name} is left out: {error}")
                    names.remove(name)
                    continue
                for part, (rate, each_ms) in parts.items():
                    rates.setdefault(part, []).append(rate)
                    cpu_ms.setdefault(part, []).append(each_ms)
    return rates, cpu_ms


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Stored answers a second, llmkit and others.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=1_000)
    parser.add_argument("--without", nargs="*", choices=[*PROGRAMS][1:], default=[])
    options = parser.parse_args()
    names = [name for name in PROGRAMS if name not in options.without]
    rates, cpu_ms = run_rounds(names, options.rounds, options.questions)
    middle = {part: statistics.median(each) for part, each in rates.items()}
    for part, rate in middle.items():
        spread = f"{min(rates[part]):,.0f} to {max(rates[part]):,.0f}"
        print(f"{part:24} {rate:8,.0f} /s ({spread}) {statistics.median(cpu_ms[part]):7.3f} ms CPU")
    for ours in OURS:
        for peer, goal in GOALS.items():
            if ours in middle and peer in middle:
                print(f"{ours:13} : {peer:22} {middle[ours] / middle[peer]:5.2f} (goal {goal:.2f})")


if __name__ == "__main__":
    main()
