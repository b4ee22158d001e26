"""Twenty thousand calls in one process against a server with every fault, and what stays behind in the process.

    python -m benchmarks.hostile_run [calls]

A server in a process of its own draws its replies: good ones on kept-alive connections, late ones, surplus bytes after
a reply, resets, silence until the deadline, drips, bodies that are cut or too large, gzip bombs, and everything of
`tests/support/hostile_replies.py`. One `Session` calls it over both protocols. After every tenth of the calls it prints
memory, threads, open descriptors and, of those, sockets. At the end it compares the requests that the server read with
the rows of `llm_attempts`. It exits with 1 when a request has no row, a row that no deadline explains has no request, a
run stays STARTED, or a call raises anything but an `LLMError`. Takes 5 to 25 minutes, and stops by itself after 40.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import gzip
import json
import logging
import math
import os
import random
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections import Counter
from pathlib import Path

from llmkit import Session
from llmkit.errors import LLMError
from tests.support.hostile_replies import GOOD, build_good_reply, build_reply, draw_reply, is_model_call, read_request

CALLS = 20_000
CALLERS = 32
MODELS = 40
LOOKS = 10
LONGEST_S = 2400.0
TIMEOUT_S = 1.0
REPLY_LIMIT_MB = 1
# How often each comes, in relation to the others.
FAULTS = {
    "good": 30, "late": 10, "surplus": 10, "odd": 40, "reset": 10, "cut": 10, "drip": 10, "large": 10, "bomb": 10,
    "silent": 2,
}  # fmt: skip
RESET = struct.pack("ii", 1, 0)


class HostileServer:
    """Draws a fault for each model call, and counts the calls that it read."""

    def __init__(self) -> None:
        self._rng = random.Random("hostile run")
        self._requests = 0
        self._broken = 0
        self._faults: Counter[str] = Counter()
        self._large = b" " * (REPLY_LIMIT_MB + 1) * 2**20
        self._bomb = gzip.compress(self._large * 32)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until a fault ends it."""
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the run has ended
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = await read_request(reader)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            # Nothing at all is a client that closed an idle connection, and no request.
            self._broken += not isinstance(error, asyncio.IncompleteReadError) or bool(error.partial)
            raise
        if head.startswith(b"GET /figures "):
            figures = {"requests": self._requests, "broken": self._broken, "faults": self._faults}
            writer.write(build_reply(json.dumps(figures).encode()))
            return False
        provider = "ollama" if b" /api/" in head else "gemini"
        if not is_model_call(head):
            writer.write(draw_reply(provider, self._rng))
            return False
        self._requests += 1
        (fault,) = self._rng.choices(tuple(FAULTS), tuple(FAULTS.values()))
        self._faults[fault] += 1
        return await self._send(fault, provider, writer)

    async def _send(self, fault: str, provider: str, writer: asyncio.StreamWriter) -> bool:
        """Send the reply, and return whether the connection stays open."""
        good = build_reply(json.dumps(GOOD[provider]).encode())
        closing = (("Connection", "close"),)
        if fault in ("good", "late", "surplus"):
            await asyncio.sleep(0.2 if fault == "late" else 0)
            # In one piece: surplus that arrives after the next request left looks like its reply, for any
            # client of HTTP/1.1, and then the server is one request behind.
            writer.write(good + (good if fault == "surplus" else b""))
            await writer.drain()
            return True
        if fault == "silent":
            await asyncio.sleep(2 * TIMEOUT_S)
        elif fault == "reset":
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        elif fault == "cut":
            writer.write(good[: -self._rng.randrange(1, 60)])
        elif fault == "drip":
            for byte in build_good_reply(provider)[:40]:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.01)
        elif fault == "large":
            writer.write(build_reply(self._large, headers=closing))
        elif fault == "bomb":
            writer.write(build_reply(self._bomb, headers=(*closing, ("Content-Encoding", "gzip"))))
        else:
            writer.write(draw_reply(provider, self._rng))
        await writer.drain()
        return False


async def serve() -> None:
    """Run the server until standard input ends, which it does with the parent."""
    server = await asyncio.start_server(HostileServer().handle, "127.0.0.1", 0, backlog=1000)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


class _MallInfo(ctypes.Structure):
    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks"),
            "keepcost",
        )
    )


def count_allocated_mib() -> float:
    """Return the memory that is in use, by glibc; NaN elsewhere.

    The process keeps more: replies of a megabyte leave holes in the arenas of the threads that read them, which glibc
    uses again and does not return.
    """
    try:
        read = ctypes.CDLL("libc.so.6").mallinfo2
    except (OSError, AttributeError):
        return math.nan
    read.restype = _MallInfo
    found = read()
    return (found.uordblks + found.hblkhd) / 2**20


def describe_process() -> str:
    """Describe memory, threads and descriptors of this process now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    targets = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that listed the folder
            targets.append(str(descriptor.readlink()))
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    sockets = sum(target.startswith("socket:") for target in targets)
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    in_use = f"{memory:7.1f} MiB ({count_allocated_mib():.0f} allocated)"
    return f"{in_use} {threads:4} threads {len(targets):5} descriptors {sockets:5} sockets"


async def call_all(session: Session, calls: int) -> tuple[Counter[str], Counter[str]]:
    """Make all calls, and return how they ended and which foreign exceptions left them."""
    outcomes: Counter[str] = Counter()
    foreign: Counter[str] = Counter()
    numbers, began_s, step = iter(range(calls)), time.perf_counter(), max(1, calls // LOOKS)

    async def caller() -> None:
        for number in numbers:
            provider = ("ollama/llama3.2", "gemini/gemini-2.5-flash")[number % 2]
            try:
                await session.achat(f"Hello {number}", route=f"{provider}-{number % MODELS}", max_output_tokens=50)
                outcomes["answered"] += 1
            except LLMError as error:
                outcomes[error.code] += 1
            except Exception as error:  # noqa: BLE001 - this is what is looked for
                foreign[repr(error)[:200]] += 1
            if number % step == 0:
                print(f"{number:7,} calls {time.perf_counter() - began_s:7.1f} s {describe_process()}", flush=True)

    async with asyncio.timeout(LONGEST_S):
        await asyncio.gather(*(caller() for _ in range(CALLERS)))
    print(f"{calls:7,} calls {time.perf_counter() - began_s:7.1f} s {describe_process()}", flush=True)
    return outcomes, foreign


def run(port: int, calls: int, folder: Path) -> bool:
    """Call the server, print the figures and return whether they agree."""
    url, database = f"http://127.0.0.1:{port}", folder / "hostile.db"
    options = {
        "database_url": f"sqlite:///{database}", "cache_dir": folder / "cache", "warm_up": False,
        "ollama_api_base": url, "gemini_api_base": url, "gemini_api_key": "key-for-tests",
        "max_reply_mb": REPLY_LIMIT_MB,
        "default_timeout_s": TIMEOUT_S, "max_retries": 1, "retry_max_wait_s": 0.1, "cooldown_after_failures": 10**6,
        "concurrency_limit": CALLERS,
    }  # fmt: skip
    with Session("hostile", **options) as session:
        outcomes, foreign = asyncio.run(call_all(session, calls))
    print(f" closed                   {describe_process()}")
    with urllib.request.urlopen(f"{url}/figures") as reply:
        figures = json.load(reply)
    connection = sqlite3.connect(database)
    attempts = connection.execute("SELECT count(*) FROM llm_attempts").fetchone()[0]
    late = connection.execute("SELECT count(*) FROM llm_attempts WHERE error_code = 'timeout'").fetchone()[0]
    statuses = dict(connection.execute("SELECT status, count(*) FROM llm_runs GROUP BY status").fetchall())
    connection.close()
    print("faults  ", ", ".join(f"{name} {number:,}" for name, number in Counter(figures["faults"]).most_common()))
    print("outcomes", ", ".join(f"{name} {number:,}" for name, number in outcomes.most_common()))
    print("foreign exceptions", dict(foreign))
    print(
        f"runs {statuses}; the server read {figures['requests']:,} requests and {figures['broken']:,} that broke off, "
        f"llm_attempts has {attempts:,} rows, {late:,} of them ended by the deadline"
    )
    # On a busy machine a deadline may end a request before its bytes reach the server: that has a row too.
    is_complete = figures["requests"] <= attempts <= figures["requests"] + late
    return not foreign and is_complete and "STARTED" not in statuses


def main(calls: int) -> int:
    """Start the server, run, and stop the server."""
    # The faults make libraries warn and log; this prints figures only.
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    command = [sys.executable, "-m", "benchmarks.hostile_run", "serve"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server,
    ):
        assert server.stdout is not None
        agrees = run(int(server.stdout.readline()), calls, Path(folder))
        assert server.stdin is not None
        server.stdin.close()
    print("agree" if agrees else "DO NOT AGREE")
    return 0 if agrees else 1


if __name__ == "__main__":
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve())
    else:
        sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else CALLS))
