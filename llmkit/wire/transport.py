"""The one way out: an httpx transport over one pooled aiohttp session that keeps a record of every exchange.

LiteLLM's own transport follows redirects with the key in hand, sends a request again after some connection errors and
shares its connections with everyone in the process. This one does none of it.
"""

from __future__ import annotations

import json
import ssl
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import certifi
import httpx
from yarl import URL

from llmkit.settings import is_loopback
from llmkit.wire.exchange import Exchange, current_exchange

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["RecordingTransport"]

_KEY_HEADERS = frozenset({"authorization", "x-goog-api-key", "x-api-key", "api-key"})
_HOP_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection"})
_ENCODING_HEADERS = frozenset({"content-encoding", "content-length", "transfer-encoding"})
KEEPALIVE_S = 30.0


class RecordingTransport(httpx.AsyncBaseTransport):
    """Sends the request of the current exchange, to its address and nowhere else, once, and reads the whole answer.

    There is no timeout here: the caller holds the deadline. Must be used and closed in one event loop.
    """

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it.

        Raises:
            httpx.ReadError: Nothing was sent, or no whole answer arrived; the exchange has the reason. Never
                `ConnectError`, which makes LiteLLM send the request a second time by itself.
        """
        exchange = current_exchange.get()
        url = str(request.url)
        exchange.transport_error = _objection(url, exchange)
        if exchange.transport_error is not None:
            raise httpx.ReadError(exchange.transport_error)
        body = await request.aread()
        exchange.request_leaves(request.url.path, body)
        try:
            return await self._send(request, url, body, exchange)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            exchange.transport_error = type(error).__name__
            raise httpx.ReadError(type(error).__name__) from None

    async def _send(self, request: httpx.Request, url: str, body: bytes, exchange: Exchange) -> httpx.Response:
        async with self._open_session().request(
            request.method,
            URL(url, encoded=True).with_user(None),
            data=body,
            headers=_headers_to_send(request, send_key=exchange.arguments.send_key),
            allow_redirects=False,
            proxy=_proxy_for(url),
            ssl=_tls() if request.url.scheme == "https" else True,
        ) as answer:
            exchange.reply_arrives(answer.status, answer.headers, await answer.read())
        kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in _ENCODING_HEADERS]
        return httpx.Response(answer.status, headers=kept, content=_mended(exchange), request=request)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # The client bounds what is under way, so the pool does not.
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S)
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def _objection(url: str, exchange: Exchange) -> str | None:
    """Why this request must not leave, as the name of an error, or None."""
    if exchange.is_abandoned:
        return "Abandoned"
    # LiteLLM lets globals of its own and the environment override an address that it was given.
    wanted, actual = urlsplit(exchange.arguments.address), urlsplit(url)
    same = (wanted.scheme, wanted.hostname, wanted.port) == (actual.scheme, actual.hostname, actual.port)
    return None if same else "WrongAddress"


def _headers_to_send(request: httpx.Request, *, send_key: bool) -> Mapping[str, str]:
    headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_HEADERS}
    if send_key:
        return headers
    return {name: value for name, value in headers.items() if not _is_key(name.lower(), value)}


def _is_key(name: str, value: str) -> bool:
    # User and password in the address of one's own server become Basic, and are meant to be sent.
    return name in _KEY_HEADERS and not value.startswith("Basic ")


def _proxy_for(url: str) -> str | None:
    """The proxy that the environment names for this URL. What is on this machine never goes through one."""
    return None if is_loopback(url) else _environment_proxy(urlsplit(url).scheme, urlsplit(url).hostname or "")


@cache
def _environment_proxy(scheme: str, host: str) -> str | None:
    if proxy_bypass(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(scheme) or proxies.get("all")
    return f"http://{proxy}" if proxy and "://" not in proxy else proxy


@cache
def _tls() -> ssl.SSLContext:
    """The machine's certificates (SSL_CERT_FILE counts) and the ones that come with certifi."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _mended(exchange: Exchange) -> bytes:
    reply = exchange.reply_json
    if reply is None or exchange.status != httpx.codes.OK:
        return exchange.body
    mended = exchange.spec.mend_reply(reply)
    return exchange.body if mended is reply else json.dumps(mended).encode()
