"""A comparison of two servers with the same weights: the local model against Ollama, killed in the middle.

    make ollama                                 # once: builds a real Ollama
    .venv/bin/python scripts/compare_servers.py

Asks every sample of the sentiment task with two prompts on both servers. In the middle Ollama is killed, stays away for
a while and is started again. Then it prints the report, what the differences mean, and what the break has cost. The
same command again calls nothing: the run has a name (`--name`), and its store is `llmkit.db` in the working directory.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import build_ollama
from rich.console import Console

from llmkit import LLMError, Session
from llmkit.evals import EvalReport, Progress, load_tasks
from llmkit.local_model.models import find_local_model

if TYPE_CHECKING:
    import pandas as pd

TASK = Path(__file__).parents[1] / "evals" / "sentiment" / "task.py"
LOCAL = "local/gemma-3-270m"
OLLAMA = f"ollama/{build_ollama.MODEL}"
PROMPTS = ("", "@zero-shot")
ROUTES = [f"{route}{prompt}" for prompt in PROMPTS for route in (LOCAL, OLLAMA)]
START_DEADLINE_S = 30
CONCURRENCY = 4
# What a difference has to exceed to matter for a choice; only the wording of the explanation depends on it.
MARGIN = 0.05
LARGEST_P = 0.05


class Ollama:
    """The Ollama that `make ollama` built, on one port, which may be killed and started again."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.port = build_ollama.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder, self._home = folder, home
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return when it answers.

        Raises:
            RuntimeError: It ended, or does not answer in time.
        """
        env = build_ollama.server_env(self._folder, port=self.port, home=self._home)
        command = [str(self._folder / "ollama"), "serve"]
        with (self._home / "server.log").open("ab") as log:
            # A group of its own: its model runs in a child, which has to go with it.
            self._process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + START_DEADLINE_S
        while not build_ollama.answers(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Ollama does not start; its log: {self._home / 'server.log'}")
            time.sleep(0.05)

    def kill(self) -> None:
        """End it at once, with its model, as a crash would. Twice is fine."""
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


class Interruption:
    """Kills the server when half of the work is done, and starts it again after a while."""

    def __init__(self, server: Ollama, down_s: float, say: Callable[[str], None]) -> None:
        self._server, self._down_s, self._say = server, down_s, say
        self._half_done = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._kill_and_start, daemon=True)

    @property
    def happened(self) -> bool:
        """Whether the server was killed."""
        return self._half_done.is_set()

    def __call__(self, progress: Progress) -> None:
        """Note how far the evaluation is."""
        if progress.sent and progress.done >= progress.total / 2:
            self._half_done.set()

    @contextmanager
    def arm_kills(self) -> Iterator[None]:
        """Arm the kills while the evaluation runs; afterwards the server is up, whatever happened."""
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()

    def _kill_and_start(self) -> None:
        while not self._half_done.wait(0.1):
            if self._over.is_set():
                return
        self._say("Half is done: Ollama is killed.")
        self._server.kill()
        self._over.wait(self._down_s)
        self._server.start()
        self._say(f"Ollama is up again after {self._down_s:.0f} s.")


def main() -> int:
    """Run the comparison and explain it."""
    options = _options()
    console = Console()
    folder = build_ollama.find_built()
    if folder is None:
        sys.exit("There is no Ollama yet: run `make ollama`")
    console.print(_weights(folder), highlight=False)
    with tempfile.TemporaryDirectory(prefix="llmkit-ollama-") as home:
        server = Ollama(folder, Path(home))
        try:
            server.start()
            return _compare(server, options, console)
        finally:
            server.kill()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The local model against Ollama, on the same weights.")
    parser.add_argument("--samples", type=int, default=100, help="how many samples (default: %(default)s)")
    parser.add_argument("--down-s", type=float, default=20, help="how long Ollama is away, in seconds; 0: not killed")
    parser.add_argument("--name", default="servers", help="name of the run (default: %(default)s)")
    return parser.parse_args()


def _weights(folder: Path) -> str:
    """Return whether both servers have the same file of weights: Ollama names its blobs by their hash."""
    sha256 = find_local_model(LOCAL.partition("/")[2]).sha256
    same = (folder / "models" / "blobs" / f"sha256-{sha256}").exists()
    return f"Both servers have {'the same weights' if same else 'DIFFERENT weights'} (embedded: sha256 {sha256[:12]})."


def _compare(server: Ollama, options: argparse.Namespace, console: Console) -> int:
    (task,) = load_tasks(TASK)
    interruption = Interruption(server, options.down_s, lambda line: print(line, file=sys.stderr))

    def evaluated(session: Session) -> EvalReport:
        return session.evaluate(
            task, ROUTES, name=options.name, limit=options.samples, concurrency=CONCURRENCY, progress=interruption
        )

    with Session("servers", ollama_api_base=server.url, ollama_model=build_ollama.MODEL) as session:
        started_s = time.monotonic()
        with interruption.arm_kills() if options.down_s else nullcontext():
            report = evaluated(session)
        if _without_answer(report):
            console.print(f"{_without_answer(report)} samples got no answer: the same name again asks for these alone.")
            report = evaluated(session)
        took_s = time.monotonic() - started_s
        console.print(report.table())
        console.print()
        for prompt in PROMPTS:
            console.print(
                explain_difference(report, f"{LOCAL}{prompt}", f"{OLLAMA}{prompt}"), highlight=False, soft_wrap=True
            )
        console.print(accounts(session.runs(), session.attempts(), took_s), highlight=False, soft_wrap=True)
    return 1 if report.has_failures else 0


def _without_answer(report: EvalReport) -> int:
    return sum(result.error_code == "unavailable" or result.status == "NOT_RUN" for result in report.results)


def explain_difference(report: EvalReport, a: str, b: str, metric: str = "field_match") -> str:
    """Describe difference, interval and what they allow to conclude."""
    row = report.compare(a, b, metric).iloc[0]
    figures = (
        f"{a} minus {b}: {row['difference']:+.3f}, 95 % interval [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}], "
        f"p = {row['p_value']:.2f} ({row['method']}, {row['pairs']} samples, {row['left_out']} left out)."
    )
    disagree = _disagreements(report, a, b)
    return f"{figures}\n  {_verdict(row['ci_low'], row['ci_high'], row['p_value'])} {disagree}"


def _verdict(low: float, high: float, p_value: float) -> str:
    if math.isnan(low) or math.isnan(high):
        return "There is no interval: too few samples have an answer of both."
    if (low > 0 or high < 0) and p_value > LARGEST_P:
        return "The interval just excludes 0, and the exact test does not: too close to call. More samples would tell."
    if low > 0 or high < 0:
        return f"The interval excludes 0: the {'first' if low > 0 else 'second'} is better."
    within = max(-low, high)
    if within <= MARGIN:
        return (
            f"The interval includes 0 and rules out a difference of more than {within:.3f}: the servers are equivalent."
        )
    return (
        f"The interval includes 0, so no difference is shown; one of up to {within:.3f} is not ruled out. "
        "More samples would tell."
    )


def _disagreements(report: EvalReport, a: str, b: str) -> str:
    frame = report.samples()
    outputs = frame[frame["status"] == "SUCCEEDED"].pivot_table("output", ["sample_id", "epoch"], "variant", "first")
    # A server that answered nothing has no column.
    both = outputs.reindex(columns=[a, b]).dropna()
    return f"The answers differ on {int((both[a] != both[b]).sum())} of {len(both)} samples."


def accounts(runs: pd.DataFrame, attempts: pd.DataFrame, took_s: float) -> str:
    """Report what was sent, what failed, and whether anything was answered twice."""
    answered = attempts[attempts["status"] == "SUCCEEDED"]
    billed = runs[(runs["status"] == "SUCCEEDED") & (runs["served_from"] == "provider")]
    by_key = billed.groupby("idempotency_key").size()
    twice = int((by_key > 1).sum()) + int((answered.groupby("run_id").size() > 1).sum())
    in_vain = attempts[attempts["status"] != "SUCCEEDED"]
    reasons = ", ".join(f"{count} x {code}" for code, count in in_vain["error_code"].value_counts().items()) or "none"
    return (
        f"In the store: {len(answered)} requests answered, {len(in_vain)} failed ({reasons}). "
        f"Answered more than once: {twice}. This call took {took_s:.0f} s."
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (LLMError, RuntimeError, build_ollama.ToolchainMissingError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except KeyboardInterrupt:
        sys.exit("Interrupted. What is finished is kept; the same command continues.")
