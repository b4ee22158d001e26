"""The reference path: `litellm.acompletion` as it is, over a transport of ours."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from llmkit.transport.http.exchange import Exchange, current_exchange
from llmkit.transport.paths.library import Library, load_library

if TYPE_CHECKING:
    from llmkit.transport.http.http_pool import Pool

__all__ = ["ReferencePath"]

# LiteLLM's timeout is one of inactivity. Ours covers the whole request and must fire first.
BACKSTOP_S = 5.0


class ReferencePath:
    """Carries every request. Used and closed in one event loop; the pool stays the caller's to close.

    Args:
        pool: Where requests leave.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._handler: Any = None
        self._http: Any = None

    async def complete(self, exchange: Exchange, timeout_s: float) -> Any:
        """Return LiteLLM's `ModelResponse`, or raise what it raises; the exchange records what really happened."""
        task = asyncio.ensure_future(self._start(exchange, timeout_s))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await _stop(task, exchange)
            raise

    async def _start(self, exchange: Exchange, timeout_s: float) -> Any:
        library = load_library()
        library.model_cost.update(exchange.arguments.price_entry)
        # This runs in a separate task, so the variables need no reset.
        current_exchange.set(exchange)
        # LiteLLM runs no callbacks for inner calls, and starts no logging task that outlives the call.
        library.internal_call.set(True)
        return await library.acompletion(
            **exchange.arguments.own_kwargs(),
            client=self._make_client(library, exchange),
            timeout=timeout_s + BACKSTOP_S,
            num_retries=0,
            max_retries=0,
            # LiteLLM calls some models of this kind by another API (Responses) of their provider, and then at paths
            # that other servers do not have.
            _skip_responses_api_bridge=True,
        )

    def _make_client(self, library: Library, exchange: Exchange) -> Any:
        """Return what carries the request: OpenAI's client where LiteLLM calls that, else its own handler."""
        handler = self._http_handler(library)
        arguments = exchange.arguments.kwargs
        if str(arguments["model"]).partition("/")[0] not in library.calls_openai_client:
            return handler
        client = library.openai_client(
            api_key=arguments["api_key"], base_url=arguments["api_base"], http_client=self._http, max_retries=0
        )
        # It takes both from the environment, and would send them to whatever address this is.
        client.organization = client.project = None
        return client

    def _http_handler(self, library: Library) -> Any:
        if self._handler is None:
            from llmkit.transport.http.httpx_transport import RecordingTransport

            handler = library.http_handler(transport=RecordingTransport(self._pool), follow_redirects=False)
            # Once it is given its client it leaves the closing to us; else it does so when it is collected, in a task.
            handler.client = self._http = handler.client
            self._handler = handler
        return self._handler

    async def close(self) -> None:
        """Close the HTTP client. Idempotent."""
        http, self._handler, self._http = self._http, None, None
        if http is not None:
            await http.aclose()
            # LiteLLM starts a task of one step after each reply: let the last ones end.
            await asyncio.sleep(0)


async def _stop(task: asyncio.Task[Any], exchange: Exchange) -> None:
    """End a request without a waiting caller, as soon as it can be ended without a warning.

    Until the request leaves, LiteLLM prepares it in a thread, and a cancellation there drops a coroutine that was never
    awaited. So the transport holds it back instead, some milliseconds later.
    """
    exchange.is_abandoned = True
    if exchange.sent_at_utc is not None:
        task.cancel()
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.wait({task})
