"""Rows of the store as DataFrames: fixed columns, in a fixed order, with fixed dtypes, on an empty table too.

The contract is the five tables of columns below. Times are `datetime64[us, UTC]`; whole numbers `Int64`, numbers
`Float64`, flags `boolean` and texts `string`, all of which have `<NA>` for what is unknown. Ids are in the usual form
with hyphens. pandas is imported when the first frame is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Literal
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

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "ATTEMPT_COLUMNS",
    "EVAL_RESULT_COLUMNS",
    "EVAL_RUN_COLUMNS",
    "RUN_COLUMNS",
    "USAGE_COLUMNS",
    "attempts_frame",
    "eval_results_frame",
    "eval_runs_frame",
    "frame_of",
    "moment",
    "runs_frame",
    "stored_answers",
    "usage_frame",
]

Kind = Literal["uuid", "time", "string", "Int64", "Float64", "boolean"]
Columns = Mapping[str, Kind]

USAGE: Final[Columns] = {
    "input_tokens": "Int64",
    "output_tokens": "Int64",
    "total_tokens": "Int64",
    "cached_input_tokens": "Int64",
    "reasoning_tokens": "Int64",
    "usage_estimated": "boolean",
}
RUN_COLUMNS: Final[Columns] = {
    "id": "uuid",
    "created_at_utc": "time",
    "finished_at_utc": "time",
    "workspace_id": "string",
    "pipeline_run_id": "string",
    "stage": "string",
    "status": "string",
    "requested_route": "string",
    "provider": "string",
    "model": "string",
    "response_model": "string",
    "profile": "string",
    "epoch": "Int64",
    "idempotency_key": "string",
    "prompt_sha256": "string",
    "served_from": "string",
    "source_run_id": "uuid",
    "finish_reason": "string",
    **USAGE,
    "cost_usd": "Float64",
    "latency_ms": "Float64",
    "attempts": "Int64",
    "error_code": "string",
    "error_message": "string",
    "request_preview": "string",
    "response_preview": "string",
    "metadata_json": "string",
    "plan_json": "string",
}
ATTEMPT_COLUMNS: Final[Columns] = {
    "run_id": "uuid",
    "number": "Int64",
    "workspace_id": "string",
    "pipeline_run_id": "string",
    "started_at_utc": "time",
    "provider": "string",
    "model": "string",
    "status": "string",
    "latency_ms": "Float64",
    "params_sha256": "string",
    "schema_sha256": "string",
    **USAGE,
    "finish_reason": "string",
    "response_model": "string",
    "model_digest": "string",
    "cost_usd": "Float64",
    "status_code": "Int64",
    "error_code": "string",
    "error_message": "string",
}
EVAL_RUN_COLUMNS: Final[Columns] = {
    "id": "uuid",
    "workspace_id": "string",
    "name": "string",
    "task_name": "string",
    "task_sha256": "string",
    "dataset_sha256": "string",
    "created_at_utc": "time",
    "spec_json": "string",
}
EVAL_RESULT_COLUMNS: Final[Columns] = {
    "eval_run_id": "uuid",
    "route": "string",
    "sample_id": "string",
    "epoch": "Int64",
    "status": "string",
    "finished_at_utc": "time",
    "pipeline_run_id": "string",
    "served_route": "string",
    "output_mode": "string",
    "valid_first_try": "boolean",
    "outcome": "string",
    "schema_sha256": "string",
    "sample_group": "string",
    "input_tokens": "Int64",
    "output_tokens": "Int64",
    "latency_ms": "Float64",
    "requests": "Int64",
    "error_code": "string",
    "error_message": "string",
    "scores_json": "string",
    "scorer_errors_json": "string",
    "score_details_json": "string",
    "warnings_json": "string",
    "output_json": "string",
}
USAGE_COLUMNS: Final[Columns] = {
    "route": "string",
    "calls": "Int64",
    "failed_calls": "Int64",
    "served_from_store": "Int64",
    "served_input_tokens": "Int64",
    "served_output_tokens": "Int64",
    "requests": "Int64",
    "failed_requests": "Int64",
    "requests_without_tokens": "Int64",
    "billed_input_tokens": "Int64",
    "billed_output_tokens": "Int64",
    "billed_cost_usd": "Float64",
}
TIME_DTYPE: Final = "datetime64[us, UTC]"
ROWS_AT_ONCE = 300
HEX_DIGITS = 32


def runs_frame(
    connection: Connection,
    workspace_id: str,
    *,
    pipeline_run_id: str | None = None,
    status: str | None = None,
    since: datetime | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """The runs of a workspace, newest first, with `RUN_COLUMNS`.

    Args:
        connection: To a database at head.
        workspace_id: Whose runs.
        pipeline_run_id: Only those of this pipeline run.
        status: Only `STARTED`, `SUCCEEDED` or `FAILED` ones.
        since: Only those created at this time or later; aware.
        limit: At most so many.

    Raises:
        SQLAlchemyError: The database fails.
        ValueError: `since` has no time zone.
    """
    dialect = connection.dialect.name
    query = _select("llm_runs", RUN_COLUMNS, dialect).where(_col("workspace_id") == workspace_id)
    for name, wanted in (("pipeline_run_id", pipeline_run_id), ("status", status)):
        if wanted is not None:
            query = query.where(_col(name) == wanted)
    if since is not None:
        query = query.where(_col("created_at_utc") >= moment(since, dialect))
    newest_first = query.order_by(_col("created_at_utc").desc(), _col("id").desc()).limit(limit)
    return _fetched(connection, newest_first, RUN_COLUMNS)


def attempts_frame(
    connection: Connection,
    workspace_id: str,
    *,
    pipeline_run_id: str | None = None,
    since: datetime | None = None,
    limit: int | None = None,
) -> pd.DataFrame:
    """Every request that was sent for a workspace, newest run first, with `ATTEMPT_COLUMNS`; arguments as `runs_frame`.

    `since` is about when the run was created.
    """
    dialect = connection.dialect.name
    runs = table("llm_runs", *[column(name) for name in ("id", "workspace_id", "pipeline_run_id", "created_at_utc")])
    attempts = table("llm_attempts", *[column(name) for name in ATTEMPT_COLUMNS if name != "pipeline_run_id"])
    sources = {**{each.name: each for each in attempts.c}, "pipeline_run_id": runs.c.pipeline_run_id}
    shown = [_shown(sources[name], name, kind, dialect) for name, kind in ATTEMPT_COLUMNS.items()]
    query = select(*shown).select_from(attempts.join(runs, runs.c.id == attempts.c.run_id))
    query = query.where(runs.c.workspace_id == workspace_id)
    if pipeline_run_id is not None:
        query = query.where(runs.c.pipeline_run_id == pipeline_run_id)
    if since is not None:
        query = query.where(runs.c.created_at_utc >= moment(since, dialect))
    ordered = query.order_by(runs.c.created_at_utc.desc(), runs.c.id.desc(), attempts.c.number).limit(limit)
    return _fetched(connection, ordered, ATTEMPT_COLUMNS)


def eval_runs_frame(connection: Connection, workspace_id: str) -> pd.DataFrame:
    """The evaluations of a workspace, newest first, with `EVAL_RUN_COLUMNS`."""
    query = _select("eval_runs", EVAL_RUN_COLUMNS, connection.dialect.name)
    mine = query.where(_col("workspace_id") == workspace_id)
    return _fetched(connection, mine.order_by(_col("created_at_utc").desc(), _col("id").desc()), EVAL_RUN_COLUMNS)


def eval_results_frame(connection: Connection, eval_run_id: UUID) -> pd.DataFrame:
    """The results of an evaluation by sample, route and epoch, with `EVAL_RESULT_COLUMNS`."""
    dialect = connection.dialect.name
    key = eval_run_id.hex if dialect == "sqlite" else eval_run_id
    query = _select("eval_results", EVAL_RESULT_COLUMNS, dialect).where(_col("eval_run_id") == key)
    frame = _fetched(connection, query, EVAL_RESULT_COLUMNS)
    # Sorted here: databases sort text by rules of their own.
    return frame.sort_values(["sample_id", "route", "epoch"], ignore_index=True)


def usage_frame(connection: Connection, workspace_id: str, *, since: datetime | None = None) -> pd.DataFrame:
    """What each route served and what it billed, with `USAGE_COLUMNS`, ordered by route.

    Served is about calls (`llm_runs`): `calls` are those that the route answered, `served_from_store` those among them
    that cost nothing, `failed_calls` those that were pinned to it and failed. Billed is about requests
    (`llm_attempts`), those of failed calls included. Sums are over what is known, and missing when nothing is;
    `requests_without_tokens` says how many are not in them. Calls that failed on no certain route have the route
    `<NA>`.

    Args:
        connection: To a database at head.
        workspace_id: Whose.
        since: Only calls that were created at this time or later; aware.
    """
    runs = table("llm_runs", *[column(name) for name in _USAGE_OF_RUNS])
    mine = [runs.c.workspace_id == workspace_id]
    if since is not None:
        mine.append(runs.c.created_at_utc >= moment(since, connection.dialect.name))
    by_call = _by_route(connection, _served(runs).where(*mine))
    by_request = _by_route(connection, _sent(runs).where(*mine))
    no_call, no_request = (0, 0, 0, None, None), (0, 0, 0, None, None, None)
    routes = sorted({*by_call, *by_request}, key=lambda name: (name is None, name or ""))
    rows = [(name, *by_call.get(name, no_call), *by_request.get(name, no_request)) for name in routes]
    return frame_of(rows, USAGE_COLUMNS)


_TOKENS = ("input_tokens", "output_tokens")
_USAGE_OF_RUNS = (
    *("id", "workspace_id", "created_at_utc", "status", "provider", "model", "requested_route", "served_from"),
    *_TOKENS,
)


def _served(runs: TableClause) -> Select[Any]:
    succeeded = runs.c.status == "SUCCEEDED"
    route = case((succeeded, _route(runs)), else_=runs.c.requested_route)
    return select(
        route,
        _count(succeeded),
        _count(runs.c.status == "FAILED"),
        _count(succeeded & (runs.c.served_from != "provider")),
        *(func.sum(case((succeeded, runs.c[name]))) for name in _TOKENS),
    ).group_by(literal_column("1"))


def _sent(runs: TableClause) -> Select[Any]:
    names = ("run_id", "provider", "model", "status", *_TOKENS, "cost_usd")
    attempts = table("llm_attempts", *[column(name) for name in names])
    return (
        select(
            _route(attempts),
            func.count(),
            _count(attempts.c.status != "SUCCEEDED"),
            _count(attempts.c.input_tokens.is_(None)),
            *(func.sum(attempts.c[name]) for name in (*_TOKENS, "cost_usd")),
        )
        .select_from(attempts.join(runs, runs.c.id == attempts.c.run_id))
        .group_by(attempts.c.provider, attempts.c.model)
    )


def _route(source: TableClause) -> ColumnElement[Any]:
    return source.c.provider.op("||")("/").op("||")(source.c.model)


def _count(condition: ColumnElement[bool]) -> ColumnElement[Any]:
    return func.sum(case((condition, 1), else_=0))


def _by_route(connection: Connection, query: Select[Any]) -> dict[str | None, tuple[Any, ...]]:
    return {row[0]: tuple(map(_counted, row[1:])) for row in connection.execute(query)}


def _counted(value: Any) -> Any:
    """PostgreSQL adds whole numbers up to a Decimal."""
    return int(value) if isinstance(value, Decimal) else value


def stored_answers(connection: Connection, workspace_id: str, pipeline_run_id: str) -> list[tuple[str, str | None]]:
    """Metadata and stored answer, as JSON, of the succeeded runs of a pipeline run, oldest first."""
    names = ("workspace_id", "pipeline_run_id", "status", "created_at_utc", "id", "metadata_json", "result_json")
    runs = table("llm_runs", *[column(name) for name in names])
    query = select(runs.c.metadata_json, runs.c.result_json).where(
        runs.c.workspace_id == workspace_id,
        runs.c.pipeline_run_id == pipeline_run_id,
        runs.c.status == "SUCCEEDED",
    )
    return [(row[0], row[1]) for row in connection.execute(query.order_by(runs.c.created_at_utc, runs.c.id))]


def frame_of(rows: Iterable[tuple[Any, ...]], columns: Columns) -> pd.DataFrame:
    """A frame from rows whose values are in the order of `columns`.

    Times may be aware datetimes or UTC texts, ids UUIDs or texts with or without hyphens.
    """
    return _framed([rows], columns)


def _fetched(connection: Connection, query: Select[Any], columns: Columns) -> pd.DataFrame:
    return _framed(connection.execute(query).partitions(ROWS_AT_ONCE), columns)


def _framed(batches: Iterable[Iterable[Sequence[Any]]], columns: Columns) -> pd.DataFrame:
    """A frame from batches of rows, turned into columns one by one: few rows at once stay in the processor's cache."""
    import pandas as pd

    by_column: list[list[Any]] = [[] for _ in columns]
    for rows in batches:
        for column_so_far, values in zip(by_column, zip(*rows, strict=True), strict=False):
            column_so_far.extend(values)
    typed = {name: _typed(values, kind) for values, (name, kind) in zip(by_column, columns.items(), strict=True)}
    # Of arrays of our own, which nobody else holds.
    return pd.DataFrame(typed, columns=list(columns), copy=False)


def _typed(values: list[Any], kind: Kind) -> pd.Series[Any]:
    import pandas as pd

    if kind == "time":
        return pd.to_datetime(pd.Series(values, dtype="object"), utc=True, format="ISO8601").astype(TIME_DTYPE)
    if kind == "uuid":
        return _typed([_hyphenated(value) for value in values], "string")
    if kind == "boolean":
        return pd.Series(values, dtype="object").map(bool, na_action="ignore").astype("boolean")
    by_arrow = _by_arrow(values, kind)
    # Never by way of a float: that would round large counts.
    return pd.Series(values, dtype="object").astype(kind) if by_arrow is None else by_arrow


def _by_arrow(values: list[Any], kind: Literal["string", "Int64", "Float64"]) -> pd.Series[Any] | None:
    """The same through pyarrow, in a third of the time; None when it is not there or does not take the values."""
    try:
        import pyarrow as pa
    except ImportError:
        return None
    import pandas as pd

    type_ = {"string": pa.large_string, "Int64": pa.int64, "Float64": pa.float64}[kind]()
    try:
        array = pa.array(values, type=type_, from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeError):
        return None
    dtype = {"string": pd.StringDtype, "Int64": pd.Int64Dtype, "Float64": pd.Float64Dtype}[kind]()
    return pd.Series(dtype.__from_arrow__(array), copy=False)


def _hyphenated(value: Any) -> str | None:
    """An id in the usual form; SQLite has it without hyphens."""
    if value is None:
        return None
    text = str(value)
    return text if len(text) != HEX_DIGITS else f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def _col(name: str) -> ColumnElement[Any]:
    return column(name)


def _select(table_name: str, columns: Columns, dialect: str) -> Select[Any]:
    shown = [_shown(column(name), name, kind, dialect) for name, kind in columns.items()]
    return select(*shown).select_from(table(table_name))


def _shown(source: ColumnElement[Any], name: str, kind: Kind, dialect: str) -> ColumnElement[Any]:
    """The column as the driver should give it: ids as text."""
    return cast(source, Text).label(name) if kind == "uuid" and dialect != "sqlite" else source


def moment(value: datetime, dialect: str) -> Any:
    """The time as it is stored."""
    if value.utcoffset() is None:
        raise ValueError("since needs a time zone, for example datetime.now(UTC) - timedelta(hours=1)")
    in_utc = value.astimezone(UTC)
    return in_utc.strftime("%Y-%m-%d %H:%M:%S.%f") if dialect == "sqlite" else cast(in_utc, DateTime(timezone=True))
