"""The cost of `LLMService.chat`: answers from the store and the cache, and the overhead on a call that is sent.

    python benchmarks/service.py

Compared in the same run with a keyed SELECT alone, and with what people write themselves, diskcache alone: neither
checks a contract, validates an answer or records that it was served. (litellm's own disk cache cannot be measured: on
a hit it imports fastapi, which it does not bring.) Figures are medians of several rounds; read the ratios.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import diskcache

from llmkit.persistence.content_cache import DiskContentCache
from llmkit.persistence.journal import Journal, JournalLLMRunRepo
from llmkit.persistence.migrate import upgrade
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.testing.scripted_client import ScriptedClient, reply
from llmkit.types import LLMRequest, RequestContext

CONTEXT = RequestContext(workspace_id="bench", pipeline_run_id="bench", stage="bench")
PROMPT = "Read the complaint and name the product. " * 8
ANSWER = '{"product": "kettle", "severity": "high"}' * 3
CALLS = 3000
ROUNDS = 5
CALLERS = (1, 64)

Work = Callable[[int], Awaitable[object]]


def request(number: int, *, keyed: bool, cached: bool) -> LLMRequest:
    """Make one of many different requests."""
    return LLMRequest(
        messages=f"{PROMPT} {number}",
        route="ollama/llama3.2",
        temperature=0,
        idempotency_key=f"key-{number}" if keyed else None,
        use_cache=cached,
    )


async def per_second(work: Work, callers: int, calls: int = CALLS) -> tuple[float, float]:
    """Measure calls per second of wall time, and CPU milliseconds of the process per call."""
    numbers = iter(range(calls))

    async def caller() -> None:
        for number in numbers:
            await work(number)

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return calls / (time.perf_counter() - wall), (time.process_time() - cpu) / calls * 1000


async def measure(name: str, work: Work, *, rounds: int = ROUNDS, callers: tuple[int, ...] = CALLERS) -> float:
    """Print a row for each number of callers, and return the best rate."""
    best = 0.0
    for count in callers:
        figures = [await per_second(work, count) for _ in range(rounds)]
        rate, cpu_ms = (statistics.median(column) for column in zip(*figures, strict=True))
        print(f"{name:44} {count:3} callers {rate:10,.0f} /s {cpu_ms:8.3f} ms CPU")
        best = max(best, rate)
    return best


async def read_stored_answers(service: LLMService, database: Path) -> None:
    """Measure replays and cache hits against a bare SELECT and diskcache alone."""
    for number in range(CALLS):
        await service.chat(request(number, keyed=True, cached=True), CONTEXT)
    connection = sqlite3.connect(database)
    query = (
        "SELECT result_json FROM llm_runs WHERE workspace_id = 'bench' AND idempotency_key = ? "
        "AND status IN ('STARTED', 'SUCCEEDED')"
    )

    async def select(number: int) -> object:
        return connection.execute(query, (f"key-{number}",)).fetchone()

    bare = await measure("a keyed SELECT alone", select, callers=(1,))
    replays = [request(number, keyed=True, cached=True) for number in range(CALLS)]
    hits = [request(number, keyed=False, cached=True) for number in range(CALLS)]
    replay = await measure("replay by idempotency key", lambda number: service.chat(replays[number], CONTEXT))
    hit = await measure("content cache hit", lambda number: service.chat(hits[number], CONTEXT))
    peer = await measure("diskcache alone, a dict by hash", diskcache_hit(database.parent), callers=(1,))
    print(f"replay: {replay / bare:.2f} of the SELECT alone; cache hit: {hit / peer:.2f} of diskcache alone")


def diskcache_hit(folder: Path) -> Work:
    """Cache answers as people write it themselves: a dict in diskcache under a hash of the request."""
    cache = diskcache.Cache(str(folder / "plain"))
    keys = [hashlib.sha256(f"{PROMPT} {number}".encode()).hexdigest() for number in range(CALLS)]
    for key in keys:
        cache.set(key, {"text": ANSWER, "usage": {"input_tokens": 3, "output_tokens": 1}})

    async def hit(number: int) -> object:
        messages = json.dumps([{"role": "user", "content": f"{PROMPT} {number}"}], sort_keys=True)
        hashlib.sha256(messages.encode()).hexdigest()
        return cache.get(keys[number])

    return hit


async def overhead(journal: Journal) -> None:
    """Measure the service's own CPU on calls that are sent: checks, hash, journal, router, telemetry."""
    settings = load_settings(cooldown_after_failures=10**6)
    client = ScriptedClient([reply(ANSWER)])
    service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=JournalLLMRunRepo(journal))
    for keyed in (False, True):
        serial = iter(range(10**9))

        async def call(_: int, keyed: bool = keyed, serial: object = serial) -> object:
            return await service.chat(request(next(serial) + 10**6, keyed=keyed, cached=False), CONTEXT)

        await measure(f"a whole call, not sent{', with key' if keyed else ''}", call)


async def main() -> None:
    """Measure everything, on a new database and cache."""
    folder = Path(tempfile.mkdtemp())
    url = f"sqlite:///{folder}/bench.db"
    upgrade(url)
    settings, journal = load_settings(), Journal(url)
    cache = DiskContentCache(folder / "cache", ttl_s=3600, size_limit_bytes=10**9)
    router = LLMRouter(settings, ScriptedClient([reply(ANSWER)]))
    service = LLMService(router=router, settings=settings, runs=JournalLLMRunRepo(journal), cache=cache)
    await read_stored_answers(service, folder / "bench.db")
    await overhead(journal)
    journal.close()
    cache.close()


if __name__ == "__main__":
    asyncio.run(main())
