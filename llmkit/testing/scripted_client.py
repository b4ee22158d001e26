"""A model client without a network, for tests of what stands above the client."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

from llmkit.errors import LLMError
from llmkit.ports import AnswerSink, AttemptLog, BeforeSend, ClientReply, NotSent, StreamPiece, allow_sending
from llmkit.types import Attempt, AttemptStatus, LLMRequest, Route, TokenUsage, utc_now

__all__ = ["ScriptedClient", "ScriptedStream", "reply"]

HttpAnswer = ClientReply | LLMError


@dataclass(frozen=True, slots=True)
class ScriptedStream:
    """An answer that arrives in pieces, as far as the caller streams.

    Attributes:
        pieces: In order, each put by itself; a string is a piece of text.
        end: The whole answer; None for a reply of the pieces' text. An `LLMError` breaks the stream after the pieces.
        gap_s: The wait before each piece, in seconds.
        usage: Tokens that are known when the stream breaks.
    """

    pieces: Sequence[StreamPiece | str]
    end: HttpAnswer | None = None
    gap_s: float = 0.0
    usage: TokenUsage = field(default_factory=TokenUsage)

    def read_pieces(self) -> Iterator[StreamPiece]:
        """Yield the pieces."""
        for piece in self.pieces:
            yield StreamPiece("text", piece) if isinstance(piece, str) else piece

    def read_end(self) -> HttpAnswer:
        """Return the whole answer, or the error that breaks it."""
        if self.end is not None:
            return self.end
        return reply("".join(piece.text for piece in self.read_pieces() if piece.kind == "text"))


ScriptedAnswer = HttpAnswer | ScriptedStream
Script = Callable[[Route, LLMRequest], ScriptedAnswer]


def reply(text: str = "ok", *, input_tokens: int | None = 3, output_tokens: int | None = 1) -> ClientReply:
    """Return a plain answer that ended by itself."""
    total = None if input_tokens is None or output_tokens is None else input_tokens + output_tokens
    usage = TokenUsage(input_tokens=input_tokens, output_tokens=output_tokens, total_tokens=total)
    return ClientReply(text=text, tool_calls=(), finish_reason="stop", usage=usage, response_model=None)


class ScriptedClient:
    """Answers from a script, after an optional wait.

    Args:
        answers: Answers in order, the last one again and again; or a function of route and request. An `LLMError`
            is raised, a `ScriptedStream` arrives in pieces.
        latency_s: How long each answer takes, in seconds.

    Attributes:
        calls: The requests, in order.
        in_flight: How many calls are under way.
        max_in_flight: The most that ever were.
    """

    def __init__(self, answers: Sequence[ScriptedAnswer] | Script = (), *, latency_s: float = 0.0) -> None:
        self._answers = answers or (reply(),)
        self._latency_s = latency_s
        self.calls: list[tuple[Route, LLMRequest]] = []
        self.in_flight = 0
        self.max_in_flight = 0

    async def call(
        self,
        route: Route,
        request: LLMRequest,
        log: AttemptLog,
        before_send: BeforeSend = allow_sending,
        *,
        sink: AnswerSink | None = None,
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
        attempt = partial(
            Attempt,
            route=route,
            number=log.next_number,
            started_at_utc=utc_now(),
            latency_ms=self._latency_s * 1000,
        )
        began_s = perf_counter()
        try:
            await asyncio.sleep(self._latency_s)
            scripted = self._next(route, request)
            stream = scripted if isinstance(scripted, ScriptedStream) else ScriptedStream((), scripted)
            for piece in stream.read_pieces():
                if sink is None:
                    break
                await asyncio.sleep(stream.gap_s)
                attempt.keywords.setdefault("first_token_ms", (perf_counter() - began_s) * 1000)
                await sink.put((piece,))
        except asyncio.CancelledError:
            log.add(attempt(status=AttemptStatus.CANCELLED))
            raise
        finally:
            self.in_flight -= 1
        answer = stream.read_end()
        if isinstance(answer, LLMError):
            log.add(attempt(status=AttemptStatus.FAILED, usage=stream.usage, error_code=answer.code))
            answer.provider, answer.model = route.provider, route.model
            raise answer
        log.add(attempt(status=AttemptStatus.SUCCEEDED, usage=answer.usage))
        return answer

    async def close(self) -> None:
        """Do nothing: there is nothing to release."""

    def _next(self, route: Route, request: LLMRequest) -> ScriptedAnswer:
        if callable(self._answers):
            return self._answers(route, request)
        return self._answers[min(len(self.calls), len(self._answers)) - 1]
