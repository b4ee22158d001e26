"""Between the values of the ports and the columns of the tables. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from operator import attrgetter
from typing import Any, Final, NamedTuple, get_type_hints
from uuid import UUID

from llmkit.canonical_json import compact_encoder
from llmkit.errors import ABANDONED_CODE, LLMStoreError
from llmkit.ports import RunFailure, RunStart, RunSuccess, StoredRun
from llmkit.types import Attempt, AttemptStatus, FinishReason, RunStatus, ServedFrom, TokenUsage

__all__ = [
    "ABANDONED_MESSAGE",
    "AS_IT_IS",
    "ATTEMPT_COLUMNS",
    "FAILED",
    "FAILURE_COLUMNS",
    "FINISHED_COLUMNS",
    "SQLITE_CODEC",
    "STARTED",
    "STARTED_COLUMNS",
    "STORED_RUN_COLUMNS",
    "SUCCEEDED",
    "SUCCESS_COLUMNS",
    "UNSENT_COLUMNS",
    "Codec",
    "RowForm",
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
        LLMStoreError: It contains a NUL or a lone surrogate, which not every database can keep.
    """
    if not _is_plain(text) and storable(text) != text:
        raise LLMStoreError(
            f"{name} contains a character that cannot be stored (NUL or half a surrogate pair). Leave it out."
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


# Rows are found by these, so they are stored unchanged or not at all.
_IDENTITIES: Final = frozenset({"workspace_id", "pipeline_run_id", "stage", "idempotency_key", "flight_key"})
_COUNTS: Final = tuple(name for name in TokenUsage.model_fields if name != "estimated")
_ROUTE_COLUMNS: Final = ("provider", "model")
_USAGE_COLUMNS: Final = (*_COUNTS, "usage_estimated")
_pick_counts: Final = attrgetter(*_COUNTS)


class RowForm:
    """The columns of a value, derived from its fields: a column is named once, in the type that carries it.

    A field has the column of its own name. Exceptions are routes and token usage, which have several columns, mappings,
    whose column ends in `_json`, and attempts, of which the column has the number.

    Args:
        hints: Types of the fields by name.
        key: The field that names the row instead of changing it.

    Attributes:
        columns: Names of the columns, in the order of `make_row`.
    """

    def __init__(self, hints: Mapping[str, Any], key: str | None = None) -> None:
        fields = [name for name in hints if name != key]
        self._with_route, self._with_usage = "route" in fields, "usage" in fields
        own = [name for name in fields if name not in ("route", "usage")]
        self._pick = attrgetter(*own)
        # Only the fields that change: the others cost a call each, of a row that is made for every request.
        self._plain, self._sqlite = (
            tuple(
                (place, encode)
                for place, encode in enumerate(_choose_encoder(name, hints[name], codec) for name in own)
                if encode is not _keep_value
            )
            for codec in (AS_IT_IS, SQLITE_CODEC)
        )
        self.columns: tuple[str, ...] = (
            *(f"{name}_json" if hints[name] in _MAPPINGS else name for name in own),
            *(_ROUTE_COLUMNS if self._with_route else ()),
            *(_USAGE_COLUMNS if self._with_usage else ()),
        )

    def make_row(self, value: Any, codec: Codec) -> Row:
        """Return the values of the columns.

        Raises:
            LLMStoreError: As for `identity`.
        """
        row = [*self._pick(value)]
        for place, encode in self._sqlite if codec is SQLITE_CODEC else self._plain:
            # Half of the fields of most rows are None, which no encoder changes: 1 us of a row less.
            if (field := row[place]) is not None:
                row[place] = encode(field)
        if self._with_route:
            row += (str(value.route.provider), storable(value.route.model))
        if self._with_usage:
            row += (*_pick_counts(value.usage), codec.flag(value.usage.estimated))
        return tuple(row)


def _choose_encoder(name: str, hint: Any, codec: Codec) -> Callable[[Any], Any]:
    """Return the function that makes a field's value storable. A type that is not listed is an error at import."""
    if name in _IDENTITIES:
        return partial(_identity_or_none, name=name)
    if hint in (datetime, UUID, UUID | None):
        return codec.time if hint is datetime else codec.uuid
    return _ENCODERS[hint]


def _encode_json_or_none(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else as_json(value)


_MAPPINGS: Final = (Mapping[str, Any], dict[str, Any] | None)
_ENCODERS: Final[Mapping[Any, Callable[[Any], Any]]] = {
    str: storable,
    str | None: storable_or_none,
    **dict.fromkeys((int, int | None, float, float | None), _keep_value),
    # These words are our own and plain.
    **dict.fromkeys((FinishReason, FinishReason | None), _keep_value),
    **dict.fromkeys((ServedFrom, AttemptStatus), str),
    **dict.fromkeys(_MAPPINGS, _encode_json_or_none),
    tuple[Attempt, ...]: len,
}
_START_FORM: Final = RowForm(get_type_hints(RunStart))
_SUCCESS_FORM: Final = RowForm(get_type_hints(RunSuccess), key="run_id")
_FAILURE_FORM: Final = RowForm(get_type_hints(RunFailure), key="run_id")
_ATTEMPT_FORM: Final = RowForm({name: field.annotation for name, field in Attempt.model_fields.items()})
_FLIGHT_KEY = _START_FORM.columns.index("flight_key")

# The heartbeat is no value: the statements take it from the database's clock.
STARTED_COLUMNS: Final = (*_START_FORM.columns, "status")
SUCCESS_COLUMNS: Final = ("status", *_SUCCESS_FORM.columns)
FAILURE_COLUMNS: Final = ("status", *_FAILURE_FORM.columns)
# The status is that of the end.
FINISHED_COLUMNS: Final = (*STARTED_COLUMNS, *_SUCCESS_FORM.columns)
UNSENT_COLUMNS: Final = (*STARTED_COLUMNS, *_FAILURE_FORM.columns)
ATTEMPT_COLUMNS: Final = ("run_id", "of_run", *_ATTEMPT_FORM.columns)
# `read_at_utc` is no column: the statements take it from the database's clock.
STORED_RUN_COLUMNS: Final = StoredRun._fields[:-1]


def make_started_row(start: RunStart, codec: Codec) -> Row:
    """Return a run that begins now, in the order of `STARTED_COLUMNS`.

    Raises:
        LLMStoreError: As for `identity`.
    """
    return (*_START_FORM.make_row(start, codec), STARTED)


def make_started_values(start: RunStart) -> Values:
    """Return `make_started_row` by column."""
    return dict(zip(STARTED_COLUMNS, make_started_row(start, AS_IT_IS), strict=True))


def success_row(success: RunSuccess, codec: Codec) -> Row:
    """Return the columns that success changes, in the order of `SUCCESS_COLUMNS`."""
    return (SUCCEEDED, *_SUCCESS_FORM.make_row(success, codec))


def annotation_values(workspace_id: str, run_id: UUID, metadata: Mapping[str, Any]) -> Values:
    """Return the values of an UPDATE of a run's metadata."""
    return {"in_workspace": workspace_id, "run_id": run_id, "metadata_json": as_json(metadata)}


def success_values(success: RunSuccess) -> Values:
    """Return `success_row` by column."""
    return dict(zip(SUCCESS_COLUMNS, success_row(success, AS_IT_IS), strict=True))


def failure_values(failure: RunFailure) -> Values:
    """Return the columns that a failure changes."""
    return dict(zip(FAILURE_COLUMNS, (FAILED, *_FAILURE_FORM.make_row(failure, AS_IT_IS)), strict=True))


def unsent_values(start: RunStart, failure: RunFailure) -> Values:
    """Return the columns of a run that failed before it was started."""
    return make_started_values(start) | failure_values(failure) | {"flight_key": None}


def make_abandoned_values(at_utc: datetime) -> Values:
    """Return the columns that declaring a run dead changes."""
    return {
        "status": FAILED,
        "finished_at_utc": at_utc,
        "error_code": ABANDONED_CODE,
        "error_message": ABANDONED_MESSAGE,
    }


def make_finished_row(start: RunStart, success: RunSuccess, codec: Codec) -> Row:
    """Return a run that is over when it is first written, in the order of `FINISHED_COLUMNS`; without a flight key."""
    *row, _status = make_started_row(start, codec)
    row[_FLIGHT_KEY] = None
    return (*row, SUCCEEDED, *_SUCCESS_FORM.make_row(success, codec))


def make_finished_values(start: RunStart, success: RunSuccess) -> Values:
    """Return `make_finished_row` by column."""
    return dict(zip(FINISHED_COLUMNS, make_finished_row(start, success, AS_IT_IS), strict=True))


def attempt_row(run_id: UUID, attempt: Attempt, codec: Codec) -> Row:
    """Return an attempt, in the order of `ATTEMPT_COLUMNS`; `of_run` is where its workspace is looked up."""
    in_run = codec.uuid(run_id)
    return (in_run, in_run, *_ATTEMPT_FORM.make_row(attempt, codec))


def attempt_values(run_id: UUID, attempt: Attempt) -> Values:
    """Return `attempt_row` by column, but for `of_run`, so that `workspace_id` is all that is missing."""
    values = dict(zip(ATTEMPT_COLUMNS, attempt_row(run_id, attempt, AS_IT_IS), strict=True))
    del values["of_run"]
    return values


def make_stored_run(row: Sequence[Any]) -> StoredRun:
    """Return a run from the values of `select_stored_run`."""
    run_id, workspace_id, status, *others = row
    return StoredRun(run_id, workspace_id, _STATUSES[status], *others)
