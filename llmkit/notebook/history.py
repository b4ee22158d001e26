"""Stored calls, requests and usage of a workspace as DataFrames, for `Session`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from llmkit.errors import LLMBadRequest, LLMConfigurationError, LLMStoreError
from llmkit.notebook import pandas_accessor
from llmkit.notebook.arguments import check_count, check_names, check_text
from llmkit.notebook.core import SessionCore
from llmkit.notebook.event_loop import run_aside
from llmkit.notebook.status_line import wait_aside
from llmkit.types import RunStatus

if TYPE_CHECKING:
    import pandas as pd
    from sqlalchemy import Connection

    from llmkit.dataframes.usage import UsageFrame

__all__ = ["read_attempts", "read_recordings", "read_runs", "read_store", "read_usage"]

T = TypeVar("T")


def read_runs(
    core: SessionCore,
    status: str | None = None,
    pipeline_run_id: str | None = None,
    since: datetime | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """Check the arguments of `Session.runs` and read the frame."""
    if status is not None:
        check_names([status], [str(each) for each in RunStatus], kind="status")
    check_text("pipeline_run_id", pipeline_run_id)
    _check_filters(since, limit)
    wait_aside(run_aside(_import_dataframes))
    from llmkit.dataframes import store

    return read_store(
        core,
        lambda connection: store.read_runs(
            connection, core.workspace_id, status=status, pipeline_run_id=pipeline_run_id, since=since, limit=limit
        ),
    )


def read_attempts(
    core: SessionCore, pipeline_run_id: str | None = None, since: datetime | None = None, limit: int | None = None
) -> pd.DataFrame:
    """Check the arguments of `Session.attempts` and read the frame."""
    check_text("pipeline_run_id", pipeline_run_id)
    _check_filters(since, limit)
    wait_aside(run_aside(_import_dataframes))
    from llmkit.dataframes import store

    return read_store(
        core,
        lambda connection: store.read_attempts(
            connection, core.workspace_id, pipeline_run_id=pipeline_run_id, since=since, limit=limit
        ),
    )


def read_usage(core: SessionCore, since: datetime | None = None) -> UsageFrame:
    """Check the argument of `Session.usage` and read the frame."""
    _check_filters(since)
    wait_aside(run_aside(_import_dataframes))
    from llmkit.dataframes import usage

    return read_store(core, lambda connection: usage.read_usage(connection, core.workspace_id, since=since))


def read_recordings(core: SessionCore) -> pd.DataFrame:
    """Return the entries of the session's cassette.

    Raises:
        LLMConfigurationError: The session does not replay.
    """
    cassette = core.runtime.open().cassette
    if cassette is None:
        raise LLMConfigurationError("This session does not replay: open one with Session(replay=...)")
    from llmkit.dataframes.build import build_frame

    return build_frame(cassette.rows(), cassette.columns)


def read_store(core: SessionCore, query: Callable[[Connection], T]) -> T:
    """Run a query in the calling thread, after all pending writes; warn if these fail.

    Raises:
        LLMConfigurationError: The session does not record.
        LLMStoreError: The database cannot be read.
    """
    journal = core.runtime.open().journal
    if journal is None:
        raise LLMConfigurationError("Nothing is recorded: set LLM_PERSIST_RUNS=true")
    pandas_accessor.register()
    core.settle()
    try:
        # Nothing is written without need: a store that cannot be written, such as a read-only file, can still be read.
        if journal.is_behind:
            core.run(journal.flush())
    except LLMStoreError as error:
        warnings.warn(f"The latest calls are missing here. {error}", stacklevel=3)
    return journal.read_here(query)


def _check_filters(since: Any, limit: Any = None) -> None:
    if limit is not None:
        check_count("limit", limit, 1)
    if since is not None and (not isinstance(since, datetime) or since.utcoffset() is None):
        got = "one without a time zone" if isinstance(since, datetime) else type(since).__name__
        raise LLMBadRequest(
            f"since must be a datetime with a time zone, for example datetime.now(UTC) - timedelta(hours=1); got {got}"
        )


def _import_dataframes() -> None:
    """Import pandas and the frames, in a thread that Ctrl-C cannot interrupt."""
    import llmkit.dataframes.usage  # noqa: F401
