"""The pool as an httpx transport, for a library that brings its own httpx client.

LiteLLM's own transport follows redirects with the key in hand, sends a request again after some connection errors and
shares its connections with everyone in the process. This one does none of it.
"""

from __future__ import annotations

import json

import httpx

from llmkit.transport.http.exchange import Exchange, current_exchange
from llmkit.transport.http.http_pool import NotAnsweredError, Pool

__all__ = ["RecordingTransport"]

# The body is decoded already. httpx parses `location` even when it follows no redirect, and fails on an invalid one.
_DROPPED_HEADERS = frozenset({"content-encoding", "content-length", "transfer-encoding", "location"})


class RecordingTransport(httpx.AsyncBaseTransport):
    """Sends the request of the current exchange through the pool, which belongs to the caller."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it.

        Raises:
            httpx.ReadError: Nothing was sent, or no whole answer arrived; the exchange has the reason. Never
                `ConnectError`, which makes LiteLLM send the request a second time by itself.
        """
        exchange = current_exchange.get()
        body = await request.aread()
        try:
            await self._pool.send(exchange, request.method, str(request.url), _own_headers(request, exchange), body)
        except NotAnsweredError as error:
            raise httpx.ReadError(str(error)) from None
        kept = [(name, value) for name, value in exchange.headers.items() if name.lower() not in _DROPPED_HEADERS]
        return httpx.Response(exchange.status or 0, headers=kept, content=_mend_body(exchange), request=request)


def _own_headers(request: httpx.Request, exchange: Exchange) -> dict[str, str]:
    """Return the headers that llmkit wants to send.

    OpenAI's client describes this machine in some, and LiteLLM adds the organization in the environment to the requests
    to any server.
    """
    wanted = {name.lower() for name in exchange.arguments.kwargs.get("extra_headers", ())}
    return {
        name: value
        for name, value in request.headers.items()
        if name in wanted or not name.startswith(("x-stainless-", "openai-organization", "openai-project"))
    }


def _mend_body(exchange: Exchange) -> bytes:
    reply = exchange.reply_json
    if reply is None or exchange.status != httpx.codes.OK:
        return exchange.body
    mended = exchange.spec.mend_reply(reply)
    return exchange.body if mended is reply else json.dumps(mended).encode()
