"""The cost of a call through the client, against stock `litellm.acompletion` on the same stand-in server.

    python benchmarks/client.py [--part client router] [--calls N] [--rounds N] [--callers N ...] [--latency-ms N ...]

The servers run in a process of their own, so CPU is that of the calling side alone: `process_time` over everything
between two calls, threads included. Rounds of the contestants take turns, and figures are medians; read the ratios.
Stock means `acompletion` as its documentation has it, with its own transport and its default callbacks; what would
make it talk to other servers or print is switched off. For OpenAI its official client takes part too.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from llmkit.client_litellm import LiteLLMClient
from llmkit.ports import AttemptLog
from llmkit.router import LLMRouter
from llmkit.settings import load_settings, prepare_litellm_environment
from llmkit.testing.gemini import GeminiServer
from llmkit.testing.ollama import OllamaServer
from llmkit.testing.openai import OpenAIServer
from llmkit.testing.scripted_client import ScriptedClient, reply
from llmkit.testing.server_load import Load
from llmkit.types import LLMRequest, Route

PROMPT = "Read the complaint and name the product. " * 8
ANSWER = '{"product": "kettle", "severity": "high"}'
KEY = "a-key-of-no-use"
# Both are in LiteLLM's list of models: about one that is not it asks Ollama before every call.
MODELS = {"ollama": "llama3.1", "gemini": "gemini-2.5-flash", "openai": "gpt-4o-mini"}
CALLERS = (1, 16, 64, 256)
LATENCIES_S = (0.0, 0.05)
TARGETS = {"ollama": 4.0, "gemini": 2.0, "openai": 4.0}
# Of the CPU of stock LiteLLM.
CPU_SHARES = {"ollama": 0.25, "gemini": 0.25, "openai": 1 / 6}
OFFICIAL_SHARE = 0.5

Call = Callable[[int], Awaitable[Any]]


def serve(latency_s: float, addresses: Any, stop: Any) -> None:
    """Run both stand-ins until the stop event."""
    load = Load(latency_s=latency_s)
    with (
        OllamaServer(ANSWER, models=[MODELS["ollama"]], load=load, keep_requests=0) as ollama,
        GeminiServer(ANSWER, load=load, keep_requests=0) as gemini,
        OpenAIServer(ANSWER, models=[MODELS["openai"]], load=load, keep_requests=0) as openai,
    ):
        addresses.send({"ollama": ollama.url, "gemini": gemini.url, "openai": openai.api_base})
        stop.wait()


async def through_client(path: str, provider: str, url: str) -> tuple[Call, Callable[[], Awaitable[None]]]:
    """Make our client on one path, warmed up."""
    base = {f"{provider}_api_base": url, "gemini_api_key": KEY, "openai_api_key": KEY}
    client = LiteLLMClient(load_settings(request_path=path, concurrency_limit=max(CALLERS), max_retries=0, **base))
    await client.preload()
    route = Route.parse(f"{provider}/{MODELS[provider]}")

    async def call(number: int) -> object:
        request = LLMRequest(messages=f"{PROMPT} {number}", temperature=0, max_output_tokens=100)
        return await client.call(route, request, AttemptLog())

    return call, client.close


async def stock(provider: str, url: str) -> tuple[Call, Callable[[], Awaitable[None]]]:
    """Make calls of `litellm.acompletion` itself."""
    prepare_litellm_environment()
    import litellm

    litellm.suppress_debug_info = True
    model = f"{'ollama_chat' if provider == 'ollama' else provider}/{MODELS[provider]}"
    base = f"{url}/v1beta" if provider == "gemini" else url

    async def call(number: int) -> object:
        messages = [{"role": "user", "content": f"{PROMPT} {number}"}]
        return await litellm.acompletion(
            model=model, messages=messages, api_base=base, api_key=KEY, temperature=0, max_tokens=100
        )

    return call, nothing_to_close


async def official(url: str) -> tuple[Call, Callable[[], Awaitable[None]]]:
    """Make the same calls with OpenAI's own client."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(api_key=KEY, base_url=url, max_retries=0)

    async def call(number: int) -> object:
        messages: Any = [{"role": "user", "content": f"{PROMPT} {number}"}]
        return await client.chat.completions.create(
            model=MODELS["openai"], messages=messages, temperature=0, max_tokens=100
        )

    return call, client.close


async def bare(provider: str, url: str) -> tuple[Call, Callable[[], Awaitable[None]]]:
    """Send the same request with aiohttp alone: the floor for every client."""
    session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
    gemini = f"/v1beta/models/{MODELS['gemini']}:generateContent"
    path = {"ollama": "/api/chat", "openai": "/chat/completions"}.get(provider, gemini)
    headers = {"x-goog-api-key": KEY, "Authorization": f"Bearer {KEY}"}

    async def call(number: int) -> object:
        said = f"{PROMPT} {number}"
        body: dict[str, Any] = {"contents": [{"role": "user", "parts": [{"text": said}]}]}
        if provider != "gemini":
            body = {"model": MODELS[provider], "stream": False, "messages": [{"role": "user", "content": said}]}
        async with session.post(url + path, json=body, headers=headers) as answer:
            return await answer.json()

    return call, session.close


async def nothing_to_close() -> None: ...


async def per_second(call: Call, callers: int, calls: int) -> tuple[float, float]:
    """Measure calls per second of wall time, and CPU milliseconds per call."""
    numbers = iter(range(calls))

    async def caller() -> None:
        for number in numbers:
            await call(number)

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller() for _ in range(callers)))
    rate = calls / (time.perf_counter() - wall)
    # Stock calls leave logging behind, in tasks and threads.
    await asyncio.sleep(0.1)
    return rate, (time.process_time() - cpu) / calls * 1000


async def compare(provider: str, url: str, latency_s: float, asked: argparse.Namespace) -> None:
    """Measure every number of callers and every contestant, in turns."""
    made = {
        "bare aiohttp": await bare(provider, url),
        "llmkit": await through_client("fast", provider, url),
        "llmkit, reference path": await through_client("reference", provider, url),
        "stock acompletion": await stock(provider, url),
    }
    if provider == "openai":
        made["official client"] = await official(url)
    for callers in asked.callers:
        calls = max(2 * callers, asked.calls if latency_s == 0 or callers > 1 else asked.calls // 5)
        figures: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
        for call, _ in made.values():
            await per_second(call, callers, callers)  # opens the connections
        for _ in range(asked.rounds):
            for name, (call, _) in made.items():
                figures[name].append(await per_second(call, callers, calls))
        show(provider, callers, latency_s, {name: medians(rows) for name, rows in figures.items()})
    for _, close in made.values():
        await close()


def medians(rows: list[tuple[float, float]]) -> tuple[float, float]:
    """Compute the ratios of rate and CPU."""
    rate, cpu_ms = (statistics.median(column) for column in zip(*rows, strict=True))
    return rate, cpu_ms


def show(provider: str, callers: int, latency_s: float, figures: dict[str, tuple[float, float]]) -> None:
    """Print a row for each contestant, and the ratio of llmkit to stock LiteLLM."""
    print(f"\n{provider}, {callers} concurrent, {latency_s * 1000:.0f} ms latency")
    for name, (rate, cpu_ms) in figures.items():
        print(f"  {name:24} {rate:8,.0f} calls/s {cpu_ms:8.3f} ms CPU a call")
    ours, theirs = figures["llmkit"], figures["stock acompletion"]
    print(
        f"  llmkit to stock: {ours[1] / theirs[1]:.2f} of the CPU, {ours[0] / theirs[0]:.1f} times the calls a second"
    )
    if "official client" in figures:
        print(f"  llmkit to the official client: {ours[1] / figures['official client'][1]:.2f} of the CPU")
    if (callers, latency_s) == (64, LATENCIES_S[-1]):
        goal = (
            f"at most {CPU_SHARES[provider]:.2f} of the CPU, at least {TARGETS[provider]:.0f} times the calls a second"
        )
        print(f"  goals: {goal}{f', {OFFICIAL_SHARE} of the official client' if provider == 'openai' else ''}")


async def router(calls: int = 20_000) -> None:
    """Measure what the router adds to a call, against the same scripted client alone."""
    settings, request = load_settings(cooldown_after_failures=10**6), LLMRequest(messages=PROMPT, temperature=0)
    route, figures = Route.parse("ollama/llama3.2"), []
    for _ in range(5):
        client = ScriptedClient([reply(ANSWER)])
        routed = LLMRouter(settings, client)
        alone = await per_second(lambda _, c=client: c.call(route, request, AttemptLog()), 1, calls)
        both = await per_second(lambda _, r=routed: r.execute(request), 1, calls)
        figures.append(both[1] - alone[1])
    print(f"\nrouter: {statistics.median(figures):.4f} ms CPU a call (goal: at most 0.05)")


def measure(latency_s: float, asked: argparse.Namespace) -> None:
    """Measure both providers at one latency, with servers of their own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    stop = context.Event()
    servers = context.Process(target=serve, args=(latency_s, there, stop), daemon=True)
    servers.start()
    there.close()  # so that a server that dies is noticed
    try:
        for provider, url in here.recv().items():
            if provider in asked.provider:
                asyncio.run(compare(provider, url, latency_s, asked))
    finally:
        stop.set()
        servers.join()


def main() -> None:
    """Measure everything, in one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", default=["client", "router"], choices=["client", "router"])
    parser.add_argument("--calls", type=int, default=200, help="calls in a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each contestant")
    parser.add_argument("--provider", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--callers", nargs="+", type=int, default=list(CALLERS), help="how many at once")
    parser.add_argument("--latency-ms", nargs="+", type=float, default=[1000 * one for one in LATENCIES_S])
    asked = parser.parse_args()
    for latency_ms in asked.latency_ms if "client" in asked.part else ():
        measure(latency_ms / 1000, asked)
    if "router" in asked.part:
        asyncio.run(router())


if __name__ == "__main__":
    main()
