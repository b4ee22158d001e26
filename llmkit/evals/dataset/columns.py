"""Mapping of columns: which parts of a record, as people have it, become the fields of a sample."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date, time
from decimal import Decimal
from difflib import get_close_matches
from numbers import Real
from typing import Any, TypeAlias
from uuid import UUID

from llmkit.errors import LLMDatasetError, describe_exception
from llmkit.evals.dataset.json_records import number_fields
from llmkit.evals.dataset.literals import read_literal

__all__ = ["MAPPED", "POSITIONS", "SAMPLE_FIELDS", "Columns", "FieldSource", "RecordMapper"]

SAMPLE_FIELDS = ("input", "target", "id", "group", "metadata")
NESTED_FIELDS = ("input", "target", "metadata")
MAPPED = (*SAMPLE_FIELDS, "sample_of")
# In `metadata`: all columns that nothing else is made of.
ALL_OTHERS = "*"
MOST_SHOWN = 20
MISSING = object()
# Names that columns of public datasets have, the most telling first. They only make an error more helpful.
INPUT_NAMES = tuple(
    "stem question prompt query text instruction problem sentence input content body message description document "  # noqa: SIM905
    "review passage article premise utterance title ctx context goal story source email ticket tweet headline "
    "statement claim".split()
)
TARGET_NAMES = tuple(
    "answer target answers label expected category output intent sentiment class gold solution completion response "  # noqa: SIM905
    "reference summary correct priority topic code".split()
)
# A first row of data is no header. Files of this kind are the only ones that cannot say what their columns are.
POSITIONS = "if the first line is no header, name columns by their positions, from 0, such as input=0"
_DELIMITED = re.compile(r"\.(csv|tsv|tab)\b", re.IGNORECASE)

FieldSource: TypeAlias = (
    "str | int | Sequence[str | int] | Mapping[str, str | int] | Callable[[Mapping[str, Any]], Any]"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Options for reading a source as samples; None for the default.

    Attributes:
        input: A column, or a path into it such as `data.question`; several for an object of them; an object from field
            to column; or a function of the record. Default the column `input`, or the columns `input.x`. Columns
            without names have positions, from 0.
        target: Likewise.
        id: A column, or a function of the record.
        group: Likewise.
        metadata: Columns, an object from name to column, `"*"` for all that are left, or a function.
        sample_of: A function from a record to a `Sample`, to several, or to None, which leaves the record out.
        encoding: Encoding of a text file; default UTF-8, or the one that its first bytes name.
        delimiter: Delimiter of a CSV file; default the one that its first rows fit.
        records: Path of a list inside each record, or inside a JSON document, such as `data.paragraphs.qas`: its
            objects are the records, and have the fields of the objects around them.
        split: The part to read, of a `DatasetDict`.
    """

    input: FieldSource | None = None
    target: FieldSource | None = None
    id: FieldSource | None = None
    group: FieldSource | None = None
    metadata: FieldSource | None = None
    sample_of: Callable[[Any], Any] | None = None
    encoding: str | None = None
    delimiter: str | None = None
    records: str | None = None
    split: str | None = None

    def __post_init__(self) -> None:
        for name in SAMPLE_FIELDS:
            object.__setattr__(self, name, _name_positions(getattr(self, name)))
            _check_source(name, getattr(self, name))
        if self.sample_of is not None:
            if not callable(self.sample_of):
                raise LLMDatasetError(f"sample_of is a function of a record; got {type(self.sample_of).__name__}.")
            if given := [name for name in SAMPLE_FIELDS if getattr(self, name) is not None]:
                raise LLMDatasetError(f"sample_of makes whole samples; leave out {given[0]}=.")
        for name in ("encoding", "delimiter", "records", "split"):
            if not isinstance(getattr(self, name), str | None):
                raise LLMDatasetError(f"{name} is a string; got {type(getattr(self, name)).__name__}.")
        if self.delimiter == r"\t":
            # As a shell passes it on.
            object.__setattr__(self, "delimiter", "\t")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise LLMDatasetError(f"delimiter is one character, such as ';'; got {self.delimiter!r}.")

    @property
    def is_mapped(self) -> bool:
        """Whether the source has other columns than a sample has fields."""
        return any(getattr(self, name) is not None for name in MAPPED)

    @property
    def is_default(self) -> bool:
        """Whether nothing is set."""
        return all(getattr(self, each.name) is None for each in fields(self))

    def list_names(self, *of: str) -> list[str]:
        """Return the columns that the mapping names, for some fields of a sample or for all."""
        names: list[str] = []
        for field in of or SAMPLE_FIELDS:
            source = getattr(self, field)
            if isinstance(source, str):
                names.append(source)
            elif isinstance(source, Mapping):
                names.extend(source.values())
            elif isinstance(source, Sequence):
                names.extend(source)
        return [name for name in dict.fromkeys(names) if name != ALL_OTHERS]


def _name_positions(source: Any) -> Any:
    """Return a source with the names of columns in place of their positions, which are the positions as text."""
    if isinstance(source, int) and not isinstance(source, bool):
        return str(source) if source >= 0 else source
    if isinstance(source, Mapping):
        return {name: _name_positions(column) for name, column in source.items()}
    return [_name_positions(each) for each in source] if isinstance(source, list | tuple) else source


def _check_source(field: str, source: object) -> None:
    """Refuse what names no column.

    Raises:
        LLMDatasetError: It does not.
    """
    if source is None or callable(source) or (isinstance(source, str) and source):
        return
    if field in NESTED_FIELDS:
        if isinstance(source, Mapping):
            names = [*source, *source.values()]
        else:
            names = list(source) if isinstance(source, Sequence) and not isinstance(source, str | bytes) else [None]
        # No metadata at all is a choice: it leaves out the columns that nothing is made of.
        if (names or field == "metadata") and all(isinstance(name, str) and name for name in names):
            return
        raise LLMDatasetError(f"{field} is a column, a list of columns or a function of a record; got {source!r}.")
    raise LLMDatasetError(f"{field} is a column or a function of a record; got {source!r}.")


class RecordMapper:
    """Fields of samples from the records of one source.

    Args:
        columns: The mapping.
        source: Name of the source, for errors.
        is_table: Whether all records have the same fields.
    """

    def __init__(self, columns: Columns, source: str, *, is_table: bool) -> None:
        self._columns = columns
        self._source = source
        self._is_table = is_table
        self._unseen = dict.fromkeys(columns.list_names())
        self._is_first = True
        self._known: tuple[str, ...] = ()
        self._is_flat = False
        # Whether a record is one sample, whose fields it names.
        self.is_plain = not columns.is_mapped and columns.records is None

    def map_record(self, place: str, record: Mapping[str, Any]) -> Iterator[Any]:
        """Yield the samples of a record, as they are or as their fields.

        Args:
            place: Where the record stands, for errors.
            record: Its fields. None is a value that is missing.

        Raises:
            LLMDatasetError: A column is not there, or a function failed.
        """
        for where, each in self._take_apart(place, record):
            if self._columns.sample_of is not None:
                yield from self._call_sample_of(where, each)
            elif self._columns.is_mapped:
                yield self._map_fields(where, each)
            else:
                yield self.read_fields(where, each)
            self._is_first = False

    def require_columns(self) -> None:
        """Check that each column of the mapping was in some record.

        Raises:
            LLMDatasetError: One was not.
        """
        if self._unseen and not self._is_first:
            raise self._describe_missing(next(iter(self._unseen)), self._source)

    def _take_apart(self, place: str, record: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the records inside a record, each with the fields of the objects around it."""
        path = self._columns.records
        if path is None:
            yield place, record
            return
        if path.partition(".")[0] not in record and self._is_first:
            raise LLMDatasetError(f"{place}: there is no list {path!r}; the columns are {_show(record)}")
        inside = [record]
        for step in path.split("."):
            inside = [
                {**{name: value for name, value in outer.items() if name != step}, **item}
                for outer in inside
                for item in _list_objects(outer.get(step), f"{place}: records {path!r}: {step!r}")
            ]
        for number, each in enumerate(inside, start=1):
            yield f"{place}, item {number}", each

    def read_fields(self, place: str, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a record whose columns have the names of a sample's fields.

        Raises:
            LLMDatasetError: A column has another name, or does not fit another.
        """
        names = tuple(record)
        if names != self._known:
            others = [name for name in names if not _is_own(name)]
            if others:
                raise self._describe_unknown(others, place, record)
            self._known = names
            self._is_flat = all(name in SAMPLE_FIELDS for name in names)
            self._is_first = False
        if self._is_flat and not isinstance(record.get("metadata"), str):
            return {name: value for name, value in record.items() if value is not None}
        return _nest_columns(record, place)

    def _describe_unknown(self, names: Sequence[str], place: str, record: Mapping[str, Any]) -> LLMDatasetError:
        near = get_close_matches(names[0], SAMPLE_FIELDS, n=1, cutoff=0.8)
        if near != ["input"] and not any(name.partition(".")[0] == "input" for name in record):
            where = self._source if self._is_first else place
            return LLMDatasetError(f"{where}: the columns are {_show(record)}: {_propose(record)}")
        known = ", ".join(SAMPLE_FIELDS)
        unknown = (
            f"unknown column {names[0]!r}; known columns: {known}"
            if self._is_table
            else f"{names[0]}: unknown field; known fields: {known}"
        )
        quoted = ", ".join(map(repr, names[:MOST_SHOWN]))
        remedy = f"pass {near[0]}={names[0]!r} if it is that one, " if near else ""
        return LLMDatasetError(
            f"{self._source if self._is_table else place}: {unknown}; {remedy}pass metadata=[{quoted}] to keep it as "
            "metadata, or metadata=[] to leave it out"
        )

    def _map_fields(self, place: str, record: Mapping[str, Any]) -> dict[str, Any]:
        columns = self._columns
        for name in [name for name in self._unseen if _find(record, name) is not MISSING]:
            del self._unseen[name]
        absent = [name for name in columns.list_names(*(() if self._is_table else ("input",))) if name in self._unseen]
        if absent:
            raise self._describe_missing(absent[0], self._source if self._is_first else place, record)
        mapped = [field for field in SAMPLE_FIELDS if getattr(columns, field) is not None]
        own = {name: value for name, value in record.items() if _is_own(name) and name.partition(".")[0] not in mapped}
        if columns.input is None and not any(name.partition(".")[0] == "input" for name in own):
            where = self._source if self._is_first else place
            raise LLMDatasetError(f"{where}: the columns are {_show(record)}: {_propose(record, columns)}")
        made = _nest_columns(own, place)
        for field in mapped:
            value = self._make_field(field, getattr(columns, field), record, own, place)
            if value is not None:
                made[field] = value
            elif field == "input":
                raise LLMDatasetError(
                    f"{place}: input: {_name_source(columns.input)} is empty here; fill it, or leave such records out: "
                    "sample_of= with a function that returns None for them, or a DataFrame after dropna(subset=[...])"
                )
        return made

    def _make_field(
        self, field: str, source: FieldSource, record: Mapping[str, Any], own: Mapping[str, Any], place: str
    ) -> Any:
        if callable(source):
            value = _call(field, source, record, place)
        elif isinstance(source, str) and field != "metadata":
            value = _get(record, source)
        else:
            # An object has the names that the mapping gives, or those of the columns.
            pairs: Any = source.items() if isinstance(source, Mapping) else [(name, name) for name in _list(source)]
            if ALL_OTHERS in dict(pairs):
                used = {*self._columns.list_names(), *own}
                others = [name for name in record if name not in used]
                pairs = [(name, name) for name in (*others, *(name for name, _ in pairs if name != ALL_OTHERS))]
            found = {name: _get(record, column) for name, column in pairs}
            # A target or metadata without a value is not there. An input has all of its fields, so that prompts fit.
            value = found if field == "input" else {name: each for name, each in found.items() if each is not None}
            if field == "input" and all(each is None for each in found.values()):
                return None
            return value if value or field == "metadata" else None
        if field == "input":
            if isinstance(value, list | tuple):
                raise LLMDatasetError(
                    f"{place}: input: {_name_source(source)} has a list; pass input=['...'] with the column's name to "
                    "send it in an object, or a function that makes text of it"
                )
            return _as_text(value)
        return value

    def _call_sample_of(self, place: str, record: Mapping[str, Any]) -> Generator[Any]:
        # A copy, so that a function may take fields out of it.
        made = _call("sample_of", self._columns.sample_of, dict(record), place)
        if made is None:
            return
        several = isinstance(made, Iterable) and not isinstance(made, str | bytes | Mapping)
        try:
            for sample in made if several else [made]:
                if isinstance(sample, str | bytes | int | float) or sample is None:
                    raise LLMDatasetError(
                        f"{place}: sample_of returns a Sample, several, or None; got {type(sample).__name__}"
                    )
                yield sample
        except LLMDatasetError:
            raise
        except Exception as error:
            raise LLMDatasetError(f"{place}: sample_of failed: {describe_exception(error)}") from error

    def _describe_missing(self, name: str, where: str, record: Mapping[str, Any] | None = None) -> LLMDatasetError:
        if record is None:
            return LLMDatasetError(f"{where}: no record that was read has a column {name!r}")
        near = get_close_matches(name, _list_names(record), n=1)
        remedy = f"; did you mean {near[0]!r}?" if near else ""
        if not near and not name.isdecimal() and _DELIMITED.search(self._source):
            remedy = f"; {POSITIONS}"
        return LLMDatasetError(f"{where}: there is no column {name!r}; the columns are {_show(record)}{remedy}")


def _is_own(name: str) -> bool:
    return name in SAMPLE_FIELDS or name.partition(".")[0] in NESTED_FIELDS


def _list(source: FieldSource) -> Sequence[str]:
    return [source] if isinstance(source, str) else list(source)  # type: ignore[arg-type]  # functions were handled


def _name_source(source: FieldSource | None) -> str:
    if callable(source):
        return "what the function returns"
    names = source.values() if isinstance(source, Mapping) else _list(source or ())
    return f"the column {', '.join(map(repr, names))}"


def _call(field: str, function: Any, record: Mapping[str, Any], place: str) -> Any:
    try:
        return function(record)
    except Exception as error:
        raise LLMDatasetError(
            f"{place}: {field}: the function {getattr(function, '__name__', type(function).__name__)} failed: "
            f"{describe_exception(error)}"
        ) from error


def _as_text(value: Any) -> Any:
    """Return a number, date or truth value as text, as a prompt would have it; anything else as it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value) if isinstance(value, Real | Decimal | UUID) else value


def _get(record: Mapping[str, Any], name: str) -> Any:
    found = _find(record, name)
    return None if found is MISSING else found


def _find(record: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column, or at a path of fields and positions such as `answers.text.0`.

    A field of a list of objects is the list of their fields.
    """
    if name in record or "." not in name:
        return record.get(name, MISSING)
    value: Any = record
    for step in name.split("."):
        value = _step_into(value, step)
        if value is MISSING or value is None:
            break
    return value


def _step_into(value: Any, step: str) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return value.get(step, MISSING)
    if isinstance(value, list | tuple):
        if re.fullmatch(r"-?[0-9]{1,9}", step):
            # A shorter list has no such value, which is no mistake of the mapping: questions without an answer.
            return value[int(step)] if -len(value) <= int(step) < len(value) else None
        found = [_step_into(item, step) for item in value]
        return MISSING if MISSING in found else found
    return MISSING


def _list_objects(value: Any, what: str) -> Sequence[Mapping[str, Any]]:
    """Return the objects of a list; an object alone is a list of one, and the fields of a list are its positions."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    found = [] if value is None else [value] if isinstance(value, Mapping) else value
    if isinstance(found, list | tuple):
        found = [number_fields(item) if isinstance(item, list | tuple) else item for item in found]
    if not isinstance(found, list | tuple) or not all(isinstance(item, Mapping) for item in found):
        raise LLMDatasetError(f"{what} is no list of objects")
    return found


def _list_names(record: Mapping[str, Any]) -> list[str]:
    """Return the columns of a record; of an object in a column, the paths of its fields."""
    names: list[str] = []
    for name, value in record.items():
        inner = value if isinstance(value, Mapping) else None
        names.extend([f"{name}.{key}" for key in inner] if inner else [name])
    return names


def _show(record: Mapping[str, Any]) -> str:
    names = _list_names(record)
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(name if len(name) <= 80 else f"{name[:77]}..." for name in names[:MOST_SHOWN]) + more


def _propose(record: Mapping[str, Any], columns: Columns | None = None) -> str:
    """Return the remedy for a source whose columns are not named as the fields of a sample."""
    names = _list_names(record)
    if {"0", "1"} <= set(names):
        return "name columns by their positions, such as input=0, target=1"
    found = _guess(names, INPUT_NAMES)
    target = _guess([name for name in names if name != found], TARGET_NAMES)
    inside = _find_list(record)
    if inside and not target:
        return f"pass records={inside!r} for the objects in it, or input={found or names[0]!r}"
    if columns is not None:
        return f"pass input={found!r} as well" if found else "pass input= with the column of the questions as well"
    if found and target:
        return f"pass input={found!r}, target={target!r}"
    if found:
        return f"pass input={found!r}, and target= with the column of the right answers, if there is one"
    unnamed = f"; {POSITIONS}" if columns is None and _looks_like_data(names) else ""
    return f"pass input= with the column of the questions, and target= with that of the right answers{unnamed}"


def _looks_like_data(names: Iterable[str]) -> bool:
    """Return whether names of columns are more likely the cells of a first row: numbers, or sentences."""
    return any(re.fullmatch(r"[-+]?[0-9.,]+%?", name) or len(name) > 60 or name.count(" ") > 5 for name in names)


def _find_list(record: Mapping[str, Any]) -> str | None:
    """Return the path of the list of objects in a record that look most like questions; None where none do.

    Objects that look less like them than the record around them, such as options of a question, are no records.
    """
    found = {path: _rank_names(names) for path, names in _walk_lists(record, "")}
    best = min(found, key=lambda path: found[path]) if found else None
    return None if best is None or found[best] >= _rank_names(record) else best


def _rank_names(names: Iterable[str]) -> int:
    return min((INPUT_NAMES.index(name) for name in names if name in INPUT_NAMES), default=len(INPUT_NAMES))


def _walk_lists(record: Mapping[str, Any], before: str) -> Iterator[tuple[str, Iterable[str]]]:
    for name, value in record.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            yield f"{before}{name}", value[0]
            yield from _walk_lists(value[0], f"{before}{name}.")


def _guess(names: Sequence[str], known: Sequence[str]) -> str | None:
    """Return the name that is one of the known words, or else contains the most telling one."""
    words = {name: re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) for name in names}
    for word in known:
        fitting = [name for name in names if word in words[name]]
        if fitting:
            return next((name for name in fitting if words[name] == [word]), fitting[0])
    return None


def _nest_columns(record: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Turn columns `target.amount` into one object `target`; an empty cell is a field that is not there."""
    made: dict[str, Any] = {}
    for name, value in record.items():
        if value is not None:
            if name == "metadata" and isinstance(value, str):
                _put(made, name, _parse_metadata(value, f"{place}: metadata"), place)
            else:
                _put(made, name, value, place)
    return made


def _parse_metadata(text: str, place: str) -> Mapping[str, Any]:
    """Return the object in a cell, as JSON or as Python writes it.

    Raises:
        LLMDatasetError: It is text of another kind.
    """
    found = read_literal(text)
    if not isinstance(found, dict):
        raise LLMDatasetError(
            f"{place}: not a JSON object; pass metadata=['metadata'] to keep it as text, or metadata=[] to leave it out"
        )
    return found


def _put(record: dict[str, Any], name: str, value: Any, place: str) -> None:
    """Set `target.address.city` in objects within objects."""
    *parents, last = name.split(".")
    inner = record
    for depth, parent in enumerate(parents, start=1):
        inner = inner.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise LLMDatasetError(f"{place}: {name}: there is a column {'.'.join(parents[:depth])} as well")
    if last in inner:
        raise LLMDatasetError(f"{place}: {name}: there is a column that fills it already")
    inner[last] = value
