"""The limits in the client, over real HTTP to servers that bear only so much."""

from __future__ import annotations

import asyncio

import pytest

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMQuotaExhausted, LLMRateLimited, LLMUnavailable
from llmkit.ports import AttemptLog, ClientReply
from llmkit.providers import PROVIDERS
from llmkit.router import LLMRouter
from llmkit.settings import load_settings
from llmkit.testing import Fault, GeminiServer, Load, OllamaServer
from llmkit.transport.limits import Limits
from llmkit.transport.limits.adaptive_concurrency import CHANCE_REFUSALS
from llmkit.types import LLMProvider, LLMRequest, Route, TokenUsage

OLLAMA = Route.parse("ollama/llama3.2")
GEMINI = Route.parse("gemini/gemini-2.5-flash")
HI = LLMRequest(messages="Hi")


async def short_wait(_seconds: float) -> None:
    await asyncio.sleep(0.02)


def client_of(server: OllamaServer | GeminiServer, **settings) -> LiteLLMClient:
    name = "ollama" if isinstance(server, OllamaServer) else "gemini"
    given = {f"{name}_api_base": server.url, "gemini_api_key": "k", "max_retries": 20, **settings}
    return LiteLLMClient(load_settings(**given), sleep=short_wait)


async def ask(client: LiteLLMClient, route: Route, times: int) -> None:
    calls = (client.call(route, LLMRequest(messages=f"Hi {number}"), AttemptLog()) for number in range(times))
    await asyncio.gather(*calls)


async def test_limit_approaches_the_capacity():
    """A server with a queue soon gets about as many requests as it handles at once."""
    with OllamaServer("A loss.", load=Load(latency_s=0.05, capacity=4)) as server:
        client = client_of(server, concurrency_limit=24)
        await client.preload()
        for _ in range(20):
            server.clear()
            await ask(client, OLLAMA, 50)
            assert server.call_count == 50
            if 4 <= server.max_in_flight <= 16:
                break
        else:
            pytest.fail(f"still {server.max_in_flight} at once for a server that does 4")
        await client.close()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "route", "status"), [(OllamaServer, OLLAMA, 503), (GeminiServer, GEMINI, 429)])
async def test_refusing_server_serves_everything(kind, route, status):
    """After a refusal few others follow."""
    load = Load(latency_s=0.05, capacity=4, max_queue=0, overload_status=status)
    with kind("A loss.", load=load) as server:
        client = client_of(server, concurrency_limit=12)
        await ask(client, route, 60)
        server.clear()
        await ask(client, route, 60)
        assert server.call_count - 60 <= 20
        await client.close()


@pytest.mark.slow
async def test_without_adaptation_the_number_is_fixed():
    with OllamaServer("A loss.", load=Load(latency_s=0.02, capacity=1)) as server:
        client = client_of(server, concurrency_limit=6, adaptive_concurrency=False)
        await ask(client, OLLAMA, 60)
        assert server.max_in_flight == 6
        server.clear()
        await ask(client, OLLAMA, 30)
        assert server.max_in_flight == 6
        await client.close()


async def test_a_used_up_day_is_asked_for_once_and_refused_from_then_on():
    with GeminiServer(Fault.daily_quota()) as server:
        client = client_of(server, concurrency_limit=1)
        calls = [asyncio.create_task(client.call(GEMINI, HI, AttemptLog())) for _ in range(10)]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(error) for error in errors} == {LLMQuotaExhausted}
        assert server.call_count == 1
        assert "nothing was sent" not in str(errors[0])
        assert all("UTC; nothing was sent" in str(error) for error in errors[1:])
        assert all(0 < error.retry_after_s <= 25 * 3600 for error in errors)
        server.script("A loss.")
        other = Route.parse("gemini/gemini-2.5-pro")
        assert (await client.call(other, HI, AttemptLog())).text == "A loss."
        await client.close()


async def test_a_bill_that_is_not_paid_parks_nothing():
    with GeminiServer(Fault.status(402)) as server:
        client = client_of(server)
        for _ in range(2):
            with pytest.raises(LLMQuotaExhausted):
                await client.call(GEMINI, HI, AttemptLog())
        assert server.call_count == 2
        await client.close()


async def test_the_router_passes_over_a_route_whose_day_is_used_up():
    with GeminiServer(Fault.daily_quota()) as gemini, OllamaServer("A loss.") as ollama:
        client = client_of(gemini, ollama_api_base=ollama.url, router_policy="prefer_cloud")
        router = LLMRouter(client._settings, client)
        with pytest.raises(LLMQuotaExhausted):
            await router.execute(HI)
        routed = await router.execute(HI)
        assert routed.route == OLLAMA
        assert gemini.call_count == 1
        (passed_over,) = [entry for entry in routed.plan.entries if entry.route == GEMINI]
        assert passed_over.excluded_because.startswith("its quota is used up until 20")
        with pytest.raises(LLMQuotaExhausted, match=r"used up until .* UTC; nothing was sent"):
            await router.execute(LLMRequest(messages="Hi", route=GEMINI))
        assert gemini.call_count == 1
        await client.close()


# -- per minute, without a server ------------------------------------------------------------------


def limits(**settings) -> Limits:
    return Limits(load_settings(**settings), PROVIDERS)


async def send(subject: Limits, route: Route, sent: list[LLMRequest], tokens: int = 10) -> None:
    async def work() -> ClientReply:
        sent.append(HI)
        return ClientReply("fine", (), "stop", TokenUsage(input_tokens=tokens, total_tokens=tokens), None)

    log = AttemptLog()
    async with subject.place(route, HI, log) as place:
        await place.send(work)


async def test_no_more_requests_leave_in_a_minute_than_allowed():
    subject, sent = limits(ollama_requests_per_minute=5), []
    calls = [asyncio.create_task(send(subject, OLLAMA, sent)) for _ in range(15)]
    await asyncio.wait(calls, timeout=0.05)
    assert len(sent) == 5
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


async def test_minute_limits_are_per_provider():
    subject, sent = limits(gemini_requests_per_minute=1, concurrency_limit=2), []
    await send(subject, GEMINI, sent)
    waiting = [asyncio.create_task(send(subject, GEMINI, sent)) for _ in range(5)]
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await asyncio.gather(*(send(subject, OLLAMA, sent) for _ in range(5)))
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert len(sent) == 6


async def test_tokens_count_as_they_turned_out():
    subject, sent = limits(gemini_tokens_per_minute=100, concurrency_limit=1), []
    async with asyncio.timeout(60):
        for _ in range(5):
            await send(subject, GEMINI, sent, tokens=20)
    waiting = asyncio.create_task(send(subject, GEMINI, sent, tokens=20))
    await asyncio.wait({waiting}, timeout=0.05)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_a_cancelled_call_gives_everything_back():
    subject, sent = limits(ollama_requests_per_minute=1000, concurrency_limit=2), []
    for step in range(30):
        tasks = [asyncio.create_task(send(subject, OLLAMA, sent)) for _ in range(6)]
        for _ in range(step % 6):
            await asyncio.sleep(0)
        for task in tasks[:: 1 + step % 2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    provider = subject._providers[LLMProvider.OLLAMA]
    assert (provider.semaphore.inside, subject._all.inside) == (0, 0)
    async with asyncio.timeout(60):
        await send(subject, OLLAMA, sent)


async def test_waiting_retry_frees_the_overall_limit():
    """Its place is used by another provider."""
    with GeminiServer(Fault.status(429)) as gemini, OllamaServer("A loss.") as ollama:
        settings = load_settings(
            gemini_api_base=gemini.url,
            gemini_api_key="k",
            ollama_api_base=ollama.url,
            concurrency_limit=1,
            max_retries=1,
        )
        waiting, go = asyncio.Event(), asyncio.Event()

        async def wait(_seconds: float) -> None:
            waiting.set()
            await go.wait()

        client = LiteLLMClient(settings, sleep=wait)
        struggling = asyncio.create_task(client.call(GEMINI, HI, AttemptLog()))
        await waiting.wait()
        async with asyncio.timeout(30):
            assert (await client.call(OLLAMA, HI, AttemptLog())).text == "A loss."
        go.set()
        with pytest.raises(LLMRateLimited):
            await struggling
        await client.close()


async def test_waiting_retry_blocks_no_other_call():
    subject, others_are_done = limits(concurrency_limit=1), asyncio.Event()

    async def answer() -> ClientReply:
        return ClientReply("fine", (), "stop", TokenUsage(), None)

    async def fail() -> ClientReply:
        raise LLMUnavailable("broken off")

    async def call() -> None:
        async with subject.place(OLLAMA, HI, AttemptLog()) as place:
            await place.send(answer)

    async def failing() -> None:
        async with subject.place(OLLAMA, HI, AttemptLog()) as place:
            with pytest.raises(LLMUnavailable):
                await place.send(fail)
            await others_are_done.wait()
            await place.send(answer)

    await call()
    first = asyncio.create_task(failing())
    async with asyncio.timeout(60):
        await asyncio.gather(*(call() for _ in range(3)))
        others_are_done.set()
        await first


async def test_refused_call_is_next_in_line():
    """It gives its place up, and is the next to get one."""
    subject, order = limits(concurrency_limit=2), []
    refused, go_on = asyncio.Event(), asyncio.Event()

    async def call(name: str) -> None:
        async with subject.place(OLLAMA, HI, AttemptLog()) as place:
            if name == "refused":
                with pytest.raises(LLMRateLimited):
                    await place.send(refuse)
                refused.set()
                await asyncio.sleep(0)
            elif name == "long":
                await go_on.wait()

            async def work() -> ClientReply:
                order.append(name)
                return ClientReply("fine", (), "stop", TokenUsage(), None)

            await place.send(work)

    async def refuse() -> ClientReply:
        raise LLMRateLimited("one too many", status_code=429)

    for _ in range(CHANCE_REFUSALS):
        async with subject.place(OLLAMA, HI, AttemptLog()) as place:
            with pytest.raises(LLMRateLimited):
                await place.send(refuse)
    tasks = [asyncio.create_task(call(name)) for name in ("long", "refused", "third", "fourth")]
    await refused.wait()
    assert subject.concurrency(LLMProvider.OLLAMA) == 1
    go_on.set()
    async with asyncio.timeout(60):
        await asyncio.gather(*tasks)
    assert order == ["long", "refused", "third", "fourth"]
