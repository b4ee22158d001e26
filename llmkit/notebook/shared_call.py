"""A call of `evaluate` or `map` that workers take part in, on the side of the process that makes it."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from uuid_utils.compat import uuid7

from llmkit.errors import LLMConfigurationError
from llmkit.notebook.core import SessionCore
from llmkit.notebook.joining import Joining, SharedWork, find_machine, list_travelling_settings
from llmkit.providers import collect_secrets
from llmkit.settings import worker_environment
from llmkit.workers.choose import open_engine
from llmkit.workers.watch import Standing, Watched, watch_jobs

if TYPE_CHECKING:
    from llmkit.workers.engine import Engine, JobFunction

__all__ = ["SharedCall"]


class SharedCall:
    """One call, its workers, and what its parcels contain.

    Args:
        core: The session.
        workers: The value of `workers=`, checked.

    Raises:
        LLMConfigurationError: The session answers from a cassette, which workers do not have.
    """

    def __init__(self, core: SessionCore, workers: Any) -> None:
        if core.runtime.open().cassette is not None:
            raise LLMConfigurationError("A session with replay=... answers by itself: leave workers= out")
        self._core = core
        self._workers = workers
        self.joining = Joining(uuid7(), core.workspace_id, find_machine(), list_travelling_settings(core.settings))

    async def note_start(self) -> None:
        """Note the call in the store, where workers look for it."""
        await self._core.eval_store.note_shared_call(self.joining.call_id, is_stopped=False)

    def open_engine(self) -> Engine:
        """Return the engine. Blocks; call it in a thread."""
        return open_engine(self._workers, worker_environment(self._core.settings))

    def pack(self, work: SharedWork) -> bytes:
        """Return the work as bytes, without any key of this session.

        Raises:
            LLMEvaluationError: It contains one, or cannot travel.
        """
        from llmkit.workers.parcel import pack_parcel

        settings = self._core.settings
        password = urlsplit(settings.database_url).password or ""
        return pack_parcel(work, secrets=(*collect_secrets(settings), password))

    async def watch(self, job: JobFunction, parcel: bytes, *, look: Callable[[], Awaitable[Standing]]) -> Watched:
        """Start the workers and wait for them.

        Raises:
            LLMConfigurationError: No worker could take part; the message says why.
        """
        engine = await asyncio.to_thread(self.open_engine)
        watched = await watch_jobs(engine, job, parcel, look=look, mark_stopped=self.mark_stopped)
        if watched.refusals:
            message = "; ".join(watched.refusals)
            if not watched.joined:
                raise LLMConfigurationError(f"No worker could join. {message}")
            warnings.warn(f"Some workers ended early, and others did their work: {message}", stacklevel=2)
        return watched

    async def mark_stopped(self) -> None:
        """Tell the workers through the store that this call was stopped."""
        await self._core.eval_store.note_shared_call(self.joining.call_id, is_stopped=True)
