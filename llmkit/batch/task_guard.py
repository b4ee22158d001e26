"""Protection of a session's tasks from the user's code, which runs beside them in the same event loop.

`for task in asyncio.all_tasks(): task.cancel()` in an async scorer reaches every call of the session. So tasks of that
loop remember in which piece of the user's code they were started, and the context variable says which piece asks: it
may cancel what it started itself, and nothing else. The session's own code is in no such piece and may cancel all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

__all__ = [
    "cancel_task",
    "cancel_user_task",
    "guard_loop",
    "guard_tasks",
    "start_session_task",
    "start_user_task",
]

T = TypeVar("T")


class _Piece:
    """One call of the user's code, inside another one if that evaluates in turn."""

    __slots__ = ("outer",)

    def __init__(self, outer: _Piece | None) -> None:
        self.outer = outer

    def contains(self, piece: _Piece | None) -> bool:
        while piece is not None and piece is not self:
            piece = piece.outer
        return piece is self


_piece: ContextVar[_Piece | None] = ContextVar("llmkit_piece", default=None)


class GuardedTask(asyncio.Task[Any]):
    """A task that only its own piece of the user's code, or the session, can cancel."""

    piece: _Piece | None = None

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel the task, unless other code of the user's asks for it."""
        asking = _piece.get()
        return (asking is None or asking.contains(self.piece)) and super().cancel(msg)


def guard_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Make a loop the session's: its tasks are guarded, and the user's code cannot shut it down."""
    # The stubs want a generic function with the options of one version of Python.
    loop.set_task_factory(_make_task)  # type: ignore[arg-type]
    # The session itself shuts it down by the method of its class.
    for name in ("shutdown_asyncgens", "shutdown_default_executor"):
        setattr(loop, name, _refuse)


def _make_task(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
    task = GuardedTask(work, loop=loop, **options)
    piece = _piece.get()
    if piece is not None:
        task.piece = piece
    return task


async def _refuse(*_arguments: Any) -> None:
    raise RuntimeError("this event loop is the session's, which goes on: close your own resources only")


@contextmanager
def guard_tasks() -> Iterator[None]:
    """Let the sync code of the user's in this block cancel no task that it has not started."""
    token = _piece.set(_Piece(_piece.get()))
    try:
        yield
    finally:
        _piece.reset(token)


def start_user_task(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start the user's code as a task of its own, which can cancel itself and what it starts, and nothing else."""
    with guard_tasks():
        return asyncio.get_running_loop().create_task(work)


def cancel_user_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task of the user's code. Tasks of others that it waits for, by `gather` for example, go on."""
    token = _piece.set(getattr(task, "piece", None))
    try:
        task.cancel()
    finally:
        _piece.reset(token)


@contextmanager
def _as_session() -> Iterator[None]:
    token = _piece.set(None)
    try:
        yield
    finally:
        _piece.reset(token)


def start_session_task(work: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop | None = None) -> asyncio.Task[T]:
    """Start a task that calls of several pieces wait for, so the piece that happens to be first must not cancel it."""
    with _as_session():
        return (loop or asyncio.get_running_loop()).create_task(work)


def cancel_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task in the session's name, also from a finalizer that interrupts code of the user's."""
    with _as_session():
        task.cancel()
