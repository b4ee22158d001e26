"""A pipeline of three calls a sample: llmkit's `solve` against a solver of inspect-ai with three `generate` calls.

    python benchmarks/pipeline.py [--samples 1000] [--rounds 1] [--only llmkit]

64 samples at once, each with one call under way, on a stand-in server of 50 ms; every call and every result durable.
The same server, samples and prompts for both, each in a process of its own, one after the other; `beside.py` installs
inspect-ai into the user's cache. "threads" is the sync face of the same function. Medians of the rounds and ratios are
printed. Goals: 250 samples a second, and 10 times inspect-ai.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile

from beside import PEERS, NotInstalledError, installed, stand_in

LATENCY_S, CONCURRENCY, CALLS = 0.05, 64, 3
INSPECT = ("inspect-ai==0.3.285", "openai==3.54.0")
PROCESS_LIMIT_S = 900
GOAL_PER_S, GOAL_RATIO = 250, 10


def run_once(name: str, url: str, samples: int) -> dict[str, dict[str, float]]:
    """Run one harness in a new folder and return what it measured, by part.

    Raises:
        NotInstalledError: inspect-ai is not there and cannot be installed.
        RuntimeError: It failed; with the end of what it wrote.
    """
    python = sys.executable if name == "llmkit" else str(installed(INSPECT) / "bin" / "python")
    with tempfile.TemporaryDirectory() as folder:
        command = [python, str(PEERS / f"solve_{name}.py"), url, folder, str(samples), str(CONCURRENCY)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PROCESS_LIMIT_S, check=False)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip()[-2000:])
    parts: dict[str, dict[str, float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return parts


def main() -> None:
    """Parse what is wanted, measure and print."""
    parser = argparse.ArgumentParser(description="A pipeline of three calls by llmkit and by inspect-ai.")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="*", choices=["llmkit", "inspect"], default=["llmkit", "inspect"])
    options = parser.parse_args()
    rates: dict[str, list[float]] = {}
    cpu_ms: dict[str, list[float]] = {}
    with stand_in(LATENCY_S) as url:
        for _ in range(options.rounds):
            for name in options.only:
                try:
                    parts = run_once(name, url, options.samples)
                except (NotInstalledError, RuntimeError) as error:
                    print(f"{name} is left out: {error}")
                    continue
                for part, spent in parts.items():
                    rates.setdefault(f"{name} {part}", []).append(spent["samples"] / spent["wall_s"])
                    cpu_ms.setdefault(f"{name} {part}", []).append(spent["cpu_s"] / spent["samples"] * 1000)
    floor = CONCURRENCY / LATENCY_S / CALLS
    print(
        f"{options.samples} samples of {CALLS} calls, {CONCURRENCY} at once, {LATENCY_S * 1000:.0f} ms: "
        f"at most {floor:,.0f} samples/s"
    )
    for name, several in rates.items():
        cpu = statistics.median(cpu_ms[name])
        print(f"{name:18} {statistics.median(several):9,.1f} samples/s {cpu:8.2f} ms CPU a sample")
    ours = rates.get("llmkit run")
    for name in ("inspect durable", "inspect leanest"):
        if ours is not None and name in rates:
            ratio = statistics.median(ours) / statistics.median(rates[name])
            cpu = statistics.median(cpu_ms[name]) / statistics.median(cpu_ms["llmkit run"])
            print(f"llmkit run : {name} {ratio:.1f} x by rate (goal {GOAL_RATIO}), {cpu:.1f} x by CPU")
    if ours is not None:
        print(f"llmkit run {statistics.median(ours):,.0f} samples/s (goal {GOAL_PER_S})")


if __name__ == "__main__":
    main()
