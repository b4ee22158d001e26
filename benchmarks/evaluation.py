"""The evaluation harness against its peers: the same samples, the same stand-in server, the same run.

    python benchmarks/evaluation.py [--rounds 2] [--samples 500] [--without promptfoo] [--only llmkit]

500 samples, 64 at once, 50 ms latency, every sample durable. Each harness runs in a process of its own, one after the
other, and measures from the call of its `evaluate` to its return, after one sample for what it loads late. Then a finished
evaluation is asked for again: by llmkit under the same name, by inspect-ai with its cache. Medians of the rounds are
printed, with ratios to llmkit. It ends by itself: at most ten minutes for each process.

Settings, each harness at its documented best:

| harness | installed into the user's cache | settings |
|---|---|---|
| llmkit | this folder | `Session(concurrency_limit=64)`, `evaluate(concurrency=64)`; typed output, schema sent, retries on |
| llmkit-workers | this folder | the same on two worker processes, `workers=2`; the rate is that of the middle half of the samples |
| inspect-ai | a virtual environment, by uv | `eval(max_connections=64, max_samples=64, display="none", log_format="eval")`; "leanest" also `log_realtime=False`, `log_model_api=False`, `log_images=False`, `score_display=False`, with which a killed run loses what is not flushed; "cached" is `generate(cache=True)` |
| pydantic-evals | a virtual environment, by uv | an `Agent` with `NativeOutput`, `evaluate_sync(max_concurrency=64, progress=False)`, a line of JSON in `CaseLifecycle.teardown` |
| promptfoo | a folder, by npm | `evaluate(suite, {maxConcurrency: 64, cache: false, showProgressBar: false})` with `writeLatestResults`, `ollama:chat:MODEL` |

promptfoo brings 1.4 GB the first time; what cannot be installed is left out, with the reason.
"""  # noqa: E501 - a table

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from beside import PEERS, NotInstalledError, installed, stand_in

LATENCY_S, CONCURRENCY = 0.05, 64
REPLAYED = 10_000
LARGE_REPLAY = "llmkit-large replay"
PROCESS_LIMIT_S = 600
# Least ratios of llmkit's rate to a peer's.
GOALS = {"inspect-ai durable": 10, "inspect-ai leanest": 10, "promptfoo run": 3, "inspect-ai cached": 100}


@dataclass(frozen=True)
class Harness:
    """One of those compared.

    Attributes:
        name: As printed.
        program: File in `peers/` that runs it.
        packages: Exactly what is installed for it; none for llmkit.
        samples: How many, if not the requested number; such a harness runs in the first round only.
    """

    name: str
    program: str
    packages: tuple[str, ...] = ()
    samples: int | None = None

    def folder(self) -> Path | None:
        """Return where it is installed; None for llmkit.

        Raises:
            NotInstalledError: It is not, and cannot be.
        """
        return installed(self.packages, from_npm=self.program.endswith(".mjs")) if self.packages else None

    def command(self, folder: Path | None) -> list[str]:
        """Return the command that runs it from there."""
        if folder is None:
            return [sys.executable, str(PEERS / self.program)]
        if self.program.endswith(".mjs"):
            return ["node", "--no-warnings", str(PEERS / self.program)]
        return [str(folder / "bin" / "python"), str(PEERS / self.program)]


HARNESSES = (
    Harness("llmkit", "run_llmkit.py"),
    Harness("inspect-ai", "run_inspect.py", ("inspect-ai==0.3.285", "openai==3.54.0")),
    Harness("pydantic-evals", "run_pydantic_evals.py", ("pydantic-evals==2.62.0", "pydantic-ai-slim[openai]==2.62.0")),
    Harness("promptfoo", "run_promptfoo.mjs", ("promptfoo@0.121.20",)),
    Harness("llmkit-large", "run_llmkit.py", samples=REPLAYED),
    Harness("llmkit-workers", "run_llmkit_workers.py", samples=REPLAYED),
)


@dataclass(frozen=True)
class Figure:
    """One measured part of one process."""

    wall_s: float
    cpu_s: float
    samples: int

    @property
    def per_s(self) -> float:
        """Samples a second by the wall clock."""
        return self.samples / self.wall_s

    @property
    def cpu_ms(self) -> float:
        """Milliseconds of CPU for each sample."""
        return self.cpu_s / self.samples * 1000


Figures = dict[str, list[Figure]]


def count_answers(url: str) -> int:
    """Return the number of answers that the server gave since the last time."""
    with urllib.request.urlopen(f"{url}/asked") as reply:
        return int(reply.read())


def run_once(harness: Harness, url: str, samples: int) -> dict[str, Figure]:
    """Run a harness once in a new folder and return its parts by name.

    Raises:
        NotInstalledError: The peer is not there and cannot be installed.
        RuntimeError: It failed, or took too long; with the end of what it wrote.
    """
    peer = harness.folder()
    command = harness.command(peer)
    with tempfile.TemporaryDirectory() as folder:
        command += [url, folder, str(samples), str(CONCURRENCY)]
        environment = os.environ | {"PEER_FOLDER": str(peer)}
        try:
            done = subprocess.run(
                command,
                env=environment,
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=PROCESS_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"not done after {PROCESS_LIMIT_S} s") from error
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip()[-2000:])
    parts = {part: Figure(**figure) for part, figure in json.loads(done.stdout.strip().splitlines()[-1]).items()}
    called = 1 + sum(figure.samples for part, figure in parts.items() if part not in {"replay", "cached"})
    if (answers := count_answers(url)) != called:
        raise RuntimeError(f"the server was asked {answers} times for {called} samples")
    return parts


def run_rounds(harnesses: list[Harness], url: str, *, rounds: int, samples: int) -> Figures:
    """Run every harness once in each round; one that fails is reported and skipped from then on."""
    figures: Figures = {}
    for number in range(rounds):
        for harness in [each for each in harnesses if not number or each.samples is None]:
            print(f"round {number + 1} of {rounds}: {harness.name}", file=sys.stderr)
            count_answers(url)
            try:
                parts = run_once(harness, url, harness.samples or samples)
            except (NotInstalledError, RuntimeError) as error:
                print(f"{harness.name} is left out: {error}")
                harnesses.remove(harness)
                continue
            for part, figure in parts.items():
                figures.setdefault(f"{harness.name} {part}", []).append(figure)
    return figures


def show(figures: Figures, samples: int) -> None:
    """Print a row for each part, then the ratios against the goals."""
    floor = CONCURRENCY / LATENCY_S
    print(f"\n{samples} samples, {CONCURRENCY} at once, {LATENCY_S * 1000:.0f} ms: at most {floor:,.0f} /s")
    rates = {name: statistics.median(figure.per_s for figure in several) for name, several in figures.items()}
    for name, several in figures.items():
        cpu_ms = statistics.median(figure.cpu_ms for figure in several)
        size = several[0].samples
        print(f"{name:24} {size:7,} samples {rates[name]:10,.1f} /s {cpu_ms:9.3f} ms CPU a sample")
    for name, goal in GOALS.items():
        ours = LARGE_REPLAY if name.endswith("cached") else "llmkit run"
        if name in rates and ours in rates:
            cpu = _cpu(figures[name]) / _cpu(figures[ours])
            print(f"{ours} : {name:20} {rates[ours] / rates[name]:6.1f} x by rate (goal {goal}), {cpu:6.1f} x by CPU")
    if {"llmkit-large run", "llmkit-workers half"} <= rates.keys():
        ratio = rates["llmkit-workers half"] / rates["llmkit-large run"]
        print(f"two workers : one process {ratio:.2f} x by rate (goal 1.7 on two free cores beside the stand-in)")
    if LARGE_REPLAY in figures:
        wall_s = statistics.median(figure.wall_s for figure in figures[LARGE_REPLAY])
        print(f"{REPLAYED:,} samples resumed in {wall_s:.2f} s (goal: under 2 s)")


def _cpu(several: list[Figure]) -> float:
    return statistics.median(figure.cpu_ms for figure in several)


def main() -> None:
    """Parse what is wanted, measure and print."""
    names = [harness.name for harness in HARNESSES]
    parser = argparse.ArgumentParser(description="llmkit's evaluation harness against its peers.")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--only", nargs="*", choices=names, default=names)
    parser.add_argument("--without", nargs="*", choices=names, default=[])
    options = parser.parse_args()
    chosen = [each for each in HARNESSES if each.name in options.only and each.name not in options.without]
    with stand_in(LATENCY_S) as url:
        figures = run_rounds(chosen, url, rounds=options.rounds, samples=options.samples)
    show(figures, options.samples)


if __name__ == "__main__":
    main()
