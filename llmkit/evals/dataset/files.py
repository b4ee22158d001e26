"""Reads the records of dataset files and DataFrames, each with where it stands."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from llmkit.errors import LLMConfigurationError, LLMDatasetError

__all__ = ["SAMPLE_FIELDS", "Record", "find_file", "is_frame", "read_file", "read_frame"]

LARGEST_CELL = 2**31 - 1
# The comma first; Excel writes semicolons where the comma is the decimal mark.
CSV_DELIMITERS = (",", ";", "\t", "|")
# What pandas calls the index of a DataFrame in a file.
UNNAMED_INDEX = "__index_level_"
NESTED_COLUMNS = ("input", "target", "metadata")
SAMPLE_FIELDS = ("input", "target", "id", "group", "metadata")

Record: TypeAlias = tuple[str, Mapping[str, Any]]


def find_file(path: Path, base_dir: Path | None) -> Path:
    """Return the file of a dataset.

    Raises:
        LLMDatasetError: It is not there.
    """
    place = (base_dir or Path.cwd()) / path.expanduser()
    if place.is_file():
        return place
    hint = (
        ""
        if path.is_absolute()
        else " A relative path starts at the task file, or in a notebook at the working directory."
    )
    raise LLMDatasetError(f"There is no dataset file {place}.{hint}")


def read_file(path: Path) -> Iterator[Record]:
    """Yield the position and the content of each record of a file.

    Raises:
        LLMDatasetError: The file cannot be read or a line is malformed; the message names file, line and field.
        LLMConfigurationError: A Parquet file, and no package that reads it.
    """
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".jsonl": _jsonl_records,
        ".ndjson": _jsonl_records,
        ".csv": _csv_records,
        ".parquet": _parquet_records,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise LLMDatasetError(f"{path.name}: unknown kind of dataset file; known kinds: {', '.join(readers)}")
    try:
        yield from reader(path)
    except OSError as error:
        raise LLMDatasetError(f"{path.name} cannot be read: {error.strerror or error}") from None


def _read_text(path: Path) -> str:
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise LLMDatasetError(f"{path.name}, line {line}: not UTF-8 text") from None


def _jsonl_records(path: Path) -> Iterator[Record]:
    # Not splitlines(): it also splits at characters that JSON allows inside a string.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if line.strip():
            place = f"{path.name}, line {number}"
            yield place, _json_object(line, place)


def _json_object(line: str, place: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line, parse_constant=_no_constant, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise LLMDatasetError(f"{place}, column {error.colno}: not JSON: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise LLMDatasetError(f"{place}: not JSON: {error}") from None
    if not isinstance(record, dict):
        raise LLMDatasetError(f"{place}: a sample is a JSON object with the field input; got {type(record).__name__}")
    return record


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _value in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice!r} stands twice in one object")
    return made


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


def _csv_records(path: Path) -> Iterator[Record]:
    text = _read_text(path)
    lines = csv.reader(io.StringIO(text, newline=""), strict=True, **_guess_dialect(text))
    before = csv.field_size_limit(LARGEST_CELL)
    try:
        rows = [(lines.line_num, row) for row in lines if row]
    except csv.Error as error:
        raise LLMDatasetError(f"{path.name}, line {lines.line_num}: not CSV: {error}") from None
    finally:
        csv.field_size_limit(before)
    if not rows:
        return
    header = rows[0][1]
    # Spreadsheets end a table with blank rows, and rows with blank cells. A blank cell that fills its row is a value.
    filled = [
        (number, row if "".join(row[len(header) :]).strip() else row[: len(header)])
        for number, row in rows[1:]
        if any(row) and (len(row) == len(header) or "".join(row).strip())
    ]
    for number, row in filled:
        if len(row) != len(header):
            raise LLMDatasetError(
                f"{path.name}, line {number}: {len(row)} cells, but the header has {len(header)} columns"
            )
    kept = _choose_columns(header, [row for _number, row in filled], path.name)
    columns = _columns([header[place] for place in kept], path.name)
    for number, row in filled:
        place = f"{path.name}, line {number}"
        cells = {name: row[index] or None for name, index in zip(columns, kept, strict=True)}
        yield place, _nest_columns(cells, place)


def _guess_dialect(text: str) -> dict[str, Any]:
    """Return the delimiter under which the header has an input, and whether a space follows each delimiter."""
    header = text.partition("\n")[0].rstrip("\r")
    for delimiter in CSV_DELIMITERS:
        names = header.split(delimiter)
        if any(name.strip(' "').partition(".")[0] == "input" for name in names):
            spaced = len(names) > 1 and all(name.startswith(" ") for name in names[1:])
            return {"delimiter": delimiter, "skipinitialspace": spaced}
    return {}


def _choose_columns(header: list[str], rows: list[list[str]], source: str) -> list[int]:
    """Return the positions of all columns but empty ones without a name and the index that pandas writes.

    Raises:
        LLMDatasetError: A column without a name has cells.
    """
    kept: list[int] = []
    for index, name in enumerate(header):
        if name.strip() and name != "Unnamed: 0":
            kept.append(index)
        elif any(row[index].strip() for row in rows) and not (index == 0 and all(row[0].isdecimal() for row in rows)):
            raise LLMDatasetError(
                f"{source}: column {index + 1} has no name; name it, or write the file with to_csv(index=False)"
            )
    return kept


def _parquet_records(path: Path) -> Iterator[Record]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise LLMConfigurationError(
            f"{path.name}: reading Parquet needs pyarrow: pip install 'llmkit-research[parquet]'"
        ) from None
    try:
        table = parquet.read_table(path)
    except ValueError as error:
        raise LLMDatasetError(f"{path.name} is not a Parquet file: {error}") from None
    # Not by way of a DataFrame: it makes 12.0 of a 12 where another row has nothing.
    kept = [name for name in table.column_names if not name.startswith(UNNAMED_INDEX)]
    columns = _columns(kept, path.name)
    for number, row in enumerate(zip(*(table.column(name).to_pylist() for name in kept), strict=True), start=1):
        place = f"{path.name}, row {number}"
        yield place, _nest_columns({name: _cell(value) for name, value in zip(columns, row, strict=True)}, place)


def is_frame(source: object) -> bool:
    """Return whether it is a DataFrame."""
    # A DataFrame cannot be here unless its library is loaded already.
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(source, pandas.DataFrame)


def read_frame(frame: Any, source: str, *, first: int) -> Iterator[Record]:
    """Yield the position, counted from `first`, and the content of each row of a DataFrame.

    Raises:
        LLMDatasetError: A column is unknown or does not fit another.
    """
    columns = _columns([str(name) for name in frame.columns], source)
    for number, row in enumerate(frame.itertuples(index=False, name=None), start=first):
        place = f"{source}, row {number}"
        yield place, _nest_columns({name: _cell(value) for name, value in zip(columns, row, strict=True)}, place)


def _cell(value: Any) -> Any:
    from pandas import isna
    from pandas.api.types import is_scalar

    return None if is_scalar(value) and isna(value) else value


def _columns(names: list[str], source: str) -> list[str]:
    names = [name.strip() for name in names]
    for name in names:
        if name not in SAMPLE_FIELDS and name.partition(".")[0] not in NESTED_COLUMNS:
            known = ", ".join(SAMPLE_FIELDS)
            raise LLMDatasetError(f"{source}: unknown column {name!r}; known columns: {known}, and metadata.{name}")
        if names.count(name) > 1:
            raise LLMDatasetError(f"{source}: there are two columns {name!r}")
    return names


def _nest_columns(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Turn columns `target.amount` into one object `target`; an empty cell is a field that is not there."""
    record: dict[str, Any] = {}
    for name, value in row.items():
        if value is not None:
            _put(record, name, _metadata(value, place) if name == "metadata" else value, place)
    return record


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


def _metadata(value: Any, place: str) -> Any:
    return _json_object(value, f"{place}: metadata") if isinstance(value, str) else value
