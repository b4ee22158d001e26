"""Functions of the user's, run so that none can block or end an evaluation: in threads, or as tasks of the loop."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from contextlib import suppress
from threading import Thread
from typing import Any, TypeVar

from llmkit.errors import describe_exception

__all__ = ["CANCEL_TIMEOUT_S", "catch_exit", "is_asynchronous", "read_source", "run_in_thread", "to_exception"]

# Time for a cancelled function to end; after that it is abandoned.
CANCEL_TIMEOUT_S = 1.0

T = TypeVar("T")


def is_asynchronous(function: Callable[..., Any]) -> bool:
    """Return whether calling a function, or an object that can be called, gives a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def read_source(function: Any) -> str:
    """Return the source text of a function or class.

    Raises:
        OSError: There is none.
        TypeError: It is something else.
    """
    code = getattr(inspect.unwrap(function), "__code__", None)
    # Code of `exec` has this name too, and from Python 3.13 on the text of `python -c` would be taken for its source.
    if code is not None and code.co_filename == "<string>":
        raise OSError("a function that was made by exec has no source")
    return inspect.getsource(function)


async def run_in_thread(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a daemon thread: the thread pools of asyncio are joined at exit, and would wait for it.

    Args:
        name: Name of the thread.
        function: The function.
        *arguments: Its arguments.

    Raises:
        Exception: As the function; other exceptions of it become a RuntimeError.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def settle(found: Any, error: BaseException | None) -> None:
        if not ended.done():
            ended.set_result((found, error))

    def work() -> None:
        found, problem = None, None
        try:
            found = function(*arguments)
        except BaseException as error:  # noqa: BLE001 (raised again by the caller)
            problem = error
        with suppress(RuntimeError):
            # A library that ran a loop here, such as Pydantic AI's `run_sync`, leaves it open.
            asyncio.get_event_loop().close()
        with suppress(RuntimeError):  # the loop is closed: the function was abandoned
            loop.call_soon_threadsafe(settle, found, problem)

    Thread(target=contextvars.copy_context().run, args=(work,), name=name, daemon=True).start()
    found, error = await ended
    if error is not None:
        raise to_exception(error)
    return found


async def catch_exit(work: Awaitable[T]) -> T:
    """Await work whose SystemExit would end the event loop.

    Raises:
        RuntimeError: In its place.
    """
    try:
        return await work
    except SystemExit as error:
        raise to_exception(error) from None


def to_exception(error: BaseException) -> Exception:
    """Return an exception that may leave the function: others, such as GeneratorExit, would end the evaluation."""
    return error if isinstance(error, Exception) else RuntimeError(describe_exception(error))
