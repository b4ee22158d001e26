"""Faults of the transport: answers sent whole, in pieces, too slowly, in part, or not at all."""

import asyncio
import math
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from llmkit.testing.http_answers import HttpAnswer
from llmkit.testing.replies import Fault, FaultKind, Reply
from llmkit.testing.request_log import Outcome, Usage

if TYPE_CHECKING:
    from aiohttp import web

__all__ = ["Book", "get_content", "make_transport_answer", "send", "send_whole", "sit_out_delays"]

Book: TypeAlias = Callable[[Outcome, Usage | None], None]
"""Books the end of a request; called just before the last bytes leave."""

_STREAM_FAULTS = frozenset(
    {
        FaultKind.STREAM_PACE,
        FaultKind.STREAM_STALL,
        FaultKind.STREAM_BREAK,
        FaultKind.STREAM_ERROR,
        FaultKind.STREAM_SURPLUS,
    }
)
_SHELLS = _STREAM_FAULTS | {
    FaultKind.DRIP,
    FaultKind.TRUNCATED,
    FaultKind.CUT_AT_LIMIT,
    FaultKind.REASONING_ATE_LIMIT,
}
_LINGER_ZERO = struct.pack("ii", 1, 0)
_HTML = b"<!DOCTYPE html><html><head><title>Sign in</title></head><body><h1>Please sign in</h1></body></html>"


async def sit_out_delays(planned: Reply | Fault) -> Reply | Fault:
    """Wait for every delay at the start of `planned` and return the rest."""
    while isinstance(planned, Fault) and planned.kind is FaultKind.DELAY:
        await _wait(planned.seconds)
        planned = planned.then
    return planned


async def _wait(seconds: float) -> None:
    """Wait some seconds, which may be infinitely many."""
    await (asyncio.Event().wait() if math.isinf(seconds) else asyncio.sleep(seconds))


def get_content(planned: Reply | Fault) -> Reply | Fault:
    """Return the content of `planned`, without how it is sent."""
    while isinstance(planned, Fault) and planned.kind in _SHELLS:
        planned = planned.then
    return planned


def make_transport_answer(fault: Fault) -> HttpAnswer | None:
    """Return the answer to a fault that looks the same on every wire, None for any other."""
    match fault.kind:
        case FaultKind.MALFORMED:
            return HttpAnswer([b'{"model": "unfinished", "message": {"role": "assist'])
        case FaultKind.HTML:
            return HttpAnswer([_HTML], fault.status_code, "text/html; charset=utf-8")
        case FaultKind.EMPTY | FaultKind.RESET | FaultKind.HANG_UP:
            return HttpAnswer([b""], fault.status_code)
        case FaultKind.REDIRECT:
            return HttpAnswer([b""], fault.status_code, headers={"Location": fault.url})
    return None


async def send(
    http: "web.BaseRequest",
    answer: HttpAnswer,
    planned: Reply | Fault,
    book: Book,
    make_error: Callable[[Fault, HttpAnswer], HttpAnswer],
) -> "web.StreamResponse":
    """Send `answer` in the way that is `planned`.

    Args:
        http: The request.
        answer: What is sent.
        planned: How it is sent.
        book: Books the end of the request.
        make_error: Returns the error of a fault in the form of the wire: an event of the stream `answer`, or a whole
            answer where that is not streamed.
    """
    kind = planned.kind if isinstance(planned, Fault) else None
    if isinstance(planned, Fault) and kind in _STREAM_FAULTS:
        if kind is FaultKind.STREAM_ERROR and not answer.streamed:
            return send_whole(make_error(planned, answer), book)
        if answer.streamed:
            error = make_error(planned, answer).body if kind is FaultKind.STREAM_ERROR else b""
            return await _send_faulty_stream(http, answer, planned, book, error)
        if kind is FaultKind.STREAM_BREAK:
            return await _send_half(http, answer, book)
        if kind is FaultKind.STREAM_STALL:
            await _wait(planned.seconds)
    if isinstance(planned, Fault) and kind is FaultKind.DRIP:
        return await _send_slowly(http, answer, planned, book)
    if kind is FaultKind.TRUNCATED:
        return await _send_half(http, answer, book)
    if kind in (FaultKind.RESET, FaultKind.HANG_UP):
        return _close_without_answer(http, book, reset=kind is FaultKind.RESET)
    return await _send_pieces(http, answer, book) if answer.streamed else send_whole(answer, book)


def send_whole(answer: HttpAnswer, book: Book) -> "web.Response":
    """Return the response for `answer` as one body."""
    from aiohttp import web

    book("answered", answer.usage)
    return web.Response(body=answer.body, status=answer.status, headers=answer.all_headers)


async def _send_pieces(http: "web.BaseRequest", answer: HttpAnswer, book: Book) -> "web.StreamResponse":
    response = await _open_response(http, answer, length=None)
    for piece in answer.pieces[:-1]:
        await response.write(piece)
    book("answered", answer.usage)
    await response.write(answer.pieces[-1])
    return response


async def _send_faulty_stream(
    http: "web.BaseRequest", answer: HttpAnswer, fault: Fault, book: Book, error: bytes
) -> "web.StreamResponse":
    """Send an answer as the fault says; `error` is the event of a fault that sends one."""
    response = await _open_response(http, answer, length=None)
    kind, ends_early = fault.kind, fault.kind in {FaultKind.STREAM_BREAK, FaultKind.STREAM_ERROR}
    pieces = answer.pieces[: fault.events] if ends_early else answer.pieces
    for at, piece in enumerate(pieces):
        if kind is FaultKind.STREAM_PACE or (kind is FaultKind.STREAM_STALL and at == fault.events):
            await _wait(fault.seconds)
        if at == len(answer.pieces) - 1:
            book("answered", answer.usage)
        await response.write(piece)
    if kind is FaultKind.STREAM_BREAK:
        book("broken", None)
        # The end of a chunked body would make it a whole one.
        response.force_close()
        if http.transport is not None:
            http.transport.close()
    elif kind is FaultKind.STREAM_ERROR:
        book("broken", None)
        await response.write(error)
    elif kind is FaultKind.STREAM_SURPLUS:
        await response.write(answer.body)
    return response


async def _send_slowly(http: "web.BaseRequest", answer: HttpAnswer, fault: Fault, book: Book) -> "web.StreamResponse":
    body, size = answer.body, fault.piece_bytes
    response = await _open_response(http, answer, length=len(body))
    last = (len(body) - 1) // size * size
    for at in range(0, last, size):
        await response.write(body[at : at + size])
        await asyncio.sleep(fault.seconds)
    book("answered", answer.usage)
    await response.write(body[last:])
    return response


async def _send_half(http: "web.BaseRequest", answer: HttpAnswer, book: Book) -> "web.StreamResponse":
    response = await _open_response(http, answer, length=len(answer.body))
    book("broken", None)
    await response.write(answer.body[: len(answer.body) // 2])
    response.force_close()
    return response


async def _open_response(http: "web.BaseRequest", answer: HttpAnswer, *, length: int | None) -> "web.StreamResponse":
    from aiohttp import web

    response = web.StreamResponse(status=answer.status, headers=answer.all_headers)
    response.content_length = length
    await response.prepare(http)
    return response


def _close_without_answer(http: "web.BaseRequest", book: Book, *, reset: bool) -> "web.Response":
    from aiohttp import web

    book("broken", None)
    if http.transport is not None:
        if reset:  # a linger time of zero makes the kernel send RST instead of FIN
            http.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        http.transport.abort()
    return web.Response()
