"""The cost of the adaptive limit against the best number that a person could have set by hand.

    python benchmarks/limits.py

Servers differ in capacity and latency; some refuse what does not fit into their queue. For
each, calls a second under a sweep of fixed numbers and under the adaptive one, all from a new client. Read the last
column, the adaptive rate over the best fixed one. The goal is 0.90.
"""

from __future__ import annotations

import asyncio
import statistics
import time

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMError
from llmkit.ports import AttemptLog
from llmkit.settings import load_settings
from llmkit.testing import GeminiServer, Load, OllamaServer, StandInServer
from llmkit.types import LLMProvider, LLMRequest, Route

ROUTES = {
    LLMProvider.OLLAMA: Route.parse("ollama/llama3.2"),
    LLMProvider.GEMINI: Route.parse("gemini/gemini-2.5-flash"),
}
# Long, as a model's is: else it is this process that is measured, which is busy for several ms a call.
LATENCY_S = 1.0
# As parts of what the server does at once.
FIXED = (0.5, 1, 1.5, 2, 4)
CEILING = 32
SECONDS_AT_BEST = 20.0
ROUNDS = 1
SERVERS = {
    "Ollama, 2 at once, long queue": (OllamaServer, Load(latency_s=LATENCY_S, capacity=2)),
    "Ollama, 8 at once, long queue": (OllamaServer, Load(latency_s=LATENCY_S, capacity=8)),
    "Ollama, 4 at once, queue of 4": (OllamaServer, Load(latency_s=LATENCY_S, capacity=4, max_queue=4)),
    "Gemini, 8 at once, then 429": (
        GeminiServer,
        Load(latency_s=LATENCY_S, capacity=8, max_queue=0, overload_status=429),
    ),
}


async def rate(server: StandInServer, limit: int, calls: int, *, adaptive: bool) -> tuple[float, int, int]:
    """Measure answers a second through a new client, refusals, and calls that failed in the end."""
    provider = LLMProvider.OLLAMA if isinstance(server, OllamaServer) else LLMProvider.GEMINI
    given = {f"{provider}_api_base": server.url, "gemini_api_key": "k", "max_retries": 10}
    settings = load_settings(concurrency_limit=limit, adaptive_concurrency=adaptive, **given)
    client, failed = LiteLLMClient(settings), 0
    await client.preload()
    server.clear()

    async def call(number: int) -> None:
        nonlocal failed
        try:
            await client.call(ROUTES[provider], LLMRequest(messages=f"Hi {number}"), AttemptLog())
        except LLMError:
            failed += 1

    began = time.perf_counter()
    await asyncio.gather(*(call(number) for number in range(calls)))
    seconds = time.perf_counter() - began
    await client.close()
    return (calls - failed) / seconds, server.call_count - (calls - failed), failed


async def main() -> None:
    """Measure every server under every limit."""
    for name, (kind, load) in SERVERS.items():
        calls = int(SECONDS_AT_BEST * (load.capacity or 1) / LATENCY_S)
        with kind("A loss of customers.", load=load) as server:
            best = 0.0
            fixed = [(max(1, int(part * (load.capacity or 1))), False) for part in FIXED]
            for limit, adaptive in [*fixed, (CEILING, True)]:
                runs = [await rate(server, limit, calls, adaptive=adaptive) for _ in range(ROUNDS)]
                median, refused, failed = (statistics.median(column) for column in zip(*runs, strict=True))
                label = "adaptive" if adaptive else f"{limit:8}"
                share = f"  {median / best:.2f} of the best fixed" if adaptive else ""
                print(
                    f"{name:32} {label} {median:7.1f} /s  {refused:4.0f} refused {failed:3.0f} failed{share}",
                    flush=True,
                )
                best = best if adaptive else max(best, median)


if __name__ == "__main__":
    asyncio.run(main())
