"""What happened, as DataFrames: the reading part of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from llmkit.errors import LLMBadRequest, LLMConfigurationError
from llmkit.notebook import pandas_accessor
from llmkit.notebook.event_loop import aside
from llmkit.notebook.options import checked_count, checked_names
from llmkit.notebook.runtime import Face
from llmkit.types import RunStatus

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import Connection

    from llmkit.dataframes.usage import UsageFrame

__all__ = ["ReadingFace"]

T = TypeVar("T")


class ReadingFace(Face):
    """Every call, every request, and what they cost."""

    def runs(
        self,
        *,
        status: str | None = None,
        pipeline_run_id: str | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> pd.DataFrame:
        """Every call of this workspace, newest first.

        Args:
            status: Only `STARTED`, `SUCCEEDED` or `FAILED` ones.
            pipeline_run_id: Only those of this pipeline run.
            since: Only calls from then on; an aware datetime.
            limit: At most so many.

        Returns:
            A frame with the columns of `llmkit.dataframes.store.RUN_COLUMNS`.

        Raises:
            LLMBadRequest: A filter is not what it has to be.
            LLMStoreError: The database cannot be read.
        """
        if status is not None:
            checked_names([status], [str(each) for each in RunStatus], what="status")
        _check(since, limit)
        aside(_load).result()
        from llmkit.dataframes.store import runs_frame

        return self._read(
            lambda connection: runs_frame(
                connection, self.workspace, status=status, pipeline_run_id=pipeline_run_id, since=since, limit=limit
            )
        )

    def attempts(
        self, *, pipeline_run_id: str | None = None, since: datetime | None = None, limit: int | None = None
    ) -> pd.DataFrame:
        """Every request that was sent to a provider for this workspace, newest run first.

        Args:
            pipeline_run_id: Only those of this pipeline run.
            since: Only those of calls from then on; an aware datetime.
            limit: At most so many.

        Returns:
            A frame with the columns of `llmkit.dataframes.store.ATTEMPT_COLUMNS`.

        Raises:
            LLMBadRequest: A filter is not what it has to be.
            LLMStoreError: The database cannot be read.
        """
        _check(since, limit)
        aside(_load).result()
        from llmkit.dataframes.store import attempts_frame

        return self._read(
            lambda connection: attempts_frame(
                connection, self.workspace, pipeline_run_id=pipeline_run_id, since=since, limit=limit
            )
        )

    def usage(self, *, since: datetime | None = None) -> UsageFrame:
        """What each route served and what it billed: calls, requests, tokens, cost.

        `s.usage().plot()` draws the billed tokens over time, `s.usage().plot("cost")` their cost where it is known
        (`pip install 'llmkit[plot]'`).

        Args:
            since: Only calls from then on; an aware datetime.

        Returns:
            A frame with the columns of `llmkit.dataframes.store.USAGE_COLUMNS`, one row for each route.

        Raises:
            LLMBadRequest: `since` is something else.
            LLMStoreError: The database cannot be read.
        """
        _check(since)
        aside(_load).result()
        from llmkit.dataframes.usage import read_usage

        return self._read(lambda connection: read_usage(connection, self.workspace, since=since))

    def recordings(self) -> pd.DataFrame:
        """What the cassette of a replaying session holds, and how often each entry was asked for.

        Returns:
            A frame with the columns of `llmkit.replay.cassette.RECORDING_COLUMNS`; `asked` is 0 for what nothing needs.

        Raises:
            LLMConfigurationError: The session does not replay.
        """
        cassette = self._open.runtime().cassette
        if cassette is None:
            raise LLMConfigurationError("This session replays nothing: open one with Session(replay=...)")
        from llmkit.dataframes.store import frame_of

        return frame_of(cassette.rows(), cassette.columns)

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
        pandas_accessor.register()
        self._open.run(journal.flush())
        return journal.read_here(work)


def _check(since: Any, limit: Any = None) -> None:
    if limit is not None:
        checked_count("limit", limit, 1)
    if since is not None and (not isinstance(since, datetime) or since.utcoffset() is None):
        got = "one without a time zone" if isinstance(since, datetime) else type(since).__name__
        raise LLMBadRequest(
            f"since must be a datetime with a time zone, for example datetime.now(UTC) - timedelta(hours=1); got {got}"
        )


def _load() -> None:
    """What makes frames, pandas with it."""
    import llmkit.dataframes.usage  # noqa: F401
