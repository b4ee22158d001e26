"""Streams, as people read them: text while it is written, or values of a type while their fields arrive."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from llmkit.errors import LLMBadRequest, LLMError
from llmkit.notebook.chat import run_extraction, send_chat
from llmkit.notebook.core import SessionCore
from llmkit.notebook.options import ReadingOptions, list_option_names
from llmkit.notebook.piece_feed import AnswerPieces
from llmkit.notebook.stream_call import OpenSink, StreamedCall, leave_when_dropped
from llmkit.notebook.stream_record import ChatRecord, ValueRecord
from llmkit.ports import StreamPiece

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from llmkit.pydanticai import Extraction
    from llmkit.types import LLMResponse

__all__ = ["AsyncChatStream", "AsyncValueStream", "ChatStream", "ValueStream", "open_stream", "prepare_stream"]

P = TypeVar("P")
R = TypeVar("R")
T = TypeVar("T")
# Turns what has arrived into what a loop yields; None is the end.
Absorb = Callable[[Sequence[AnswerPieces] | None], list[P]]


def open_stream(core: SessionCore, question: Any, text: str, options: Mapping[str, Any]) -> Any:
    """Check the arguments of `Session.stream`, start the call, and return its stream once the first piece is there."""
    if _is_prompt(question, text, options):
        return start_chat_stream(core, lambda open_sink: send_chat(core, question, options, open_sink()))
    call = StreamedCall(core, lambda open_sink: run_extraction(core, question, text, options, open_sink))
    stream = ValueStream[Any](call, question)
    call.open()
    return stream


def prepare_stream(core: SessionCore, question: Any, text: str, options: Mapping[str, Any]) -> Any:
    """Return the stream of `Session.astream`, which starts its call when it is first awaited."""
    if _is_prompt(question, text, options):
        return AsyncChatStream(StreamedCall(core, lambda open_sink: send_chat(core, question, options, open_sink())))
    call = StreamedCall(core, lambda open_sink: run_extraction(core, question, text, options, open_sink))
    return AsyncValueStream[Any](call, question)


def start_chat_stream(core: SessionCore, send: Callable[[OpenSink], Coroutine[Any, Any, LLMResponse]]) -> ChatStream:
    """Start a call whose answer is text, and return its stream once the first piece is there."""
    call = StreamedCall(core, send)
    stream = ChatStream(call)
    call.open()
    return stream


def _is_prompt(question: Any, text: Any, options: Mapping[str, Any]) -> bool:
    """Return whether a question is a prompt, and not a type.

    Raises:
        LLMBadRequest: It is a prompt, and a text or an option that belongs to a type is given.
    """
    if not isinstance(question, str | Sequence | Mapping):
        return False
    if text:
        raise LLMBadRequest("A prompt is one string, or a list of messages: the text after it belongs to a type")
    for name, value in options.items():
        if value is not None and name in list_option_names(ReadingOptions):
            raise LLMBadRequest(f"{name} belongs to a type, as in stream(City, text, {name}=...): a prompt has none")
    return True


class _Loop(Generic[P]):
    """One loop over a stream. Leaving it, by `break` or by an error, drops it, which cancels the call."""

    def __init__(self, stream: object, call: StreamedCall[Any], absorb: Absorb[P]) -> None:
        try:
            call.claim()
            self._stream = stream  # which lives as long as the loop
            self._call = call
            self._absorb = absorb
            self._items: deque[P] = deque()
            self._is_over = False
            leave_when_dropped(self, call)
        except BaseException as error:
            call.break_off(error)
            raise

    def _keep(self, arrived: Sequence[AnswerPieces] | None) -> None:
        self._is_over = arrived is None
        if not self._call.is_left:
            self._items.extend(self._absorb(arrived))


class _SyncLoop(_Loop[P]):
    def __iter__(self) -> Iterator[P]:
        return self

    def __next__(self) -> P:
        try:
            while not self._items and not self._is_over:
                self._keep(self._call.read())
            if self._items:
                return self._items.popleft()
        except BaseException as error:
            self._call.break_off(error)
            raise
        raise StopIteration


class _AsyncLoop(_Loop[P]):
    def __aiter__(self) -> AsyncIterator[P]:
        return self

    async def __anext__(self) -> P:
        while not self._items:
            if self._is_over:
                raise StopAsyncIteration
            self._keep(await self._call.read_async())
        return self._items.popleft()


class _Stream(Generic[R]):
    """A call in progress, as its reader has it in hand."""

    def __init__(self, call: StreamedCall[R]) -> None:
        self._call = call
        leave_when_dropped(self, call)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} is a call in progress: it cannot be copied or pickled; its response can"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._call.state})"


class _SyncStream(_Stream[R]):
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    def cancel(self) -> None:
        """Close the connection, and wait until the call is recorded as cancelled; nothing after the end.

        A loop over the stream ends then, in whatever thread it runs.
        """
        self._call.leave_and_wait()

    def _read_rest(self, read_more: Callable[[], bool]) -> None:
        try:
            while read_more():
                pass
        except BaseException as error:
            self._call.break_off(error)
            raise

    def _show(
        self,
        read_more: Callable[[], bool],
        read_text: Callable[[], str],
        read_end: Callable[[], LLMResponse],
        *,
        is_value: bool = False,
    ) -> None:
        try:
            # Imported here: most streams are not shown. An interrupt may come in the middle of it.
            from llmkit.notebook.stream_display import show_stream

            if not self._call.is_over:
                self._call.claim()
            show_stream(read_more, read_text, read_end, self.cancel, is_value=is_value)
        except BaseException as error:
            self._call.break_off(error)
            raise


class _AsyncStream(_Stream[R]):
    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    async def _open(self) -> Self:
        await self._call.open_async()
        return self

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._call.leave_and_wait_async()

    def cancel(self) -> None:
        """Close the connection; nothing after the end. The call is recorded as cancelled a moment later."""
        self._call.leave()


def _display_quietly(stream: ChatStream | ValueStream[Any]) -> None:
    try:
        stream.display()
    except LLMError as error:
        # IPython would print a traceback, and then show the stream in its next best form.
        sys.stderr.write(f"{type(error).__name__}: {error}\n")


class ChatStream(_SyncStream["LLMResponse"]):
    """Text of an answer while it is being written: `for text in session.stream("...")`.

    `Session.stream` and `Conversation.stream` return one when the first piece has arrived. It is read once. Leaving the
    loop or a `with` block before the end, like dropping the last reference, cancels the call: the connection closes at
    once, and the row of the call is FAILED with the code `cancelled`.
    """

    def __init__(self, call: StreamedCall[LLMResponse]) -> None:
        super().__init__(call)
        self._record = ChatRecord()

    def __iter__(self) -> Iterator[str]:
        return _SyncLoop(self, self._call, self._record.add_text)

    def pieces(self) -> Iterator[StreamPiece]:
        """Loop over all pieces, those of thinking and of tool calls included, instead of over the text."""
        return _SyncLoop(self, self._call, self._record.add_pieces)

    def finish(self) -> LLMResponse:
        """Read what is left, and return the answer.

        Raises:
            LLMError: The stream broke, or was cancelled.
        """
        self._read_rest(self._read_more)
        return self._call.read_result()

    @property
    def text(self) -> str:
        """The text so far, as far as it was read."""
        return self._record.text

    @property
    def thinking(self) -> str:
        """The reasoning so far, of a model that shows it."""
        return self._record.thinking

    @property
    def response(self) -> LLMResponse:
        """The answer, as `chat` returns it, once the stream was read to its end.

        Raises:
            LLMBadRequest: It was not yet.
            LLMError: The stream broke, or was cancelled.
        """
        return self._call.read_result()

    def display(self) -> None:
        """Show the answer while it grows, in a notebook or a terminal; at the end it is `response`.

        A notebook does the same with a stream that is the last line of a cell.

        Raises:
            LLMError: The stream broke, was cancelled, or is read elsewhere; what had arrived stays in view.
        """
        self._show(self._read_more, lambda: self.text, lambda: self.response)

    def _read_more(self) -> bool:
        arrived = self._call.read()
        self._record.add_pieces(arrived)
        return arrived is not None

    def _ipython_display_(self) -> None:
        _display_quietly(self)


class AsyncChatStream(_AsyncStream["LLMResponse"]):
    """Text of an answer while it is being written, for async code: `async for text in session.astream("...")`.

    The call starts when the stream is first awaited: by a loop, by `async with`, or by `await`, which returns the
    stream itself when the first piece has arrived. Otherwise it is as `ChatStream`.
    """

    def __init__(self, call: StreamedCall[LLMResponse]) -> None:
        super().__init__(call)
        self._record = ChatRecord()

    def __aiter__(self) -> AsyncIterator[str]:
        return _AsyncLoop(self, self._call, self._record.add_text)

    def pieces(self) -> AsyncIterator[StreamPiece]:
        """Loop over all pieces, those of thinking and of tool calls included, instead of over the text."""
        return _AsyncLoop(self, self._call, self._record.add_pieces)

    async def finish(self) -> LLMResponse:
        """Read what is left, and return the answer; as `ChatStream.finish`."""
        while (arrived := await self._call.read_async()) is not None:
            self._record.add_pieces(arrived)
        self._record.add_pieces(None)
        return self._call.read_result()

    @property
    def text(self) -> str:
        """The text so far, as far as it was read."""
        return self._record.text

    @property
    def thinking(self) -> str:
        """The reasoning so far, of a model that shows it."""
        return self._record.thinking

    @property
    def response(self) -> LLMResponse:
        """The answer, as `chat` returns it, once the stream was read to its end; raises as `ChatStream.response`."""
        return self._call.read_result()


class ValueStream(_SyncStream["Extraction[T]"], Generic[T]):
    """A typed value while its fields arrive: `for city in session.stream(City, "...")`.

    The loop yields an object with the fields so far whenever one has changed, and at the end the validated one, which
    is also `value`. The objects before it are of the same type: in a Pydantic model, a field that has not arrived is
    missing unless it has a default, and `model_fields_set` has the names of those that have. Texts and lists grow; a
    value of another type is there when it is complete, and a dataclass when all of it is. The validators of a model run
    when it is complete. When the model is asked again, the fields start again from nothing.
    """

    def __init__(self, call: StreamedCall[Extraction[T]], output_type: type[T]) -> None:
        super().__init__(call)
        self._record = ValueRecord[T](call, output_type)

    def __iter__(self) -> Iterator[T]:
        return _SyncLoop(self, self._call, self._record.add_values)

    def finish(self) -> T:
        """Read what is left, and return the validated value.

        Raises:
            LLMInvalidOutput: No answer fitted the type.
            LLMError: The stream broke, or was cancelled.
        """
        self._read_rest(lambda: self._call.read() is not None)
        return self._call.read_result().value

    def display(self) -> None:
        """Show the value as JSON while it grows, in a notebook; a terminal gets it at the end. Then it is `value`.

        Raises:
            LLMError: As `finish`, or the stream is read elsewhere.
        """
        self._show(self._read_more, lambda: self._record.written, self._describe, is_value=True)

    def _read_more(self) -> bool:
        arrived = self._call.read()
        self._record.add_values(arrived)
        return arrived is not None

    def _describe(self) -> LLMResponse:
        return self.response.model_copy(update={"text": self._record.written, "tool_calls": ()})

    def _ipython_display_(self) -> None:
        _display_quietly(self)

    @property
    def value(self) -> T:
        """The validated value, once the stream was read to its end.

        Raises:
            LLMBadRequest: It was not yet.
            LLMError: No answer fitted the type, the stream broke, or was cancelled.
        """
        return self._call.read_result().value

    @property
    def response(self) -> LLMResponse:
        """The answer from which the value was read; raises as `value`."""
        return self._call.read_result().responses[-1]


class AsyncValueStream(_AsyncStream["Extraction[T]"], Generic[T]):
    """A typed value while its fields arrive, for async code.

    Its values are those of a `ValueStream`, and it is awaited as an `AsyncChatStream` is.
    """

    def __init__(self, call: StreamedCall[Extraction[T]], output_type: type[T]) -> None:
        super().__init__(call)
        self._record = ValueRecord[T](call, output_type)

    def __aiter__(self) -> AsyncIterator[T]:
        return _AsyncLoop(self, self._call, self._record.add_values)

    async def finish(self) -> T:
        """Read what is left, and return the validated value; as `ValueStream.finish`."""
        while await self._call.read_async() is not None:
            pass
        return self._call.read_result().value

    @property
    def value(self) -> T:
        """The validated value, once the stream was read to its end; raises as `ValueStream.value`."""
        return self._call.read_result().value

    @property
    def response(self) -> LLMResponse:
        """The answer from which the value was read; raises as `value`."""
        return self._call.read_result().responses[-1]
