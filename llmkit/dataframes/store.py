"""Rows of the store as DataFrames: fixed columns, in a fixed order, with fixed dtypes, even if there are no rows.

The contract is the five tables of columns below. Times are `datetime64[us, UTC]`, whole numbers `Int64`, numbers
`Float64`, flags `boolean` and strings `string`; all have `<NA>` for unknown values. Ids have hyphens. pandas is
imported when the first frame is built.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from uuid import UUID

from sqlalchemy import (
    Connection,
    DateTime,
    Select,
    TableClause,
    Text,
    case,
    cast,
    column,
    func,
    literal_column,
    select,
    table,
)
from sqlalchemy.sql.elements import ColumnElement

from llmkit.dataframes.build import Columns, Kind, build_frame, build_frame_from_batches
from llmkit.errors import CANCELLED_CODE
from llmkit.persistence.migrate import list_columns

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ATTEMPT_COLUMNS",
    "EVAL_RESULT_COLUMNS",
    "EVAL_RUN_COLUMNS",
    "RUN_COLUMNS",
    "USAGE_COLUMNS",
    "build_frame",
    "count_eval_results",
    "read_attempts",
    "read_eval_results",
    "read_eval_runs",
    "read_latest_pipeline_run",
    "read_runs",
    "read_stored_answers",
    "summarize_usage",
    "to_stored_time",
]

_KINDS: Final[Mapping[str, Kind]] = {
    "CHAR(32)": "uuid",
    "DATETIME": "time",
    "VARCHAR": "string",
    "TEXT": "string",
    "INTEGER": "Int64",
    "BIGINT": "Int64",
    "FLOAT": "Float64",
    "BOOLEAN": "boolean",
}


def _derive_columns(table_name: str, *, first: Sequence[str] = (), without: Collection[str] = ()) -> Columns:
    """Return the columns of a table, of which some come first and others are left out."""
    stored = {name: _KINDS[kind] for name, kind in list_columns(table_name).items() if name not in without}
    return {**{name: stored[name] for name in first}, **stored}


RUN_COLUMNS: Final[Columns] = _derive_columns(
    "llm_runs",
    # A person looks for the question and the answer; an id is for programs.
    first=("request_preview", "response_preview", "status", "created_at_utc", "finished_at_utc", "id"),
    # These say who is working on a call, and `response_preview` is enough of the answer.
    without=("owner", "heartbeat_at_utc", "flight_key", "result_json"),
)
_OF_ATTEMPTS: Final = _derive_columns("llm_attempts", first=("run_id", "number", "workspace_id"))
ATTEMPT_COLUMNS: Final[Columns] = {
    **{name: _OF_ATTEMPTS[name] for name in ("run_id", "number", "workspace_id")},
    "pipeline_run_id": RUN_COLUMNS["pipeline_run_id"],
    "started_at_utc": _OF_ATTEMPTS["started_at_utc"],
    **_OF_ATTEMPTS,
}
EVAL_RUN_COLUMNS: Final[Columns] = _derive_columns("eval_runs")
EVAL_RESULT_COLUMNS: Final[Columns] = _derive_columns("eval_results")


class ServedCalls(NamedTuple):
    """Calls that a route answered, or that were pinned to it and failed."""

    calls: int = 0
    failed_calls: int = 0
    cancelled_calls: int = 0
    served_from_store: int = 0
    served_input_tokens: int | None = None
    served_output_tokens: int | None = None


class SentRequests(NamedTuple):
    """Requests that were sent to a route."""

    requests: int = 0
    failed_requests: int = 0
    cancelled_requests: int = 0
    requests_without_tokens: int = 0
    billed_input_tokens: int | None = None
    billed_output_tokens: int | None = None
    billed_cost_usd: float | None = None
    streamed_requests: int = 0
    mean_first_token_ms: float | None = None


USAGE_COLUMNS: Final[Columns] = {
    "route": "string",
    **dict.fromkeys((*ServedCalls._fields, *SentRequests._fields), "Int64"),
    **dict.fromkeys(("billed_cost_usd", "mean_first_token_ms"), "Float64"),
}
ROWS_AT_ONCE = 300
# Columns with few different values, of all tables. SQLite sends them as one JSON array per row, which is faster: see
# `build_frame_from_batches`.
REPETITIVE_COLUMNS: Final = frozenset(
    {
        *("workspace_id", "stage", "status", "profile", "epoch", "number", "attempts", "served_from", "output_mode"),
        *("route", "requested_route", "served_route", "provider", "model", "response_model", "model_digest"),
        *("schema_sha256", "finish_reason", "usage_estimated", "valid_first_try", "outcome"),
        *("status_code", "error_code"),
    }
)


def read_runs(
    connection: Connection,
    workspace_id: str,
    *,
    pipeline_run_id: str | None = None,
    status: str | None = None,
    since: datetime | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """Return the runs of a workspace, newest first, with `RUN_COLUMNS`.

    Args:
        connection: Connection to a database at head.
        workspace_id: Name of the workspace.
        pipeline_run_id: Only runs of this pipeline run.
        status: Only `STARTED`, `SUCCEEDED` or `FAILED` runs.
        since: Only runs created at this time or later; an aware datetime.
        limit: At most N runs.

    Raises:
        SQLAlchemyError: The database fails.
        ValueError: `since` has no time zone.
    """
    dialect = connection.dialect.name
    query = _select("llm_runs", RUN_COLUMNS, dialect).where(column("workspace_id") == workspace_id)
    for name, wanted in (("pipeline_run_id", pipeline_run_id), ("status", status)):
        if wanted is not None:
            query = query.where(column(name) == wanted)
    if since is not None:
        query = query.where(column("created_at_utc") >= to_stored_time(since, dialect))
    if limit is None and dialect == "sqlite":
        return _fetch_newest_first(connection, query, column("created_at_utc"), RUN_COLUMNS, {"id": False})
    newest_first = query.order_by(column("created_at_utc").desc(), column("id").desc()).limit(limit)
    return _fetch_frame(connection, newest_first, RUN_COLUMNS)


def read_attempts(
    connection: Connection,
    workspace_id: str,
    *,
    pipeline_run_id: str | None = None,
    since: datetime | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """Return the requests sent for a workspace, newest run first, with `ATTEMPT_COLUMNS`.

    The arguments are those of `read_runs`; `since` refers to the creation of the run.
    """
    dialect = connection.dialect.name
    runs = table("llm_runs", *[column(name) for name in ("id", "workspace_id", "pipeline_run_id", "created_at_utc")])
    attempts = table("llm_attempts", *[column(name) for name in ATTEMPT_COLUMNS if name != "pipeline_run_id"])
    sources = {**{each.name: each for each in attempts.c}, "pipeline_run_id": runs.c.pipeline_run_id}
    query = select(*_select_columns(sources, ATTEMPT_COLUMNS, dialect)).select_from(
        attempts.join(runs, runs.c.id == attempts.c.run_id)
    )
    query = query.where(runs.c.workspace_id == workspace_id)
    if pipeline_run_id is not None:
        query = query.where(runs.c.pipeline_run_id == pipeline_run_id)
    if since is not None:
        query = query.where(runs.c.created_at_utc >= to_stored_time(since, dialect))
    if limit is None and dialect == "sqlite":
        return _fetch_newest_first(
            connection, query, runs.c.created_at_utc, ATTEMPT_COLUMNS, {"run_id": False, "number": True}
        )
    ordered = query.order_by(runs.c.created_at_utc.desc(), runs.c.id.desc(), attempts.c.number).limit(limit)
    return _fetch_frame(connection, ordered, ATTEMPT_COLUMNS)


def read_eval_runs(connection: Connection, workspace_id: str) -> pd.DataFrame:
    """Return the evaluations of a workspace, newest first, with `EVAL_RUN_COLUMNS`."""
    query = _select("eval_runs", EVAL_RUN_COLUMNS, connection.dialect.name)
    mine = query.where(column("workspace_id") == workspace_id)
    return _fetch_frame(
        connection, mine.order_by(column("created_at_utc").desc(), column("id").desc()), EVAL_RUN_COLUMNS
    )


def read_eval_results(connection: Connection, eval_run_id: UUID) -> pd.DataFrame:
    """Return the results of an evaluation by sample, route and epoch, with `EVAL_RESULT_COLUMNS`."""
    dialect = connection.dialect.name
    key = eval_run_id.hex if dialect == "sqlite" else eval_run_id
    query = _select("eval_results", EVAL_RESULT_COLUMNS, dialect).where(column("eval_run_id") == key)
    frame = _fetch_frame(connection, query, EVAL_RESULT_COLUMNS)
    # Sorted here, because databases differ in how they sort text.
    return frame.sort_values(["sample_id", "route", "epoch"], ignore_index=True)


def summarize_usage(connection: Connection, workspace_id: str, *, since: datetime | None = None) -> pd.DataFrame:
    """Return what each route served and billed, with `USAGE_COLUMNS`, ordered by route.

    "Served" counts calls (`llm_runs`): `calls` were answered by the route, `served_from_store` of them cost nothing,
    `failed_calls` were pinned to it and failed, and `cancelled_calls` were stopped before they ended. "Billed" counts
    requests (`llm_attempts`), including those of failed calls; tokens on local machines have no price. Sums
    cover known values, and are missing if none is known; `requests_without_tokens` is the number of requests without a
    token count. `mean_first_token_ms` is that of the `streamed_requests`. Calls that failed without a pinned route have
    the route `<NA>`.

    Args:
        connection: Connection to a database at head.
        workspace_id: Name of the workspace.
        since: Only calls created at this time or later; an aware datetime.
    """
    runs = table("llm_runs", *[column(name) for name in RUN_COLUMNS])
    mine = [runs.c.workspace_id == workspace_id]
    if since is not None:
        mine.append(runs.c.created_at_utc >= to_stored_time(since, connection.dialect.name))
    by_call = _sum_by_route(connection, _select_served(runs).where(*mine), ServedCalls)
    by_request = _sum_by_route(connection, _select_sent(runs).where(*mine), SentRequests)
    routes = sorted({*by_call, *by_request}, key=lambda name: (name is None, name or ""))
    rows = [(name, *by_call.get(name, ServedCalls()), *by_request.get(name, SentRequests())) for name in routes]
    return build_frame(rows, USAGE_COLUMNS)


def _select_served(runs: TableClause) -> Select[Any]:
    succeeded = runs.c.status == "SUCCEEDED"
    is_cancelled = func.coalesce(runs.c.error_code, "") == CANCELLED_CODE
    route = case((succeeded, _format_route(runs)), else_=runs.c.requested_route)
    sums = {
        "calls": _count(succeeded),
        "failed_calls": _count((runs.c.status == "FAILED") & ~is_cancelled),
        "cancelled_calls": _count((runs.c.status == "FAILED") & is_cancelled),
        "served_from_store": _count(succeeded & (runs.c.served_from != "provider")),
        "served_input_tokens": func.sum(case((succeeded, runs.c.input_tokens))),
        "served_output_tokens": func.sum(case((succeeded, runs.c.output_tokens))),
    }
    return select(route, *(sums[name] for name in ServedCalls._fields)).group_by(literal_column("1"))


def _select_sent(runs: TableClause) -> Select[Any]:
    attempts = table("llm_attempts", *[column(name) for name in _OF_ATTEMPTS])
    sums = {
        "requests": func.count(),
        "failed_requests": _count(attempts.c.status == "FAILED"),
        "cancelled_requests": _count(attempts.c.status == "CANCELLED"),
        "requests_without_tokens": _count(attempts.c.input_tokens.is_(None)),
        "billed_input_tokens": func.sum(attempts.c.input_tokens),
        "billed_output_tokens": func.sum(attempts.c.output_tokens),
        "billed_cost_usd": func.sum(attempts.c.cost_usd),
        "streamed_requests": func.count(attempts.c.first_token_ms),
        "mean_first_token_ms": func.avg(attempts.c.first_token_ms),
    }
    return (
        select(_format_route(attempts), *(sums[name] for name in SentRequests._fields))
        .select_from(attempts.join(runs, runs.c.id == attempts.c.run_id))
        .group_by(attempts.c.provider, attempts.c.model)
    )


def _format_route(source: TableClause) -> ColumnElement[Any]:
    return source.c.provider.op("||")("/").op("||")(source.c.model)


def _count(condition: ColumnElement[bool]) -> ColumnElement[Any]:
    return func.sum(case((condition, 1), else_=0))


Sums = TypeVar("Sums", ServedCalls, SentRequests)


def _sum_by_route(connection: Connection, query: Select[Any], sums: type[Sums]) -> dict[str | None, Sums]:
    return {row[0]: sums(*map(_convert_count, row[1:])) for row in connection.execute(query)}


def _convert_count(value: Any) -> Any:
    # PostgreSQL returns sums of whole numbers as Decimal.
    return int(value) if isinstance(value, Decimal) else value


def read_stored_answers(
    connection: Connection, workspace_id: str, pipeline_run_id: str
) -> list[tuple[str, str | None]]:
    """Return metadata and stored answer, as JSON, of the succeeded runs of a pipeline run, oldest first."""
    names = ("workspace_id", "pipeline_run_id", "status", "created_at_utc", "id", "metadata_json", "result_json")
    runs = table("llm_runs", *[column(name) for name in names])
    query = select(runs.c.metadata_json, runs.c.result_json).where(
        runs.c.workspace_id == workspace_id,
        runs.c.pipeline_run_id == pipeline_run_id,
        runs.c.status == "SUCCEEDED",
    )
    return [(row[0], row[1]) for row in connection.execute(query.order_by(runs.c.created_at_utc, runs.c.id))]


def read_latest_pipeline_run(connection: Connection, workspace_id: str, stage: str) -> str | None:
    """Return the pipeline run of the newest succeeded run of a stage, or None."""
    names = ("workspace_id", "pipeline_run_id", "stage", "status", "created_at_utc", "id")
    runs = table("llm_runs", *[column(name) for name in names])
    query = select(runs.c.pipeline_run_id).where(
        runs.c.workspace_id == workspace_id, runs.c.stage == stage, runs.c.status == "SUCCEEDED"
    )
    newest_first = query.order_by(runs.c.created_at_utc.desc(), runs.c.id.desc())
    found: str | None = connection.execute(newest_first.limit(1)).scalar()
    return found


def count_eval_results(connection: Connection, workspace_id: str) -> dict[str, tuple[int, int]]:
    """Return the number of results, and of those without a valid answer, for each evaluation with results, by name."""
    runs = table("eval_runs", *[column(name) for name in ("id", "workspace_id", "name")])
    results = table("eval_results", *[column(name) for name in ("eval_run_id", "status")])
    failed = func.sum(case((results.c.status == "FAILED", 1), else_=0))
    query = select(runs.c.name, func.count(), failed).select_from(
        results.join(runs, runs.c.id == results.c.eval_run_id)
    )
    rows = connection.execute(query.where(runs.c.workspace_id == workspace_id).group_by(runs.c.name))
    return {name: (stored, without_answer) for name, stored, without_answer in rows}


def _fetch_frame(connection: Connection, query: Select[Any], columns: Columns) -> pd.DataFrame:
    packed = REPETITIVE_COLUMNS if connection.dialect.name == "sqlite" else ()
    return build_frame_from_batches(connection.execute(query).partitions(ROWS_AT_ONCE), columns, packed=packed)


def _fetch_newest_first(
    connection: Connection, query: Select[Any], created: ColumnElement[Any], columns: Columns, ties: Mapping[str, bool]
) -> pd.DataFrame:
    """Return the rows newest first: SQLite's index orders the times, and equal times are ordered here.

    If the query also ordered equal times, SQLite would pass every complete row through its sorter.

    Args:
        connection: Connection to SQLite.
        query: Unordered query.
        created: Column of the index.
        columns: Columns of the frame.
        ties: Columns that order rows of the same time, each with whether it is ascending.
    """
    hidden = "_created"
    query = query.add_columns(created.label(hidden)).order_by(created.desc())
    frame = _fetch_frame(connection, query, {**columns, hidden: "string"})
    order = {hidden: False, **ties}
    if not _is_sorted(frame, order):
        frame = frame.sort_values(list(order), ascending=list(order.values()), ignore_index=True)
    return frame.drop(columns=hidden)


def _is_sorted(frame: pd.DataFrame, order: Mapping[str, bool]) -> bool:
    import numpy as np

    is_tied = np.ones(max(len(frame) - 1, 0), dtype=bool)
    for name, is_ascending in order.items():
        values = frame[name].array
        before, after = values[:-1], values[1:]
        is_wrong = np.asarray(before > after if is_ascending else before < after, dtype=bool)
        if (is_tied & is_wrong).any():
            return False
        is_tied &= np.asarray(before == after, dtype=bool)
    return True


def _select(table_name: str, columns: Columns, dialect: str) -> Select[Any]:
    return select(*_select_columns({name: column(name) for name in columns}, columns, dialect)).select_from(
        table(table_name)
    )


def _select_columns(
    sources: Mapping[str, ColumnElement[Any]], columns: Columns, dialect: str
) -> list[ColumnElement[Any]]:
    """Return the expressions to select: ids as text on PostgreSQL; repetitive columns as one array on SQLite."""
    if dialect == "sqlite":
        together = func.json_array(*(sources[name] for name in columns if name in REPETITIVE_COLUMNS))
        return [together, *(sources[name] for name in columns if name not in REPETITIVE_COLUMNS)]
    return [cast(sources[name], Text) if kind == "uuid" else sources[name] for name, kind in columns.items()]


def to_stored_time(value: datetime, dialect: str) -> Any:
    """Return an aware datetime in the form that the database stores, for a comparison.

    Raises:
        ValueError: It has no time zone.
    """
    if value.utcoffset() is None:
        raise ValueError("since must have a time zone, for example datetime.now(UTC) - timedelta(hours=1)")
    in_utc = value.astimezone(UTC)
    return in_utc.strftime("%Y-%m-%d %H:%M:%S.%f") if dialect == "sqlite" else cast(in_utc, DateTime(timezone=True))
