"""Who is asked before a request leaves: a guard over everything that is sent in its context."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Protocol

from llmkit.ports import AttemptLog, ClientReply
from llmkit.types import LLMRequest, Route

__all__ = ["Guard", "Send", "guarded", "watched_by"]

Send = Callable[[], Awaitable[ClientReply]]


class Guard(Protocol):
    """Decides about every single request, retries included."""

    async def send(self, route: Route, request: LLMRequest, log: AttemptLog, send: Send) -> ClientReply:
        """Send the request when it may leave; `send` adds to the log what it sent.

        Raises:
            LLMBudgetExhausted: It may not. Nothing was sent.
            LLMError: What `send` raised.
        """
        ...


_guard: ContextVar[Guard | None] = ContextVar("llmkit_guard", default=None)


@contextmanager
def watched_by(guard: Guard) -> Iterator[None]:
    """Let the guard decide about all that is sent in this block, and in the tasks and threads that begin in it."""
    token = _guard.set(guard)
    try:
        yield
    finally:
        _guard.reset(token)


def guarded(route: Route, request: LLMRequest, log: AttemptLog, send: Send) -> Send:
    """`send` under the guard of this context, or as it is when there is none."""
    guard = _guard.get()
    return send if guard is None else partial(guard.send, route, request, log, send)
