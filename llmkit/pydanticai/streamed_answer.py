"""Answers as Pydantic AI streams them: a call that is read while it runs, and its pieces as Pydantic AI's events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pydantic_ai.messages import ModelResponseStreamEvent, TextPart, ToolCallPart
from pydantic_ai.models import ModelRequestParameters, StreamedResponse

from llmkit.batch.task_guard import cancel_task
from llmkit.ports import AnswerSink, StreamPiece
from llmkit.pydanticai.messages import as_model_response
from llmkit.types import LLMResponse, utc_now

__all__ = ["LlmkitStreamedResponse", "RunningAnswer"]

# Names of the parts that grow, beside the numbers of the tool calls.
_TEXT, _THINKING = "text", "thinking"


class RunningAnswer:
    """A call in a task of its own, read in the event loop that makes this object.

    Args:
        parameters: Tools and output of the request.
        send: Makes the call with this object, which may run in another event loop.

    Attributes:
        sink: Where the call puts the pieces of its answer.
        parameters: Those of the request that is answered; the call replaces them when it chooses an output mode.
        response: The answer, once it has been read to its end.
    """

    def __init__(
        self,
        parameters: ModelRequestParameters,
        send: Callable[[RunningAnswer], Coroutine[None, None, LLMResponse]],
    ) -> None:
        self.sink = AnswerSink(self._forward)
        self.parameters = parameters
        self.response: LLMResponse | None = None
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Sequence[StreamPiece] | None] = asyncio.Queue()
        self._first: Sequence[StreamPiece] | None = None
        self._task = self._loop.create_task(send(self))
        self._task.add_done_callback(self._note_end)

    async def wait_for_first_piece(self) -> None:
        """Wait until the answer begins, or is there.

        Raises:
            Exception: What the call raised before.
        """
        self._first = await self._queue.get()
        if self._first is None:
            self.response = await self._task

    async def read(self) -> AsyncIterator[Sequence[StreamPiece]]:
        """Return the pieces as they arrive. Ends early, and quietly, when the call is cancelled.

        Raises:
            Exception: What the call raised.
        """
        pieces = self._first
        while pieces is not None:
            yield pieces
            pieces = await self._queue.get()
        if not self._task.cancelled():
            self.response = await self._task

    async def cancel(self) -> None:
        """Cancel the call, and wait until it is recorded. Does nothing after its end."""
        cancel_task(self._task)
        await asyncio.wait((self._task,))

    async def _forward(self, pieces: Sequence[StreamPiece]) -> None:
        # Kept, and not waited for: a reader may pause, or make another call before it reads on. Until this call ends it
        # has a place under the limits, and equal calls wait for it: the two would wait for each other for ever.
        if asyncio.get_running_loop() is self._loop:
            self._queue.put_nowait(pieces)
        else:
            self._loop.call_soon_threadsafe(self._queue.put_nowait, pieces)

    def _note_end(self, task: asyncio.Task[LLMResponse]) -> None:
        if not task.cancelled():
            task.exception()  # without this, asyncio reports an error of a call whose reader has left
        self._queue.put_nowait(None)


@dataclass
class LlmkitStreamedResponse(StreamedResponse):
    """The events of one answer. At its end it is what `request` returns, with the model's thinking if that was shown.

    Args:
        answer: The call.
        requested_model: The name to use until the answer names its model.
    """

    answer: RunningAnswer = field(kw_only=True)
    requested_model: str = field(kw_only=True)
    _usage_received: bool | None = field(default=False, init=False)
    _timestamp: datetime = field(default_factory=utc_now, init=False)
    # Of a text: white space that no other text follows is no answer, and must not look like the beginning of one.
    _leading: str = field(default="", init=False)

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        async for pieces in self.answer.read():
            for piece in pieces:
                for event in self._add_piece(piece):
                    yield event
        if self.answer.response is not None:
            for event in self._add_response(self.answer.response):
                yield event

    def _add_piece(self, piece: StreamPiece) -> Iterator[ModelResponseStreamEvent]:
        manager = self._parts_manager
        if piece.kind == "thinking":
            return manager.handle_thinking_delta(vendor_part_id=_THINKING, content=piece.text)
        if piece.kind == "text":
            text, self._leading = self._leading + piece.text, ""
            if not text.isspace() or manager.get_part_by_vendor_id(_TEXT) is not None:
                return manager.handle_text_delta(vendor_part_id=_TEXT, content=text)
            self._leading = text
            return iter(())
        if manager.get_part_by_vendor_id(piece.tool_index) is None and not (piece.tool_id and piece.tool_name):
            # The id is known with the whole answer only. Until then no event may name the call by another one.
            return iter(())
        return manager.handle_tool_call_delta_events(
            vendor_part_id=piece.tool_index,
            tool_name=piece.tool_name or None,
            args=piece.text,
            tool_call_id=piece.tool_id or None,
        )

    def _add_response(self, response: LLMResponse) -> Iterator[ModelResponseStreamEvent]:
        """Take over everything that only the whole answer has."""
        whole = as_model_response(response)
        self.finish_reason = whole.finish_reason
        self.provider_response_id = whole.provider_response_id
        self.provider_details = whole.provider_details
        self._add_usage(whole.usage, reported=not whole.usage.unmeasured_requests, cumulative=True)
        text = [(_TEXT, TextPart(response.text))] if response.text.strip() else []
        calls = [part for part in whole.parts if isinstance(part, ToolCallPart)]
        for name, part in [*text, *enumerate(calls)]:
            known = self._parts_manager.get_part_by_vendor_id(name)
            if known == part:
                continue
            event = self._parts_manager.handle_part(vendor_part_id=name, part=part)
            # What the reader has seen already differs in its form at most: white space in JSON, or half a character
            # that was replaced.
            if known is None:
                yield event

    async def close_stream(self) -> None:
        """Close the connection to the server."""
        await self.answer.cancel()

    def get_stream_cancel_errors(self) -> tuple[type[BaseException], ...]:
        """Return what closing the connection may raise."""
        import aiohttp

        return (*super().get_stream_cancel_errors(), aiohttp.ClientError)

    @property
    def model_name(self) -> str:
        """The model that answers, as far as it is known."""
        response = self.answer.response
        return self.requested_model if response is None else response.response_model or response.route.model

    @property
    def provider_name(self) -> str | None:
        """The endpoint, when the answer is there."""
        response = self.answer.response
        return None if response is None else str(response.route.provider)

    @property
    def provider_url(self) -> str | None:
        """None: the store knows routes, not addresses."""
        return None

    @property
    def timestamp(self) -> datetime:
        """The time at which the answer began."""
        return self._timestamp
