"""The core of a session: what its methods, and the functions behind them, work with."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from llmkit.cleanup import close_when_dropped, closes_at_exit, is_exiting
from llmkit.errors import LLMConfigurationError
from llmkit.notebook.arguments import build_context
from llmkit.notebook.event_loop import CANCEL_GRACE_S, LoopJob, LoopThread
from llmkit.notebook.fallback_warning import FallbackWarner
from llmkit.notebook.runtime import LazyRuntime
from llmkit.notebook.status_line import StatusLine
from llmkit.settings import LLMSettings, load_settings
from llmkit.types import RequestContext

if TYPE_CHECKING:
    import pandas as pd

    from llmkit.bootstrap import Runtime
    from llmkit.eval_ports import EvalStore
    from llmkit.evals import EvalReport
    from llmkit.evals.policies import Policy
    from llmkit.service import LLMService

__all__ = ["SessionCore", "build_core"]

T = TypeVar("T")


class SessionCore:
    """Runtime, event loop, context and settings of one session.

    It is closed when nothing refers to it any more: neither its session, nor a conversation, agent or report of it, nor
    a call in progress.

    Attributes:
        runtime: Opened by the first call.
        loop: The thread in which all async code of the session runs.
        context: Workspace of the calls.
        settings: Settings in force.
        fallback_warner: Warns when another route than the first choice answers, or a base model without examples.
        policies: Those of `Session.policy`, by name.
        left: Calls whose stream was left, and which may still be recording that. A finalizer adds them.
    """

    def __init__(self, runtime: LazyRuntime, loop: LoopThread, context: RequestContext, settings: LLMSettings) -> None:
        self.runtime = runtime
        self.loop = loop
        self.context = context
        self.settings = settings
        self._read_partial: Callable[[], pd.DataFrame | EvalReport | None] | None = None
        self.fallback_warner = FallbackWarner()
        self.policies: dict[str, Policy] = {}
        self.left: deque[LoopJob[Any]] = deque()
        close_when_dropped(self, partial(_close, runtime, loop))

    @property
    def workspace_id(self) -> str:
        """Name of the workspace."""
        return self.context.workspace_id

    @property
    def partial(self) -> pd.DataFrame | EvalReport | None:
        """Result so far of an interrupted `map` or `evaluate`; otherwise None."""
        return None if self._read_partial is None else self._read_partial()

    def keep_partial(self, read: Callable[[], pd.DataFrame | EvalReport | None] | None) -> None:
        """Keep how to read the result so far; None when there is none."""
        self._read_partial = read

    @property
    def service(self) -> LLMService:
        """The service of the open runtime."""
        return self.runtime.open().service

    @property
    def eval_store(self) -> EvalStore:
        """The store of evaluations.

        Raises:
            LLMConfigurationError: The session does not record.
        """
        store = self.runtime.open().eval_store
        if store is None:
            raise LLMConfigurationError("An evaluation needs a store: set LLM_PERSIST_RUNS=true")
        return store

    def run(self, work: Coroutine[Any, Any, T], tick: Callable[[], None] | None = None) -> T:
        """Run a coroutine in the session's loop and wait for it, from sync code.

        Args:
            work: The coroutine.
            tick: Called several times a second in the waiting thread, to draw progress there.
        """
        with self.runtime.mark_busy():
            try:
                self.loop.refuse_waiting()
                self.runtime.open()
                self.settle()
            except BaseException:
                work.close()
                raise
            line = StatusLine()
            try:
                result = self.loop.run(work, tick or line.draw)
            finally:
                line.close()
        self.finish_call()
        return result

    def settle(self) -> None:
        """Wait a moment for calls whose stream was left: they hold a key, or a turn, until they are recorded."""
        while self.left and not self.loop.is_current_thread:
            self.left.popleft().cancel_and_wait()

    async def settle_async(self) -> None:
        """Await the same without blocking the running loop."""
        while self.left and not self.loop.is_current_thread:
            await asyncio.to_thread(self.left.popleft().cancel_and_wait)

    def finish_call(self) -> None:
        """Do what follows a sync call that has ended well."""
        if is_exiting() and not closes_at_exit():
            self.close()  # nothing else will: the hook that closes all sessions has run already
        self.fallback_warner.warn()

    async def run_async(self, work: Coroutine[Any, Any, T], tick: Callable[[], None] | None = None) -> T:
        """Run a coroutine in the session's loop and await it, from any other loop; arguments as for `run`."""
        with self.runtime.mark_busy():
            try:
                await self.runtime.open_async()
                await self.settle_async()
            except BaseException:
                work.close()
                raise
            result = await self.loop.run_async(work, tick)
        self.fallback_warner.warn()
        return result

    async def run_in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a blocking function of the session without blocking the caller's event loop."""
        return await asyncio.to_thread(function, *arguments)

    def split_options(self, options: Mapping[str, Any]) -> tuple[RequestContext, dict[str, Any]]:
        """Separate the context of a call from the fields of its request; drop options that are None."""
        fields = {name: value for name, value in options.items() if value is not None}
        own = {name: fields.pop(name) for name in ("pipeline_run_id", "stage") if name in fields}
        return (build_context(self.workspace_id, **own) if own else self.context), fields

    def close(self) -> None:
        """Finish pending writes and release everything. Idempotent; a forked child leaves its parent's things alone.

        Raises:
            LLMError: Called where waiting would never end. The session stays open.
        """
        _close(self.runtime, self.loop)


def build_core(
    workspace: str | None, settings: LLMSettings | None, replay: Any, overrides: Mapping[str, Any]
) -> SessionCore:
    """Check the arguments of `Session` and build its core. Opens nothing.

    Raises:
        LLMConfigurationError: One cannot be used.
    """
    if settings is not None and overrides:
        raise LLMConfigurationError("Give Session either settings=... or single settings, not both")
    if not isinstance(settings, LLMSettings | None):
        raise LLMConfigurationError(
            f"settings must be LLMSettings, from load_settings(); got {type(settings).__name__}. Pass single settings "
            'by name: Session(ollama_model="...")'
        )
    if not isinstance(replay, str | PathLike | None):
        raise LLMConfigurationError(f"replay must be the path of a cassette; got {type(replay).__name__}")
    settings = settings or load_settings(**overrides)
    context = build_context(settings.workspace_id if workspace is None else workspace)
    runtime = LazyRuntime(settings, None if replay is None else Path(replay))
    return SessionCore(runtime, LoopThread(), context, settings)


def _close(lazy_runtime: LazyRuntime, loop: LoopThread) -> None:
    if sys.is_finalizing():  # the hook of the exit has closed it, and the threads that this needs stand still
        return
    loop.refuse_waiting()
    runtime = lazy_runtime.detach()
    if not lazy_runtime.is_own_process:
        return
    if runtime is not None:
        closing = _close_runtime(runtime)
        # Python 3.12 and later start no thread while the interpreter exits. There is no call to cancel then either.
        _ = asyncio.run(closing) if is_exiting() and not loop.is_running else loop.run(closing)
    loop.stop()


async def _close_runtime(runtime: Runtime) -> None:
    # Cancelled calls still record what they had sent, so they must end before the store is closed.
    calls = asyncio.all_tasks() - {asyncio.current_task()}
    for call in calls:
        call.cancel()
    if calls:
        await asyncio.wait(calls, timeout=CANCEL_GRACE_S)
    await runtime.close()
