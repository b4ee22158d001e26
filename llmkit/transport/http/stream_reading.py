"""The reading of one streamed answer: its pieces go to the sink at once, and their sum becomes the reply."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import aiohttp
from pydantic_core import from_json

from llmkit.canonical_json import json_object
from llmkit.transport.http.event_streams import DONE, EventDecoder
from llmkit.transport.http.exchange import ReplyTooLargeError
from llmkit.transport.http.reasoning_tags import ReasoningTags
from llmkit.transport.http.split_characters import SplitCharacters

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmkit.ports import AnswerSink, StreamPiece
    from llmkit.providers.base import StreamForm
    from llmkit.transport.http.exchange import Exchange

__all__ = ["StreamReading", "UnreadableStreamError", "find_streamed_reply", "is_event_stream"]

_CONTENT_TYPES = {
    "sse": ("text/event-stream",),
    "ndjson": ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/json-lines"),
}
# After the end of an answer, counts may follow (this long), or only the end of the body (that long). A server that
# sends neither must not keep the caller waiting.
COUNTS_WAIT_S = 2.0
LAST_BYTES_WAIT_S = 0.1
# When pieces follow one another faster than this, they are read together, this long after the last read. Waking up for
# a piece costs more than reading it, here and in the thread or event loop of the reader.
GATHER_S = 0.02
# Reads of this size are dear enough to come as fast as they can.
GATHER_BYTES = 16_384
# Parsing what is no JSON takes 4 us for each event: minutes for the tens of millions that a reply has room for.
MOST_UNREADABLE = 20_000


def is_event_stream(form: StreamForm, content_type: str) -> bool:
    """Return whether an answer with this content type is a stream in this form."""
    return content_type.lower() in _CONTENT_TYPES[form.framing]


def find_streamed_reply(form: StreamForm, body: bytes) -> bytes | None:
    """Return the reply in a whole body that contains the events of a stream: a gateway may call them by another type.

    None when the events are not there, or not up to the end of the answer.
    """
    decoder, folder, unreadable = EventDecoder(form.framing), form.open_folder(), 0
    for data in [*decoder.feed(body), *decoder.finish()]:
        event = _read_event(data)
        if event is not None:
            folder.add(event)
        elif data.strip() == DONE:
            break
        else:
            unreadable += 1
            if unreadable > MOST_UNREADABLE:
                return None
    return json.dumps(folder.fold()).encode() if folder.is_complete else None


class UnreadableStreamError(Exception):
    """A stream consists of events that no protocol has."""


class StreamReading:
    """Reads the events of one answer, and keeps their sum.

    Args:
        exchange: The request.
        form: How the answer is streamed.
        sink: Where its pieces go.
        most_bytes: The largest answer that is read.

    Attributes:
        has_events: Whether an event has arrived.
    """

    def __init__(self, exchange: Exchange, form: StreamForm, sink: AnswerSink, most_bytes: int) -> None:
        self._exchange = exchange
        self._sink = sink
        self._most_bytes = most_bytes
        self._decoder = EventDecoder(form.framing)
        self._folder = form.open_folder()
        self._tags = ReasoningTags() if exchange.spec.writes_reasoning_tags else None
        self._characters = SplitCharacters()
        self._size = self._unreadable = 0
        self._is_done = False
        self.has_events = False
        # Until the first event: an answer that is no stream after all.
        self._unread: list[bytes] = []

    @property
    def has_ended(self) -> bool:
        """Whether the answer is whole, or ended with an error."""
        return self._is_done or self._folder.is_complete

    @property
    def is_plain(self) -> bool:
        """Whether the body is a plain answer, such as an error that a gateway calls a stream."""
        return not self.has_events and json_object(b"".join(self._unread)) is not None

    @property
    def reply(self) -> tuple[bytes, Any]:
        """The plain reply as far as it has arrived, and the error that the server has sent in the stream."""
        if not self.has_events and not self._is_done:
            return b"".join(self._unread), None
        folded = dict(self._folder.fold())
        error = folded.pop("error", None)
        return json.dumps(folded).encode(), error

    async def read(self, answer: aiohttp.ClientResponse) -> None:
        """Read until the answer has ended, however late: only silence is limited here, and only after the first piece.

        Raises:
            TimeoutError: The server fell silent in the middle of the answer.
            Exception: Any error of the connection. The answer may be whole anyway, see `has_ended`.
        """
        async with asyncio.timeout(None) as deadline:
            silence = _Silence(deadline, self._exchange.silence_s, self._exchange.piece_wait_s)
            try:
                await self._read_events(answer, silence)
            finally:
                silence.stop()
        await _read_rest(answer)

    async def _read_events(self, answer: aiohttp.ClientResponse, silence: _Silence) -> None:
        while not self._is_done:
            read = await answer.content.readany()
            wait_s = silence.note_read()
            self._size += len(read)
            if self._size > self._most_bytes:
                raise ReplyTooLargeError
            if not self.has_events:
                self._unread.append(read)
            events = self._decoder.feed(read) if read else self._decoder.finish()
            pieces = self._add_events(events) if events else []
            if pieces:
                self._exchange.piece_arrives()
                # The time that the receiver takes is not the server's.
                silence.pause()
                await self._sink.put(pieces)
                silence.note_piece()
            if not read:
                return
            if events and self.has_ended:
                silence.shorten(COUNTS_WAIT_S)
            elif pieces and wait_s < GATHER_S and len(read) < GATHER_BYTES:
                await _gather(answer)
                silence.note_read()  # the time without a reader is not silence of the server

    def _add_events(self, events: Sequence[bytes]) -> list[StreamPiece]:
        """Add events to the sum, and return the pieces of all of them."""
        pieces: list[StreamPiece] = []
        for data in events:
            event = _read_event(data)
            if event is not None:
                self.has_events = True
                pieces.extend(self._folder.add(event))
            elif data.strip() == DONE:
                self._is_done = True
                break
            else:
                self._unreadable += 1
                if self._unreadable > MOST_UNREADABLE:
                    raise UnreadableStreamError
        pieces = self._characters.join(pieces)
        return self._tags.separate(pieces, is_last=self.has_ended) if self._tags is not None else pieces


class _Silence:
    """Ends a reading in which nothing arrives, with one timer for all of it: one for each read would double its cost.

    Args:
        deadline: Ends the reading.
        silence_s: The longest time without a single byte, in seconds.
        piece_wait_s: The longest time without a piece, in seconds: signs of life alone do not make an answer.
    """

    def __init__(self, deadline: asyncio.Timeout, silence_s: float, piece_wait_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline = deadline
        self._silence_s, self._piece_wait_s = silence_s, piece_wait_s
        self._read_at_s = self._piece_at_s = 0.0
        self._is_paused = self._is_short = False
        self._timer: asyncio.TimerHandle | None = None

    def note_read(self) -> float:
        """Note that bytes have arrived, and return how long after the bytes or the piece before them, in seconds."""
        before_s, self._read_at_s = self._read_at_s, self._loop.time()
        return self._read_at_s - before_s

    def note_piece(self) -> None:
        """Note that the receiver has taken a piece. The first one starts the clock."""
        self._is_paused = False
        self._read_at_s = self._piece_at_s = self._loop.time()
        if self._timer is None:
            self._check()

    def pause(self) -> None:
        """Stop the clock until `note_piece`."""
        self._is_paused = True

    def shorten(self, silence_s: float) -> None:
        """Allow only so much time from now on, whatever arrives; starts the clock too. Further calls change nothing."""
        if not self._is_short:
            self._is_short = True
            self._silence_s = self._piece_wait_s = min(silence_s, self._silence_s)
            self._piece_at_s = self._read_at_s
            self.stop()
            self._check()

    def stop(self) -> None:
        """Stop the clock for good."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        now_s = self._loop.time()
        ends_at_s = min(self._read_at_s + self._silence_s, self._piece_at_s + self._piece_wait_s)
        if self._is_paused or ends_at_s > now_s:
            wait_s = self._silence_s if self._is_paused else ends_at_s - now_s
            self._timer = self._loop.call_later(wait_s, self._check)
        else:
            self._deadline.reschedule(now_s)


def _read_event(data: bytes) -> Mapping[str, Any] | None:
    """Return the JSON object of an event, or None. This is most of the work on an event, and five times faster so."""
    if not data.startswith(b"{") and not data.lstrip().startswith(b"{"):
        return None
    try:
        event = from_json(data)
    except ValueError:
        # Half of a surrogate pair, or an integer of thousands of digits, is nothing but unusual.
        return json_object(data)
    return event if isinstance(event, dict) else None


async def _gather(answer: aiohttp.ClientResponse) -> None:
    """Leave what arrives in the next moment to the system, so that it is read at once."""
    transport = answer.connection.transport if answer.connection is not None else None
    if not isinstance(transport, asyncio.ReadTransport) or not transport.is_reading():
        return  # all of it is here, or aiohttp has more than it wants
    transport.pause_reading()
    try:
        await asyncio.sleep(GATHER_S)
    finally:
        # Also for the next answer over this connection.
        transport.resume_reading()


async def _read_rest(answer: aiohttp.ClientResponse) -> None:
    """Read the end of the body, so that the connection can be used again; close it where more than that follows."""
    content, is_over = answer.content, False
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(LAST_BYTES_WAIT_S):
            is_over = content.at_eof() or not await content.readany() or not await content.readany()
    if not is_over:
        answer.close()
