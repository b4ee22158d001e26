"""Both ends of the child processes that ask through one store: `Worker` starts them, `main` runs in them.

A worker opens its store, says `ready`, waits for a line on its standard input, does its job and tells the outcome as
one line of JSON. It calls the stand-in server without LiteLLM, whose import would cost each process three seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import psutil

from llmkit.errors import LLMInProgress, LLMUnavailable
from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.content_cache import DiskContentCache
from llmkit.persistence.engines import make_async_engine
from llmkit.persistence.journal import Journal, JournalLLMRunRepo
from llmkit.persistence.unit_of_work import SqlUnitOfWork
from llmkit.ports import (
    AnswerSink,
    AttemptLog,
    BeforeSend,
    ClientReply,
    LLMRunRepo,
    NotSent,
    StreamPiece,
    allow_sending,
)
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.types import (
    Attempt,
    AttemptStatus,
    LLMRequest,
    LLMResponse,
    RequestContext,
    Route,
    TokenUsage,
    utc_now,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

ROOT = Path(__file__).parents[2]
ROUTE = "ollama/llama3.2"
HERE = RequestContext(workspace_id="lab")


# --- the parent's end -----------------------------------------------------------------------------------------------


class Worker:
    """A child process at its job.

    Args:
        job: Name of a function in `JOBS`.
        **arguments: What the job takes.
    """

    def __init__(self, job: str, *, pass_fds: Sequence[int] = (), **arguments: Any) -> None:
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.workers", job, json.dumps(arguments)],
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=pass_fds,
            text=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._process.kill()
        with self._process:
            pass

    def go(self) -> None:
        """Wait until it is ready, then let it begin."""
        self.wait_until_ready()
        self.tell()

    def wait_until_ready(self) -> None:
        assert self.result() == "ready"

    def tell(self) -> None:
        self.say("go")

    def result(self) -> Any:
        """The next thing that it tells."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def kill(self) -> None:
        """As the kernel does it when memory runs out."""
        self._process.kill()
        self._process.wait()

    def say(self, word: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(word) + "\n")
        self._process.stdin.flush()


class Hatchling(Worker):
    """A child of a `Nest`, at its job."""

    def __init__(self, talk: socket.socket, pid: int) -> None:
        self._talk, self._pid = talk, pid
        self._lines = talk.makefile("r", encoding="utf-8")

    @property
    def pid(self) -> int:
        return self._pid

    def __exit__(self, *_error: object) -> None:
        self.kill()
        self._lines.close()
        self._talk.close()

    def result(self) -> Any:
        return json.loads(self._lines.readline())

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        while psutil.pid_exists(self._pid):
            time.sleep(0.001)

    def say(self, word: Any) -> None:
        self._talk.sendall((json.dumps(word) + "\n").encode())


class Nest(Worker):
    """Hatches workers that have everything imported, any number at once: only the nest itself takes long to start."""

    def __init__(self) -> None:
        self._hand, taker = socket.socketpair()
        with taker:
            super().__init__("nest", pass_fds=(taker.fileno(),), descriptor=taker.fileno())
        self.wait_until_ready()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self._hand.close()

    def hatch(self, job: str, **arguments: Any) -> Hatchling:
        """Start a worker; the arguments are those of `Worker`."""
        near, far = socket.socketpair()
        with far:
            socket.send_fds(self._hand, [b"."], [far.fileno()])
            self.say([job, arguments])
            return Hatchling(near, self.result())


class Nursery(Worker):
    """Bears processes that have everything imported, one at a time: a start takes milliseconds instead of seconds."""

    def __init__(self) -> None:
        super().__init__("nursery")
        self.wait_until_ready()

    def bear(self, job: str, **arguments: Any) -> int:
        """Start a process and return its id, which stays its own until it is reaped."""
        self.say([job, arguments])
        said = [self.result(), self.result()]
        said.remove("ready")
        return int(said[0]["pid"])

    def reap(self) -> tuple[int, list[Any]]:
        """Wait for its end: the exit code, negative for a signal, and all that it printed."""
        self.say("reap")
        said: list[Any] = []
        while True:
            line = self.result()
            if "ended" in line:
                return line["ended"], said
            said.append(line)


# --- the child's end ------------------------------------------------------------------------------------------------


class HttpClient:
    """One POST a call to a server that speaks Ollama's wire."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: aiohttp.ClientSession | None = None

    async def call(
        self,
        route: Route,
        request: LLMRequest,
        log: AttemptLog,
        before_send: BeforeSend = allow_sending,
        *,
        sink: AnswerSink | None = None,
    ) -> ClientReply | NotSent:
        if (not_sent := await before_send()) is not None:
            return not_sent
        started = utc_now()
        messages = [{"role": message.role, "content": message.content} for message in request.messages]
        try:
            body = await self._post({"model": route.model, "messages": messages, "stream": False})
        except asyncio.CancelledError:
            log.add(self._attempt(route, log, started, AttemptStatus.CANCELLED, TokenUsage()))
            raise
        except OSError as error:
            log.add(self._attempt(route, log, started, AttemptStatus.FAILED, TokenUsage()))
            raise LLMUnavailable(type(error).__name__) from None
        sent, made = body["prompt_eval_count"], body["eval_count"]
        usage = TokenUsage(input_tokens=sent, output_tokens=made, total_tokens=sent + made)
        log.add(self._attempt(route, log, started, AttemptStatus.SUCCEEDED, usage))
        return ClientReply(
            text=body["message"]["content"], tool_calls=(), finish_reason="stop", usage=usage, response_model=None
        )

    async def _post(self, payload: dict[str, Any]) -> dict[str, Any]:
        import aiohttp

        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        async with self._session.post(f"{self._url}/api/chat", json=payload) as response:
            body: dict[str, Any] = await response.json()
        return body

    @staticmethod
    def _attempt(route: Route, log: AttemptLog, started: Any, status: AttemptStatus, usage: TokenUsage) -> Attempt:
        return Attempt(
            route=route,
            number=log.next_number,
            status=status,
            started_at_utc=started,
            latency_ms=(utc_now() - started).total_seconds() * 1000,
            usage=usage,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


@asynccontextmanager
async def service_on(
    runs: LLMRunRepo, url: str, cache: DiskContentCache | None = None, **settings: Any
) -> AsyncIterator[LLMService]:
    client = HttpClient(url)
    values = load_settings(**settings)
    try:
        yield LLMService(router=LLMRouter(values, client), settings=values, runs=runs, cache=cache)
    finally:
        await client.close()


def ask(text: str, **fields: Any) -> LLMRequest:
    return LLMRequest(messages=text, **{"route": ROUTE, **fields})


async def _outcome(answer: Awaitable[LLMResponse]) -> str:
    try:
        return str((await answer).served_from)
    except LLMInProgress:
        return LLMInProgress.code


def _begin() -> None:
    _tell("ready")
    sys.stdin.readline()


def _tell(word: Any) -> None:
    """A line at once and in one piece, also when this process is killed."""
    os.write(sys.stdout.fileno(), (json.dumps(word) + "\n").encode())


def race(database: str, url: str, key: str, threads: int, tasks: int, sessions: int) -> None:
    """Threads with event loops of their own, each with tasks on the journal and tasks in sessions of their own."""
    request = ask("the same question", idempotency_key=key)

    async def on_journal() -> str:
        async with service_on(JournalLLMRunRepo(journal), url, cache_enabled=False) as service:
            return await _outcome(service.chat(request, HERE))

    async def in_a_session(number: int) -> str:
        from sqlalchemy import text

        note = text("INSERT INTO notes (note) VALUES (:note)")
        engine = make_async_engine(DatabaseAddress.parse(database))
        try:
            async with SqlUnitOfWork(engine) as unit:
                await unit.db.execute(note, {"note": f"{os.getpid()} {number} before"})
                async with service_on(unit.runs, url, cache_enabled=False) as service:
                    outcome = await _outcome(service.chat(request, HERE))
                await unit.db.execute(note, {"note": f"{os.getpid()} {number} {outcome}"})
                await unit.commit()
        finally:
            await engine.dispose()
        return outcome

    async def crowd(number: int) -> list[str]:
        alone = [in_a_session(100 * number + each) for each in range(sessions)]
        return list(await asyncio.gather(*alone, *(on_journal() for _ in range(tasks))))

    journal = Journal(database)
    with ThreadPoolExecutor(threads) as pool:
        _begin()
        crowds = pool.map(lambda number: asyncio.run(crowd(number)), range(threads))
        _tell([outcome for crowd in crowds for outcome in crowd])
    journal.close()


async def equal(database: str, url: str, cache_dir: str, tasks: int) -> None:
    """Equal calls without a key, all at once."""
    journal = Journal(database)
    cache = DiskContentCache(Path(cache_dir), ttl_s=60, size_limit_bytes=10**8)
    async with service_on(JournalLLMRunRepo(journal), url, cache) as service:
        _begin()
        answers = await asyncio.gather(*(service.chat(ask("the same question"), HERE) for _ in range(tasks)))
    journal.close()
    cache.close()
    _tell([(str(answer.served_from), answer.text) for answer in answers])


async def stream(database: str, pieces: list[str], key: str | None) -> None:
    """Read one streamed answer: a line for each piece, and after the first one a wait for the parent."""
    from llmkit.testing.scripted_client import ScriptedClient, ScriptedStream

    async def read(arrived: Sequence[StreamPiece]) -> None:
        _tell(arrived[0].text)
        if arrived[0].text == pieces[0]:
            await asyncio.to_thread(sys.stdin.readline)

    journal = Journal(database)
    # A cache of its own: what another process gets of this answer it gets through the store.
    cache = DiskContentCache(Path("cache of a worker"), ttl_s=60, size_limit_bytes=10**8)
    values = load_settings()
    router = LLMRouter(values, ScriptedClient([ScriptedStream(pieces)]))
    service = LLMService(router=router, settings=values, runs=JournalLLMRunRepo(journal), cache=cache)
    _begin()
    answer = await service.chat(ask("the same question", idempotency_key=key), HERE, sink=AnswerSink(read))
    journal.close()
    cache.close()
    _tell(answer.text)


async def one_by_one(database: str, url: str, keys: list[str]) -> None:
    """A call per key; after each answer a line, and a wait for the parent."""
    journal = Journal(database)
    async with service_on(JournalLLMRunRepo(journal), url, cache_enabled=False) as service:
        _begin()
        for key in keys:
            answer = await service.chat(ask(key, idempotency_key=key), HERE)
            _tell({"key": key, "text": answer.text})
            sys.stdin.readline()
    journal.close()


async def batch(database: str, url: str, keys: list[str], concurrency: int) -> None:
    """Make a call per key, several at once, and report each answer; continue where a dead process stopped."""
    journal = Journal(database)
    context = RequestContext(workspace_id="lab", pipeline_run_id="batch")
    todo = iter(keys)

    async def work(service: LLMService) -> None:
        for key in todo:
            answer = await service.chat(ask(key, idempotency_key=key), context)
            _tell({"key": key, "served_from": str(answer.served_from)})

    async with service_on(JournalLLMRunRepo(journal), url, cache_enabled=False) as service:
        _begin()
        await asyncio.gather(*(work(service) for _ in range(concurrency)))
    journal.close()


def nursery() -> None:
    """Fork a child for each job that is asked for, and wait for it if the job asks for that."""
    import aiohttp  # noqa: F401 before the first fork

    _tell("ready")
    child = 0
    for line in sys.stdin:
        asked = json.loads(line)
        if asked == "reap":
            _tell({"ended": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])})
            continue
        child = os.fork()
        if child == 0:
            sys.stdin = Path(os.devnull).open()  # noqa: SIM115
            run(*asked)
            os._exit(0)
        _tell({"pid": child})


def nest(descriptor: int) -> None:
    """Fork a child for each job that is asked for, with a socket of its own to talk over."""
    import aiohttp  # noqa: F401 before the first fork

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # dead children need no waiting parent
    hand = socket.socket(fileno=descriptor)
    _tell("ready")
    for line in sys.stdin:
        _, (talk,), _, _ = socket.recv_fds(hand, 1, 1)
        child = os.fork()
        if child == 0:
            _hatch(talk, *json.loads(line))
        os.close(talk)
        _tell(child)


def _hatch(talk: int, job: str, arguments: dict[str, Any]) -> NoReturn:
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for stream in (0, 1):
            os.dup2(talk, stream)
        os.close(talk)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        run(job, arguments)
    except BaseException:  # noqa: BLE001 - it must not come back to the nest
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


JOBS: dict[str, Callable[..., Any]] = {
    "race": race,
    "equal": equal,
    "stream": stream,
    "one_by_one": one_by_one,
    "batch": batch,
    "nursery": nursery,
    "nest": nest,
}


def run(job: str, arguments: dict[str, Any]) -> None:
    done = JOBS[job](**arguments)
    if asyncio.iscoroutine(done):
        asyncio.run(done)


def main() -> None:
    job, arguments = sys.argv[1:]
    run(job, json.loads(arguments))


if __name__ == "__main__":
    main()
