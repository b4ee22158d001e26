"""A model client without a network, for tests of what stands above the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from llmkit.errors import LLMError
from llmkit.ports import AttemptLog, BeforeSend, ClientReply, NotSent, allow_sending
from llmkit.types import Attempt, AttemptStatus, LLMRequest, Route, TokenUsage, utc_now

__all__ = ["ScriptedClient", "reply"]

HttpAnswer = ClientReply | LLMError
Script = Callable[[Route, LLMRequest], HttpAnswer]


def reply(text: str = "ok", *, input_tokens: int | None = 3, output_tokens: int | None = 1) -> ClientReply:
    """Return a plain answer that ended by itself."""
    total = None if input_tokens is None or output_tokens is None else input_tokens + output_tokens
    usage = TokenUsage(input_tokens=input_tokens, output_tokens=output_tokens, total_tokens=total)
    return ClientReply(text=text, tool_calls=(), finish_reason="stop", usage=usage, response_model=None)


class ScriptedClient:
    """Answers from a script, after an optional wait.

    Args:
        answers: Answers in order, the last one again and again; or a function of route and request. An `LLMError`
            is raised.
        latency_s: How long each answer takes, in seconds.

    Attributes:
        calls: The requests, in order.
        in_flight: How many calls are under way.
        max_in_flight: The most that ever were.
    """

    def __init__(self, answers: Sequence[HttpAnswer] | Script = (), *, latency_s: float = 0.0) -> None:
        self._answers = answers or (reply(),)
        self._latency_s = latency_s
        self.calls: list[tuple[Route, LLMRequest]] = []
        self.in_flight = 0
        self.max_in_flight = 0

    async def call(
        self, route: Route, request: LLMRequest, log: AttemptLog, before_send: BeforeSend = allow_sending
    ) -> ClientReply | NotSent:
        """Answer from the script; every call is one attempt.

        Raises:
            LLMError: When the script says so.
        """
        not_sent = await before_send()
        if not_sent is not None:
            return not_sent
        self.calls.append((route, request))
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        started = utc_now()
        try:
            await asyncio.sleep(self._latency_s)
            answer = self._next(route, request)
        except asyncio.CancelledError:
            log.add(
                Attempt(
                    route=route,
                    number=log.next_number,
                    status=AttemptStatus.CANCELLED,
                    started_at_utc=started,
                    latency_ms=self._latency_s * 1000,
                )
            )
            raise
        finally:
            self.in_flight -= 1
        log.add(self._attempt(route, log, answer))
        if isinstance(answer, LLMError):
            answer.provider, answer.model = route.provider, route.model
            raise answer
        return answer

    async def close(self) -> None:
        """Nothing to release."""

    def _next(self, route: Route, request: LLMRequest) -> HttpAnswer:
        if callable(self._answers):
            return self._answers(route, request)
        return self._answers[min(len(self.calls), len(self._answers)) - 1]

    def _attempt(self, route: Route, log: AttemptLog, answer: HttpAnswer) -> Attempt:
        failed = isinstance(answer, LLMError)
        return Attempt(
            route=route,
            number=log.next_number,
            status=AttemptStatus.FAILED if failed else AttemptStatus.SUCCEEDED,
            started_at_utc=utc_now(),
            latency_ms=self._latency_s * 1000,
            usage=TokenUsage() if isinstance(answer, LLMError) else answer.usage,
            error_code=answer.code if isinstance(answer, LLMError) else None,
        )
