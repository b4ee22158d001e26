"""The one way out: a pooled aiohttp session that sends the request of an exchange once and records what happens."""

from __future__ import annotations

import asyncio
import io
import select
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import hdrs
from aiohttp.client_proto import ResponseHandler
from multidict import CIMultiDict
from yarl import URL

from llmkit.canonical_json import json_object
from llmkit.transport.http.exchange import ReplyTooLargeError
from llmkit.transport.http.proxies import find_proxy, is_usable_proxy
from llmkit.transport.http.tls import load_trusted_certificates, name_tls_failure

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

    from llmkit.providers.base import StreamForm
    from llmkit.transport.http.exchange import Exchange

__all__ = ["NotAnsweredError", "Pool"]

_KEY_HEADERS = frozenset({"authorization", "x-goog-api-key", "x-api-key", "api-key"})
# Headers of the connection and of the encodings that the pool can decode: the pool sets them itself.
_HOP_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding"})
KEEPALIVE_S = 30.0
# A larger body is sent in pieces, so that it does not block the event loop; aiohttp warns otherwise.
LARGE_BODY_BYTES = 2**20
MEGABYTE = 2**20
DEFAULT_REPLY_LIMIT_MB = 64
_SUCCESS = range(200, 300)


class NotAnsweredError(Exception):
    """Nothing was sent, or no whole answer arrived. Its text is the class name of the reason, as in the exchange."""


class _Connection(ResponseHandler):
    """A connection that is closed when the server sends anything between two requests.

    Surplus bytes would be read as the answer to the next request: a late second response of a confused server or proxy
    became another call's answer. aiohttp checks for unread bytes when a connection is given back, not while it is idle.
    """

    is_idle = False

    def set_response_params(self, **parameters: Any) -> None:
        """Prepare for the response to a request, which is about to be sent."""
        self.is_idle = False
        super().set_response_params(**parameters)

    def data_received(self, data: bytes) -> None:
        """Parse the bytes of a response; refuse those that answer no request."""
        # aiohttp calls this with nothing, too, to resume the decompression of what it has.
        if self.is_idle and data:
            self.close()
        else:
            super().data_received(data)

    def is_connected(self) -> bool:
        """Return whether the connection can carry a request."""
        if not super().is_connected():
            return False
        return not self.is_idle or not (self.should_close or self._has_unread_input())

    def _has_unread_input(self) -> bool:
        """Return whether the server has closed the connection, or sent something, since the event loop last looked.

        A loop that was busy for a while, with an import for example, has not seen yet that the server gave it up.
        """
        connection = self.transport.get_extra_info("socket") if self.transport is not None else None
        if connection is None or not hasattr(select, "poll"):  # Windows has none, and its `select` ends at 512 sockets
            return False
        poll = select.poll()
        poll.register(connection.fileno(), select.POLLIN)
        return bool(poll.poll(0))


class _Connector(aiohttp.TCPConnector):
    """A connection pool that marks the connections it keeps as idle."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._factory: Any = partial(_Connection, loop=asyncio.get_running_loop())

    def _release(self, key: Any, protocol: ResponseHandler, *, should_close: bool = False) -> None:
        if isinstance(protocol, _Connection):
            protocol.is_idle = True
        super()._release(key, protocol, should_close=should_close)


class Pool:
    """Sends requests, each to its own address and nowhere else, and reads the answers. Follows no redirect.

    An exchange with a sink is streamed: the request is changed to ask for that, and the sum of the events is recorded
    as if it had been the answer to the request as it was given.

    There is no timeout here, except for the silence in the middle of a stream: the caller sets the deadline. Must be
    used and closed in one event loop.

    Args:
        reply_limit_mb: Largest reply that is read, after decompression, in MB.
    """

    def __init__(self, reply_limit_mb: int = DEFAULT_REPLY_LIMIT_MB) -> None:
        self._reply_limit_mb = reply_limit_mb
        self._session: aiohttp.ClientSession | None = None
        # Kept for the pool and not for the process: a new session finds what was corrected in the environment.
        self._find_proxy = lru_cache(maxsize=256)(find_proxy)
        self._load_certificates = cache(load_trusted_certificates)

    async def send(self, exchange: Exchange, method: str, url: str, headers: Mapping[str, str], body: bytes) -> None:
        """Send the request of this exchange and record the answer in it.

        Raises:
            NotAnsweredError: There is no answer; the exchange has the reason. A stream that broke in the middle is an
                answer, of which the exchange has what arrived, and the reason.
        """
        if exchange.sent_at_utc is not None:
            # LiteLLM repeats a request by itself after some failures. That would be paid for without a record.
            raise NotAnsweredError(exchange.transport_error or "AlreadySent")
        if exchange.arguments.query:
            url = f"{url}?{exchange.arguments.query}"
        exchange.reply_limit_mb = self._reply_limit_mb
        # What is hashed is the plain request: how an answer travels does not change it.
        path, plain_body = _way(url).path, body
        if exchange.sink is None:
            exchange.stream = None
        elif exchange.stream is not None:
            url, body = exchange.stream.ask(url, body)
        tls = self._prepare(exchange, url)
        exchange.request_leaves(path, plain_body)
        try:
            async with self._open_session().request(
                method,
                _way(url),
                data=body if len(body) <= LARGE_BODY_BYTES else io.BytesIO(body),
                headers=_headers_to_send(headers, exchange),
                allow_redirects=False,
                proxy=exchange.proxy,
                ssl=tls,
            ) as answer:
                await self._read_answer(exchange, answer)
        except NotAnsweredError:
            raise
        except ReplyTooLargeError:
            exchange.transport_error = "ReplyTooLarge"
            raise NotAnsweredError(exchange.transport_error) from None
        except Exception as error:  # noqa: BLE001 - a hostile reply makes parsers and decompressors raise anything
            exchange.transport_error = _name_failure(error)
            raise NotAnsweredError(exchange.transport_error) from None

    def _prepare(self, exchange: Exchange, url: str) -> ssl.SSLContext | bool:
        """Find the proxy and the certificates of a request, and refuse one that must not leave."""
        exchange.transport_error = _objection(url, exchange)
        if exchange.transport_error is not None:
            raise NotAnsweredError(exchange.transport_error)
        exchange.proxy = self._find_proxy(url)
        if exchange.proxy is not None and not is_usable_proxy(exchange.proxy):
            exchange.transport_error = "UnusableProxy"
            raise NotAnsweredError(exchange.transport_error)
        try:
            return self._load_certificates() if _way(url).scheme == "https" else True
        except (OSError, ValueError):  # SSL_CERT_FILE names a file without certificates
            exchange.transport_error = "UnusableCertificateFile"
            raise NotAnsweredError(exchange.transport_error) from None

    async def _read_answer(self, exchange: Exchange, answer: aiohttp.ClientResponse) -> None:
        form = exchange.stream
        if form is None or answer.status not in _SUCCESS:
            exchange.reply_arrives(answer.status, answer.headers, await self._read_body(answer))
            return
        # Imported here: most requests do not stream.
        from llmkit.transport.http.stream_reading import find_streamed_reply, is_event_stream

        if is_event_stream(form, answer.content_type):
            await self._read_stream(exchange, form, answer)
        else:
            # A server that ignores the request to stream has answered as usual.
            body = await self._read_body(answer)
            events = None if json_object(body) is not None else find_streamed_reply(form, body)
            exchange.is_folded = events is not None
            exchange.reply_arrives(answer.status, _name_json(answer), body if events is None else events)

    async def _read_stream(self, exchange: Exchange, form: StreamForm, answer: aiohttp.ClientResponse) -> None:
        if exchange.sink is None:
            raise ValueError("a streamed exchange has a sink")
        from llmkit.transport.http.stream_reading import StreamReading

        reading = StreamReading(exchange, form, exchange.sink, self._reply_limit_mb * MEGABYTE)
        broken_by = None
        try:
            await reading.read(answer)
        except BaseException as error:
            # Not released, as at the end of this request: the server is to see at once that its reader has left.
            answer.close()
            if not isinstance(error, Exception):
                if reading.has_events:
                    exchange.reader_leaves(reading.reply[0])
                raise
            broken_by = _name_stream_failure(error)
        # An answer that has ended is whole, whatever becomes of its connection.
        if reading.has_ended:
            broken_by = None
        elif broken_by is None and not reading.is_plain:
            broken_by = "StreamEndedEarly"
        if broken_by is not None and not reading.has_events:
            exchange.transport_error = broken_by
            raise NotAnsweredError(broken_by)
        body, exchange.stream_error = reading.reply
        exchange.transport_error, exchange.is_folded = broken_by, reading.has_events
        exchange.reply_arrives(answer.status, _name_json(answer), body)

    async def _read_body(self, response: aiohttp.ClientResponse) -> bytes:
        # Piece by piece: a few compressed kilobytes can decompress to more than the memory of the machine.
        limit = self._reply_limit_mb * MEGABYTE
        if (response.content_length or 0) > limit:
            raise ReplyTooLargeError
        if response.content_length is not None and hdrs.CONTENT_ENCODING not in response.headers:
            return await response.read()
        pieces, size = [], 0
        async for piece in response.content.iter_any():
            size += len(piece)
            if size > limit:
                response.close()
                raise ReplyTooLargeError
            pieces.append(piece)
        return b"".join(pieces)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # The client limits concurrent requests, so the pool does not.
            connector = _Connector(limit=0, keepalive_timeout=KEEPALIVE_S)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def close(self) -> None:
        """Close all connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _name_json(answer: aiohttp.ClientResponse) -> Mapping[str, str]:
    """Return the headers of the reply that was made of a stream: clients read it by its content type."""
    headers = CIMultiDict(answer.headers)
    headers["Content-Type"] = "application/json"
    return headers


def _name_stream_failure(error: Exception) -> str:
    if isinstance(error, ReplyTooLargeError):
        return "ReplyTooLarge"
    # The class itself: those derived from it are timeouts of the connection.
    return "StreamFellSilent" if type(error) is TimeoutError else _name_failure(error)


def _name_failure(error: Exception) -> str:
    """Return the name under which the table of failures knows the error: its class, or a more precise reason."""
    if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        return type(error).__name__
    reason = name_tls_failure(error)
    if reason is not None:
        return reason
    refused = isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ConnectionRefusedError)
    return ConnectionRefusedError.__name__ if refused else type(error).__name__


def _objection(url: str, exchange: Exchange) -> str | None:
    """Return why this request must not leave, as the name of an error, or None."""
    if exchange.is_abandoned:
        return "Abandoned"
    # LiteLLM lets its module globals and the environment override the address that it was given.
    return None if _origin(exchange.arguments.address) == _origin(url) else "WrongAddress"


# Few addresses and models take part in a process; parsing their URLs for every call is a tenth of its cost.
@lru_cache(maxsize=256)
def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


@lru_cache(maxsize=256)
def _way(url: str) -> URL:
    return URL(url, encoded=True).with_user(None)


def _headers_to_send(headers: Mapping[str, str], exchange: Exchange) -> Mapping[str, str]:
    kept = {name: value for name, value in headers.items() if name.lower() not in _HOP_HEADERS}
    if exchange.stream is not None:
        # A proxy that compresses keeps pieces back until it has enough of them.
        kept["Accept-Encoding"] = "identity"
    if exchange.arguments.send_key:
        if "api-key" in kept:  # Azure's, which takes a bearer token for one of its identity service
            return {name: value for name, value in kept.items() if name.lower() != "authorization"}
        return kept
    # User and password in the address of a private server become Basic, and are meant to be sent.
    return {
        name: value for name, value in kept.items() if name.lower() not in _KEY_HEADERS or value.startswith("Basic ")
    }
