"""Kill evaluations in the second call of a sample, on real models, and count what is sent again.

    make ollama                                                        # once, for the routes ollama/...
    .venv/bin/python -m scripts.kill_pipelines [--samples 8] [--kills 2] [--only two-step-local]

Two tasks, `evals/tickets` (a summary, then its parts) and an agent with the tools of `evals/stock` that is asked twice,
each on a real Ollama and on the local model, which takes no tools. The evaluation runs in a process of its own, which
gets SIGKILL as soon as a second step is STARTED; then it starts again under the same name, and is killed in a second
step of another sample. What an answer says plays no part.

Requests to Ollama are counted by a proxy in front of it, those to the local model by their rows. In the end these must
hold, or the exit code is 1: every kill met a second step; no call that was SUCCEEDED at a kill was sent again; every
sample has one result; and a request more than calls was sent only for those that a kill left in doubt.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib.util
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import httpx
from aiohttp import web

from llmkit import Session
from llmkit.evals import AsyncBoundModel, Sample, Task, load_tasks

ROOT = Path(__file__).parents[1]
RUN = "killed"
LOCAL = "local/gemma-3-270m"
# The template of the built model takes no tools, and Ollama then refuses a request that has some.
TOOLS_MODEL = "gemma-3-270m-tools"
TOOLS_TEMPLATE = "{{ range .Tools }}{{ . }}\n{{ end }}{{ range .Messages }}{{ .Content }}{{ end }}"
CASES = ("two-step-ollama", "two-step-local", "agent-ollama", "agent-local")
BOUND_S = 600.0
FEW_SHOT = """\
Answer in one short line.
Question: What is the colour of grass?
Answer: green
Question: How many legs does a cat have?
Answer: four
"""


# --- the two tasks, and the process that is killed -----------------------------------------------------------------


def make_agent_task(*, with_tools: bool) -> Task:
    """Return the task of an agent that is asked twice, with the questions and the tools of `evals/stock`."""
    spec = importlib.util.spec_from_file_location("stock_task", ROOT / "evals" / "stock" / "task.py")
    assert spec is not None
    assert spec.loader is not None
    stock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stock)
    tools = [stock.look_up_item, stock.look_up_delivery] if with_tools else []

    async def ask_twice(sample: Sample, model: AsyncBoundModel) -> str:
        agent = model.agent(tools=tools, instructions=FEW_SHOT)
        first = await agent.run(f"Question: {sample.input}\nAnswer:")
        second = await agent.run(f"\nQuestion: {sample.input} And why?\nAnswer:", message_history=first.all_messages())
        return str(second.output)

    parameters = {"temperature": 0, "stop": ["\n"], "max_output_tokens": 64}
    data = ROOT / "evals" / "stock" / "stock.jsonl"
    return Task("asked-twice", data, solve=ask_twice, version="1", scorers=[], parameters=parameters)


def evaluate(case: str, samples: int, *, concurrency: int = 2) -> Counter[str]:
    """Run one case, or go on with it, in the workspace of this process's settings; return the counts of statuses."""
    kind, server = case.rsplit("-", 1)
    (tickets,) = load_tasks(ROOT / "evals" / "tickets" / "task.py")
    task = make_agent_task(with_tools=server == "ollama") if kind == "agent" else tickets
    route = LOCAL if server == "local" else f"ollama/{TOOLS_MODEL}"
    with Session("killed") as session:
        report = session.evaluate(
            task, route, name=RUN, limit=samples, concurrency=concurrency, progress=False, warm_up=False
        )
    return Counter({str(status): int(count) for status, count in report.counts.items() if count})


# --- counting ---------------------------------------------------------------------------------------------------------


@dataclass
class Proxy:
    """A proxy in front of Ollama, in a thread, that counts the bodies of chat requests."""

    target: str
    sent: Counter[str] = field(default_factory=Counter)
    url: str = ""
    _loop: asyncio.AbstractEventLoop | None = None
    _over: asyncio.Event | None = None

    @contextmanager
    def serve(self) -> Iterator[Proxy]:
        """Serve until the end of the block."""
        ready = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._serve(ready)), daemon=True)
        thread.start()
        try:
            if not ready.wait(30):
                raise RuntimeError("the proxy does not start")
            yield self
        finally:
            if self._loop is not None and self._over is not None:
                self._loop.call_soon_threadsafe(self._over.set)
            thread.join(30)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=BOUND_S)) as client:

            async def forward(request: web.Request) -> web.Response:
                body = await request.read()
                if request.path == "/api/chat":
                    self.sent[hashlib.sha256(body).hexdigest()] += 1
                headers = {"Content-Type": "application/json"}
                async with client.request(
                    request.method, self.target + request.path, data=body, headers=headers
                ) as got:
                    return web.Response(body=await got.read(), status=got.status, content_type=got.content_type)

            app = web.Application(client_max_size=1 << 24)
            app.router.add_route("*", "/{path:.*}", forward)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            ready.set()
            await self._over.wait()
            await runner.cleanup()


@dataclass(frozen=True)
class Row:
    """A call as it is in the store; `call` is the name of its sample and the hash of its request, and not its key."""

    id: bytes | str
    call: str
    status: str
    step: int
    attempts: int


def read_rows(database: Path) -> list[Row]:
    """Return the calls of the run; none before the store is there."""
    if not database.exists():
        return []
    query = (
        "SELECT r.id, r.pipeline_run_id || r.prompt_sha256, r.status, r.metadata_json, count(a.number) "
        "FROM llm_runs r LEFT JOIN llm_attempts a ON a.run_id = r.id WHERE r.stage = 'sample' GROUP BY r.id"
    )
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)) as connection:
        try:
            found = connection.execute(query).fetchall()
        except sqlite3.OperationalError:  # the tables are being made
            return []
    return [
        Row(id_, call, status, int(json.loads(metadata or "{}").get("solve", {}).get("step", 0)), attempts)
        for id_, call, status, metadata, attempts in found
    ]


# --- one case ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Counts of one case; `problems` is empty when all claims hold."""

    case: str
    statuses: Counter[str]
    kills: int
    finished_before: int
    in_doubt: int
    sent: int
    calls: int
    problems: tuple[str, ...]

    def __str__(self) -> str:
        statuses = ", ".join(f"{count} {status}" for status, count in sorted(self.statuses.items()))
        verdict = "; ".join(self.problems) or "nothing that was finished was sent again"
        return (
            f"{self.case:16} {statuses}; {self.kills} kills in a second step, with {self.finished_before} calls "
            f"finished and {self.in_doubt} in doubt; {self.sent} requests for {self.calls} calls: {verdict}"
        )


def kill_in_second_step(process: subprocess.Popen[bytes], database: Path, seen: set[Any]) -> bool:
    """Kill the process once a second step is STARTED that was not seen before; False when it ended before."""
    deadline = time.monotonic() + BOUND_S
    while time.monotonic() < deadline and process.poll() is None:
        found = {row.id for row in read_rows(database) if row.status == "STARTED" and row.step == 2} - seen
        if found:
            process.send_signal(signal.SIGKILL)
            process.wait(60)
            seen |= found
            return True
        time.sleep(0.005)
    return False


def run_case(case: str, samples: int, kills: int, ollama_url: str | None) -> Outcome:
    """Run a case in a new folder, kill it that often, and let it finish."""
    with TemporaryDirectory() as folder, Proxy(ollama_url).serve() if ollama_url else nullcontext() as proxy:
        database = Path(folder, "llmkit.db")
        environment = os.environ | {
            "LLM_DATABASE_URL": f"sqlite:///{database}",
            "LLM_OLLAMA_API_BASE": proxy.url if proxy else "http://127.0.0.1:9",
            "LLM_DEFAULT_TIMEOUT_S": "300",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, "-m", "scripts.kill_pipelines", "--evaluate", case, "--samples", str(samples)]
        seen: set[Any] = set()
        met = 0
        finished: dict[str, int] = {}
        doubtful: set[str] = set()
        for _ in range(kills):
            child = subprocess.Popen(command, env=environment, cwd=folder, stdout=subprocess.DEVNULL)
            try:
                met += kill_in_second_step(child, database, seen)
            finally:
                child.kill()
                child.wait(60)
            rows = read_rows(database)
            finished |= {row.call: row.attempts for row in rows if row.status == "SUCCEEDED" and row.attempts}
            doubtful |= {row.call for row in rows if row.status == "STARTED"}
        before = Counter(proxy.sent) if proxy else Counter()
        done = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, timeout=2 * BOUND_S, check=False
        )
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        statuses = Counter(json.loads(done.stdout.strip().splitlines()[-1]))
        return _judge(case, samples, kills, met, finished, doubtful, statuses, read_rows(database), before, proxy)


def _judge(  # noqa: PLR0913 - everything that was counted
    case: str,
    samples: int,
    kills: int,
    met: int,
    finished: dict[str, int],
    doubtful: set[str],
    statuses: Counter[str],
    rows: list[Row],
    before: Counter[str],
    proxy: Proxy | None,
) -> Outcome:
    billed = [row for row in rows if row.attempts]
    again = [
        call
        for call, attempts in finished.items()
        if sum(row.attempts for row in billed if row.call == call) > attempts
    ]
    calls = len({row.call for row in billed} | doubtful)
    # The rows of calls in doubt have no attempts, whether or not their requests left.
    sent = proxy.sent.total() if proxy else sum(row.attempts for row in billed) + len(doubtful)
    problems = []
    if met < kills:
        problems.append(f"only {met} of {kills} kills met a second step: raise --samples")
    if again:
        problems.append(f"{len(again)} finished calls were sent again")
    if statuses.total() != samples:
        problems.append(f"{statuses.total()} results for {samples} samples")
    if proxy is not None:
        twice = sum(count - 1 for body, count in proxy.sent.items() if count > 1)
        if twice > len(doubtful):
            problems.append(f"{twice} bodies were sent twice, with {len(doubtful)} calls in doubt")
        unexplained = (proxy.sent - before).total() - (sum(row.attempts for row in billed) - sum(finished.values()))
        if unexplained:
            problems.append(f"{unexplained} requests after the last kill have no row")
    return Outcome(case, statuses, met, len(finished), len(doubtful), sent, calls, tuple(problems))


@contextmanager
def serve_ollama() -> Iterator[str]:
    """Start the built Ollama with a second model, of the same weights, whose template takes tools."""
    from tests.support.ollama_server import RealOllama, build_ollama

    folder = build_ollama.find_built()
    if folder is None:
        sys.exit("There is no Ollama yet: run `make ollama`")
    with RealOllama(folder) as server:
        add_tools_model(server.url, server.model)
        yield server.url


def add_tools_model(url: str, model: str) -> None:
    """Make the model that takes tools out of the built one."""
    with httpx.Client(base_url=url, trust_env=False, timeout=120) as http:
        body = {"model": TOOLS_MODEL, "from": model, "template": TOOLS_TEMPLATE, "stream": False}
        http.post("/api/create", json=body).raise_for_status()


def main() -> int:
    """Run the cases and print what was counted."""
    parser = argparse.ArgumentParser(description="Kill evaluations in the second step of a sample, on real models.")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--only", nargs="*", choices=CASES, default=CASES)
    parser.add_argument("--evaluate", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.evaluate:
        print(json.dumps(evaluate(options.evaluate, options.samples)))
        return 0
    needs_ollama = any(case.endswith("ollama") for case in options.only)
    is_right = True
    with serve_ollama() if needs_ollama else nullcontext() as url:
        for case in options.only:
            outcome = run_case(case, options.samples, options.kills, url if case.endswith("ollama") else None)
            print(outcome, flush=True)
            is_right &= not outcome.problems
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
