"""Framing of streamed answers: from the bytes of a connection to the data of single events.

An own decoder, because the maintained one (httpx-sse) works on the lines of an httpx response: here, bytes come from
aiohttp, and all events of one network read are taken together, which halves the time for each.
"""

from __future__ import annotations

from typing import Literal

__all__ = ["DONE", "EventDecoder"]

DONE = b"[DONE]"
"""The data of the event that ends a stream of OpenAI's and of the servers that follow it."""

_BOM = b"\xef\xbb\xbf"


class EventDecoder:
    """Splits the bytes of a stream into the data of its events, wherever the network splits them.

    Lines end in CR, LF or CRLF, as https://html.spec.whatwg.org/multipage/server-sent-events.html has it. Names, ids
    and comments are dropped: no provider sends in them what is not in the data too. Text is not decoded here, so that
    a character in two reads stays whole.

    Args:
        framing: Server-sent events, or one JSON object in each line.
    """

    def __init__(self, framing: Literal["sse", "ndjson"]) -> None:
        self._is_sse = framing == "sse"
        self._tail: list[bytes] = []
        self._data: list[bytes] = []
        self._is_beginning = True
        self._ended_in_cr = False

    def feed(self, read: bytes) -> list[bytes]:
        """Return the data of the events that these bytes complete."""
        if self._ended_in_cr and read:
            # The second half of a CRLF, of which the first has ended its line already.
            read = read.removeprefix(b"\n")
            self._ended_in_cr = False
        end = max(read.rfind(b"\n"), read.rfind(b"\r")) + 1
        if not end:
            # Kept in pieces: an event of many megabytes is joined once, and not with every read.
            if read:
                self._tail.append(read)
            return []
        self._ended_in_cr = read.endswith(b"\r")
        whole = b"".join((*self._tail, read[:end])) if self._tail else read[:end]
        self._tail = [read[end:]] if end < len(read) else []
        if self._is_beginning:
            self._is_beginning = False
            whole = whole.removeprefix(_BOM)
        # Of bytes, this splits at CR, LF and CRLF alone.
        lines = whole.splitlines()
        return self._join_fields(lines) if self._is_sse else [line for line in lines if line and not line.isspace()]

    def finish(self) -> list[bytes]:
        """Return the data of the event that the end of the stream completes: some servers leave out its last line."""
        return [*self.feed(b"\n"), *self.feed(b"\n")]

    def _join_fields(self, lines: list[bytes]) -> list[bytes]:
        events, data = [], self._data
        for line in lines:
            # Empty lines first: a few kilobytes of gzip contain millions of them.
            if not line:
                if data:
                    events.append(data[0] if len(data) == 1 else b"\n".join(data))
                    data.clear()
            elif line.startswith(b"data:"):
                data.append(line[6:] if line.startswith(b"data: ") else line[5:])
            elif line == b"data":
                data.append(b"")
            elif line.startswith(b"error:"):
                # Older servers of llama.cpp report a failure so, in a field that the standard does not have.
                data.append(b'{"error":' + line[6:] + b"}")
        return events
