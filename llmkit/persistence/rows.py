"""Between the values of the ports and the columns of the tables. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID

from llmkit.canonical_json import compact_encoder
from llmkit.errors import ABANDONED_CODE, LLMStoreError
from llmkit.ports import RunFailure, RunStart, RunSuccess, StoredRun
from llmkit.types import Attempt, RunStatus, TokenUsage

if TYPE_CHECKING:
    pass

__all__ = [
    "ABANDONED_MESSAGE",
    "AS_IT_IS",
    "ATTEMPT_COLUMNS",
    "FAILED",
    "FINISHED_COLUMNS",
    "SQLITE_CODEC",
    "STARTED",
    "STARTED_COLUMNS",
    "STORED_RUN_COLUMNS",
    "SUCCEEDED",
    "SUCCESS_COLUMNS",
    "Codec",
    "annotation_values",
    "as_json",
    "attempt_row",
    "attempt_values",
    "failure_values",
    "identity",
    "make_abandoned_values",
    "make_finished_row",
    "make_finished_values",
    "make_started_row",
    "make_started_values",
    "make_stored_run",
    "sqlite_time",
    "sqlite_uuid",
    "storable",
    "storable_or_none",
    "success_row",
    "success_values",
    "time_of_sqlite",
    "unsent_values",
    "uuid_of_sqlite",
]

Values = dict[str, Any]
Row = tuple[Any, ...]


class Codec(NamedTuple):
    """Conversion of times, UUIDs and flags for a driver that lacks them or converts them slowly."""

    time: Callable[[datetime | None], Any]
    uuid: Callable[[UUID | None], Any]
    flag: Callable[[bool], Any]


def _keep_value(value: Any) -> Any:
    return value


def sqlite_time(value: datetime | None) -> str | None:
    """Format a time as SQLAlchemy stores it, ten times faster. A test compares the two."""
    if value is None:
        return None
    at = value if value.tzinfo is UTC else value.astimezone(UTC)
    return f"{_second(at.year, at.month, at.day, at.hour, at.minute, at.second)}.{at.microsecond:06}"


# Thousands of times a second there is the same second.
@lru_cache(maxsize=256)
def _second(year: int, month: int, day: int, hour: int, minute: int, second: int) -> str:
    return f"{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}"


def sqlite_uuid(value: UUID | None) -> str | None:
    """Format a UUID as SQLAlchemy stores it. `UUID.hex` takes twice as long."""
    return None if value is None else value.int.to_bytes(16, "big").hex()


def time_of_sqlite(stored: str | None) -> datetime | None:
    """Return the inverse of `sqlite_time`."""
    return None if stored is None else datetime.fromisoformat(f"{stored}+00:00")


def uuid_of_sqlite(stored: str | None) -> UUID | None:
    """Return the inverse of `sqlite_uuid`."""
    return None if stored is None else UUID(int=int(stored, 16))


AS_IT_IS: Final = Codec(_keep_value, _keep_value, _keep_value)
SQLITE_CODEC: Final = Codec(sqlite_time, sqlite_uuid, int)

# ASCII: NUL and lone surrogates become escapes. `default`: a strange value must not cost a paid call its record.
_encode: Final = compact_encoder(default=str)

ABANDONED_MESSAGE: Final = (
    "The process that made this call died before it could record the outcome; it may have been billed."
)
# An enumeration's own way to its value costs half a microsecond, and this is done for every call.
STARTED, SUCCEEDED, FAILED = (str(status) for status in (RunStatus.STARTED, RunStatus.SUCCEEDED, RunStatus.FAILED))
_STATUSES: Final = {str(status): status for status in RunStatus}
STARTED_COLUMNS: Final = (
    "id",
    "workspace_id",
    "pipeline_run_id",
    "stage",
    "status",
    "owner",
    "created_at_utc",
    "heartbeat_at_utc",
    "requested_route",
    "profile",
    "epoch",
    "idempotency_key",
    "flight_key",
    "prompt_sha256",
    "request_preview",
    "metadata_json",
)
TOKEN_COLUMNS: Final = (
    "input_tokens",
    "output_tokens",
    "total_tokens",
    "cached_input_tokens",
    "reasoning_tokens",
)
USAGE_COLUMNS: Final = (*TOKEN_COLUMNS, "usage_estimated")
SUCCESS_COLUMNS: Final = (
    "status",
    "finished_at_utc",
    "provider",
    "model",
    "response_model",
    "served_from",
    "source_run_id",
    "finish_reason",
    *USAGE_COLUMNS,
    "cost_usd",
    "latency_ms",
    "attempts",
    "response_preview",
    "plan_json",
    "result_json",
)
# The order of `make_finished_row`; the status is that of the end.
FINISHED_COLUMNS: Final = (*STARTED_COLUMNS, *SUCCESS_COLUMNS[1:])
ATTEMPT_COLUMNS: Final = (
    "run_id",
    "number",
    "of_run",
    "provider",
    "model",
    "status",
    "started_at_utc",
    "latency_ms",
    "params_sha256",
    "schema_sha256",
    *USAGE_COLUMNS,
    "finish_reason",
    "response_model",
    "model_digest",
    "cost_usd",
    "status_code",
    "error_code",
    "error_message",
)
_tokens: Final = itemgetter(*TOKEN_COLUMNS)
_STATUS, _FLIGHT_KEY, _CREATED_AT = map(STARTED_COLUMNS.index, ("status", "flight_key", "created_at_utc"))

# In the order of `StoredRun`.
STORED_RUN_COLUMNS: Final = (
    "id",
    "workspace_id",
    "status",
    "prompt_sha256",
    "epoch",
    "owner",
    "created_at_utc",
    "heartbeat_at_utc",
    "result_json",
)


def storable(text: str) -> str:
    r"""Return the text with what PostgreSQL refuses, NUL and lone surrogates, as `\uXXXX`.

    In JSON that changes nothing.
    """
    if _is_plain(text):
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\u0000")


def identity(text: str, name: str) -> str:
    """Return the text unchanged, since rows are found by it.

    Raises:
        LLMStoreError: It holds a NUL or a lone surrogate, which not every database can keep.
    """
    if not _is_plain(text) and storable(text) != text:
        raise LLMStoreError(
            f"{name} holds a character that cannot be stored (NUL or half a surrogate pair). Leave it out."
        )
    return text


def _identity_or_none(text: str | None, name: str) -> str | None:
    return text if text is None or _is_plain(text) else identity(text, name)


def storable_or_none(text: str | None) -> str | None:
    """Do the same as `storable`; None stays None."""
    return text if text is None or _is_plain(text) else storable(text)


def _is_plain(text: str) -> bool:
    return text.isascii() and "\0" not in text


def as_json(value: Mapping[str, Any] | Sequence[Any]) -> str:
    """Encode a value as it is stored. Values that JSON lacks become text."""
    if not value:
        return "{}" if isinstance(value, Mapping) else "[]"
    return _encode(value)


def make_started_row(start: RunStart, codec: Codec) -> Row:
    """Return a run that begins now, in the order of `STARTED_COLUMNS`.

    Raises:
        LLMStoreError: As for `identity`.
    """
    created_at = codec.time(start.created_at_utc)
    return (
        codec.uuid(start.id),
        identity(start.workspace_id, "workspace_id"),
        _identity_or_none(start.pipeline_run_id, "pipeline_run_id"),
        _identity_or_none(start.stage, "stage"),
        STARTED,
        start.owner,
        created_at,
        created_at,
        storable_or_none(start.requested_route),
        start.profile,
        start.epoch,
        _identity_or_none(start.idempotency_key, "idempotency_key"),
        _identity_or_none(start.flight_key, "flight_key"),
        start.prompt_sha256,
        storable(start.request_preview),
        as_json(start.metadata),
    )


def make_started_values(start: RunStart) -> Values:
    """`make_started_row` by column."""
    return dict(zip(STARTED_COLUMNS, make_started_row(start, AS_IT_IS), strict=True))


def success_row(success: RunSuccess, codec: Codec, finished_at: Any = None) -> Row:
    """Return the columns that success changes, in the order of `SUCCESS_COLUMNS`.

    `finished_at` may be encoded already.
    """
    route = vars(success.route)
    return (
        SUCCEEDED,
        finished_at or codec.time(success.finished_at_utc),
        str(route["provider"]),
        storable(route["model"]),
        storable_or_none(success.response_model),
        str(success.served_from),
        codec.uuid(success.source_run_id),
        success.finish_reason,
        *_usage(success.usage, codec),
        success.cost_usd,
        success.latency_ms,
        len(success.attempts),
        storable(success.response_preview),
        None if success.plan is None else as_json(success.plan),
        storable_or_none(success.result_json),
    )


def annotation_values(workspace_id: str, run_id: UUID, metadata: Mapping[str, Any]) -> Values:
    """Values of an UPDATE of a run's metadata."""
    return {"in_workspace": workspace_id, "run_id": run_id, "metadata_json": as_json(metadata)}


def success_values(success: RunSuccess) -> Values:
    """`success_row` by column."""
    return dict(zip(SUCCESS_COLUMNS, success_row(success, AS_IT_IS), strict=True))


def failure_values(failure: RunFailure) -> Values:
    """Columns that a bad end changes."""
    return {
        "status": FAILED,
        "finished_at_utc": failure.finished_at_utc,
        "latency_ms": failure.latency_ms,
        "attempts": len(failure.attempts),
        "error_code": failure.error_code,
        "error_message": storable(failure.error_message),
        "plan_json": None if failure.plan is None else as_json(failure.plan),
    }


def unsent_values(start: RunStart, failure: RunFailure) -> Values:
    """Columns of a run that failed before it was started."""
    return make_started_values(start) | failure_values(failure) | {"flight_key": None}


def make_abandoned_values(at_utc: datetime) -> Values:
    """Columns that declaring a run dead changes."""
    return {
        "status": FAILED,
        "finished_at_utc": at_utc,
        "error_code": ABANDONED_CODE,
        "error_message": ABANDONED_MESSAGE,
    }


def make_finished_row(start: RunStart, success: RunSuccess, codec: Codec) -> Row:
    """Return a run that is over when it is first written, in the order of `FINISHED_COLUMNS`; without a flight key."""
    started = make_started_row(start, codec)
    # An answer that was there already is over when it begins.
    finished_at = started[_CREATED_AT] if success.finished_at_utc is start.created_at_utc else None
    row = [*started, *success_row(success, codec, finished_at)[1:]]
    row[_STATUS], row[_FLIGHT_KEY] = SUCCEEDED, None
    return tuple(row)


def make_finished_values(start: RunStart, success: RunSuccess) -> Values:
    """`make_finished_row` by column."""
    return dict(zip(FINISHED_COLUMNS, make_finished_row(start, success, AS_IT_IS), strict=True))


def attempt_row(run_id: UUID, attempt: Attempt, codec: Codec) -> Row:
    """Return an attempt, in the order of `ATTEMPT_COLUMNS`; `of_run` is where its workspace is looked up."""
    in_run = codec.uuid(run_id)
    # Attributes of a pydantic model are looked up in all its classes first, at seven times the cost.
    seen = vars(attempt)
    route = vars(seen["route"])
    return (
        in_run,
        seen["number"],
        in_run,
        str(route["provider"]),
        storable(route["model"]),
        str(seen["status"]),
        codec.time(seen["started_at_utc"]),
        seen["latency_ms"],
        seen["params_sha256"],
        seen["schema_sha256"],
        *_usage(seen["usage"], codec),
        seen["finish_reason"],
        storable_or_none(seen["response_model"]),
        storable_or_none(seen["model_digest"]),
        seen["cost_usd"],
        seen["status_code"],
        seen["error_code"],
        storable_or_none(seen["error_message"]),
    )


def attempt_values(run_id: UUID, attempt: Attempt) -> Values:
    """`attempt_row` by column, but for `of_run`, so that `workspace_id` is all that is missing."""
    values = dict(zip(ATTEMPT_COLUMNS, attempt_row(run_id, attempt, AS_IT_IS), strict=True))
    del values["of_run"]
    return values


def _usage(usage: TokenUsage, codec: Codec) -> Row:
    seen = vars(usage)
    return (*_tokens(seen), codec.flag(seen["estimated"]))


def make_stored_run(row: Sequence[Any]) -> StoredRun:
    """Return a run from the values of `STORED_RUN_COLUMNS`."""
    run_id, workspace_id, status, *others = row
    return StoredRun(run_id, workspace_id, _STATUSES[status], *others)
