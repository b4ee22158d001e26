"""What happened, as DataFrames: the reading part of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from llmkit import accessor
from llmkit.errors import LLMBadRequest, LLMConfigurationError
from llmkit.faces.opened import Face

if TYPE_CHECKING:
    from datetime import datetime

    import pandas as pd
    from sqlalchemy import Connection

    from llmkit.faces.usage import UsageFrame

__all__ = ["ReadingFace"]

T = TypeVar("T")


class ReadingFace(Face):
    """Every call, every request, and what they cost."""

    def runs(self, **filters: Any) -> pd.DataFrame:
        """Every call of this workspace, newest first.

        Args:
            **filters: `status`, `pipeline_run_id`, `since` (an aware datetime), `limit`.

        Returns:
            A frame with the columns of `llmkit.frames.RUN_COLUMNS`.
        """
        from llmkit.frames import runs_frame

        return self._read(lambda connection: runs_frame(connection, self.workspace, **filters))

    def attempts(self, **filters: Any) -> pd.DataFrame:
        """Every request that was sent to a provider for this workspace, newest run first.

        Args:
            **filters: `pipeline_run_id`, `since` (an aware datetime), `limit`.

        Returns:
            A frame with the columns of `llmkit.frames.ATTEMPT_COLUMNS`.
        """
        from llmkit.frames import attempts_frame

        return self._read(lambda connection: attempts_frame(connection, self.workspace, **filters))

    def usage(self, *, since: datetime | None = None) -> UsageFrame:
        """What each route served and what it billed: calls, requests, tokens, cost.

        `s.usage().plot()` draws the billed tokens over time, `s.usage().plot("cost")` their cost where it is known
        (`pip install 'llmkit[plot]'`).

        Args:
            since: Only calls from then on; an aware datetime.

        Returns:
            A frame with the columns of `llmkit.frames.USAGE_COLUMNS`, one row for each route.
        """
        from llmkit.faces.usage import read_usage

        return self._read(lambda connection: read_usage(connection, self.workspace, since=since))

    def recordings(self) -> pd.DataFrame:
        """What the cassette of a replaying session holds, and how often each entry was asked for.

        Returns:
            A frame with the columns of `llmkit.cassette.RECORDING_COLUMNS`; `asked` is 0 for what nothing needs.

        Raises:
            LLMConfigurationError: The session does not replay.
        """
        cassette = self._open.runtime().cassette
        if cassette is None:
            raise LLMConfigurationError("This session replays nothing: open one with Session(replay=...)")
        from llmkit.cassette import RECORDING_COLUMNS
        from llmkit.frames import frame_of

        return frame_of(cassette.rows(), RECORDING_COLUMNS)

    async def aruns(self, **filters: Any) -> pd.DataFrame:
        """`runs` for async code, which it does not block."""
        return await asyncio.to_thread(self.runs, **filters)

    async def aattempts(self, **filters: Any) -> pd.DataFrame:
        """`attempts` for async code, which it does not block."""
        return await asyncio.to_thread(self.attempts, **filters)

    async def ausage(self, *, since: datetime | None = None) -> UsageFrame:
        """`usage` for async code, which it does not block."""
        return await asyncio.to_thread(self.usage, since=since)

    def _read(self, work: Callable[[Connection], T]) -> T:
        journal = self._open.runtime().journal
        if journal is None:
            raise LLMConfigurationError("Nothing is recorded: LLM_PERSIST_RUNS is off")
        accessor.register()
        self._open.run(journal.flush())
        try:
            return journal.read_here(work)
        except (TypeError, ValueError) as error:
            raise LLMBadRequest(str(error)) from None
