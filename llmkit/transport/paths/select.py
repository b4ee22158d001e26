"""Which path carries a request: the fast one where it can, else the reference path."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.settings import RequestPath
from llmkit.transport.http.exchange import Exchange
from llmkit.transport.paths.fast import FastParts, FastPath, load_parts
from llmkit.transport.paths.library import load_library
from llmkit.transport.paths.reference import ReferencePath

if TYPE_CHECKING:
    from llmkit.transport.http.http_pool import Pool

__all__ = ["RequestPaths", "load_here"]

_REHEARSAL_S = 60.0


@dataclass(frozen=True, slots=True)
class _OpenPath:
    pool: Pool
    reference: ReferencePath
    fast: FastPath | None


def _open_path(parts: FastParts | None, reply_limit_mb: int) -> _OpenPath:
    from llmkit.transport.http.http_pool import Pool

    pool = Pool(reply_limit_mb)
    return _OpenPath(pool, ReferencePath(pool), FastPath(pool, parts) if parts is not None else None)


class RequestPaths:
    """Both paths over one pool of connections. Belongs to one event loop, in which it is used and closed.

    Args:
        preferred: The path of a request that both can carry.
        reply_limit_mb: Largest reply that is read, decompressed, in MB.
    """

    def __init__(self, preferred: RequestPath, reply_limit_mb: int) -> None:
        self._preferred = preferred
        self._reply_limit_mb = reply_limit_mb
        self._open_path: _OpenPath | None = None

    async def load(self) -> None:
        """Load litellm, in a worker thread; 3 to 6 s in a process that has not, nothing afterwards."""
        await self._open()

    async def _open(self) -> _OpenPath:
        if self._open_path is None:
            parts = await asyncio.to_thread(_load, self._preferred)
            # Several calls may have waited for the loading.
            if self._open_path is None:
                self._open_path = _open_path(parts, self._reply_limit_mb)
        return self._open_path

    async def rehearse(self, exchange: Exchange) -> None:
        """Take a call up to the moment of leaving, in a worker thread: parts of litellm are loaded by the first one.

        Args:
            exchange: A call that is given up here.
        """
        opened = await self._open()
        # The fast path was tried when it was loaded.
        if opened.fast is None:
            exchange.is_abandoned = True
            await asyncio.to_thread(asyncio.run, _raise_held_back(exchange))

    async def complete(self, exchange: Exchange, timeout_s: float) -> Any:
        """Send the request and return LiteLLM's `ModelResponse`, or raise any exception.

        The exchange records what really happened.

        Cancelling it ends the request at once.

        Args:
            exchange: The record of the request, which is filled.
            timeout_s: The caller's deadline, in seconds. LiteLLM gets it too on the reference path.
        """
        opened = await self._open()
        prepared = opened.fast.prepare(exchange.arguments) if opened.fast is not None else None
        if opened.fast is None or prepared is None:
            return await opened.reference.complete(exchange, timeout_s)
        return await opened.fast.complete(prepared, exchange)

    async def close(self) -> None:
        """Close all connections. Idempotent; a later call opens new ones."""
        opened, self._open_path = self._open_path, None
        if opened is not None:
            await opened.reference.close()
            await opened.pool.close()


def _load(preferred: RequestPath) -> FastParts | None:
    import llmkit.transport.http.http_pool  # noqa: F401 - takes a while too

    load_library()
    return load_parts() if preferred == "fast" else None


def load_here(preferred: RequestPath, exchange: Exchange) -> None:
    """Run `RequestPaths.load` and `RequestPaths.rehearse` in the calling thread, which must have no running event loop.

    Args:
        preferred: The path that will be used.
        exchange: A call that is given up here.
    """
    # The fast path is tried when it is loaded.
    if _load(preferred) is None:
        exchange.is_abandoned = True
        asyncio.run(_raise_held_back(exchange))


async def _raise_held_back(exchange: Exchange) -> None:
    from llmkit.transport.http.http_pool import Pool

    pool = Pool()
    path = ReferencePath(pool)
    await asyncio.gather(path.complete(exchange, _REHEARSAL_S), return_exceptions=True)
    await path.close()
    await pool.close()
