"""The one way out: a pooled aiohttp session that sends the request of an exchange once and records what happens."""

from __future__ import annotations

import asyncio
import io
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from llmkit.transport.http.proxies import find_proxy, is_usable_proxy
from llmkit.transport.http.tls import load_trusted_certificates, name_tls_failure

if TYPE_CHECKING:
    from collections.abc import Mapping

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


class NotAnsweredError(Exception):
    """Nothing was sent, or no whole answer arrived. Its text is the class name of the reason, as in the exchange."""


class _ReplyTooLargeError(Exception):
    """A reply exceeds the limit."""


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
        return super().is_connected() and not (self.is_idle and self.should_close)


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
    """Sends requests, each to its own address and nowhere else, and reads whole answers. Follows no redirect.

    There is no timeout here: the caller sets the deadline. Must be used and closed in one event loop.

    Args:
        reply_limit_mb: Largest reply that is read, after decompression, in MB.
    """

    def __init__(self, reply_limit_mb: int = DEFAULT_REPLY_LIMIT_MB) -> None:
        self._reply_limit_mb = reply_limit_mb
        self._session: aiohttp.ClientSession | None = None

    async def send(self, exchange: Exchange, method: str, url: str, headers: Mapping[str, str], body: bytes) -> None:
        """Send the request of this exchange and record the answer in it.

        Raises:
            NotAnsweredError: There is no answer; the exchange has the reason.
        """
        if exchange.sent_at_utc is not None:
            # LiteLLM repeats a request by itself after some failures. That would be paid for without a record.
            raise NotAnsweredError(exchange.transport_error or "AlreadySent")
        exchange.reply_limit_mb = self._reply_limit_mb
        exchange.transport_error = _objection(url, exchange)
        if exchange.transport_error is not None:
            raise NotAnsweredError(exchange.transport_error)
        way = _way(url)
        exchange.proxy = find_proxy(url)
        if exchange.proxy is not None and not is_usable_proxy(exchange.proxy):
            exchange.transport_error = "UnusableProxy"
            raise NotAnsweredError(exchange.transport_error)
        try:
            tls = load_trusted_certificates() if way.scheme == "https" else True
        except (OSError, ValueError):  # SSL_CERT_FILE names a file without certificates
            exchange.transport_error = "UnusableCertificateFile"
            raise NotAnsweredError(exchange.transport_error) from None
        exchange.request_leaves(way.path, body)
        try:
            async with self._open_session().request(
                method,
                way,
                data=body if len(body) <= LARGE_BODY_BYTES else io.BytesIO(body),
                headers=_headers_to_send(headers, send_key=exchange.arguments.send_key),
                allow_redirects=False,
                proxy=exchange.proxy,
                ssl=tls,
            ) as answer:
                exchange.reply_arrives(answer.status, answer.headers, await self._read_body(answer))
        except _ReplyTooLargeError:
            exchange.transport_error = "ReplyTooLarge"
            raise NotAnsweredError(exchange.transport_error) from None
        except Exception as error:  # noqa: BLE001 - a hostile reply makes parsers and decompressors raise anything
            exchange.transport_error = _name_failure(error)
            raise NotAnsweredError(exchange.transport_error) from None

    async def _read_body(self, response: aiohttp.ClientResponse) -> bytes:
        # Piece by piece: a few compressed kilobytes can decompress to more than the memory of the machine.
        limit = self._reply_limit_mb * MEGABYTE
        if (response.content_length or 0) > limit:
            raise _ReplyTooLargeError
        pieces, size = [], 0
        async for piece in response.content.iter_any():
            size += len(piece)
            if size > limit:
                response.close()
                raise _ReplyTooLargeError
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


def _headers_to_send(headers: Mapping[str, str], *, send_key: bool) -> Mapping[str, str]:
    kept = {name: value for name, value in headers.items() if name.lower() not in _HOP_HEADERS}
    if send_key:
        return kept
    # User and password in the address of a private server become Basic, and are meant to be sent.
    return {
        name: value for name, value in kept.items() if name.lower() not in _KEY_HEADERS or value.startswith("Basic ")
    }
