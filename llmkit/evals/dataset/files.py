"""Reads the records of dataset files and DataFrames, each with where it stands."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from llmkit.errors import LLMDatasetError
from llmkit.evals.dataset.parquet import read_parquet

__all__ = ["LARGEST_WHOLE_FLOAT", "SAMPLE_FIELDS", "Record", "find_file", "is_frame", "read_file", "read_frame"]

LARGEST_CELL = 2**31 - 1
# From here on, not every whole number is a float.
LARGEST_WHOLE_FLOAT = 2**53
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


def read_file(path: Path, *, most_mb: int) -> Iterator[Record]:
    """Yield the position and the content of each record of a file, one at a time.

    Args:
        path: The file.
        most_mb: As for `read_parquet`; only compressed files need it.

    Raises:
        LLMDatasetError: The file cannot be read or a line is malformed; the message names file, line and field.
        LLMConfigurationError: A Parquet file, and no package that reads it.
    """
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".jsonl": _jsonl_records,
        ".ndjson": _jsonl_records,
        ".csv": _csv_records,
        ".parquet": lambda path: _parquet_records(path, most_mb),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise LLMDatasetError(f"{path.name}: unknown kind of dataset file; known kinds: {', '.join(readers)}")
    try:
        yield from reader(path)
    except OSError as error:
        raise LLMDatasetError(f"{path.name} cannot be read: {error.strerror or error}") from None


def _read_lines(path: Path) -> Iterator[str]:
    # Decoded line by line, so that a file is read only as far as its samples are wanted, and a bad line has its number.
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise LLMDatasetError(f"{path.name}, line {number}: not UTF-8 text") from None


def _jsonl_records(path: Path) -> Iterator[Record]:
    for number, line in enumerate(_read_lines(path), start=1):
        if line.strip():
            place = f"{path.name}, line {number}"
            yield place, _json_object(line.rstrip("\n"), place)


def _json_object(line: str, place: str) -> Mapping[str, Any]:
    try:
        record = _DECODER.decode(line)
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
        raise ValueError(f"the field {_find_repeated(name for name, _value in pairs)!r} stands twice in one object")
    return made


def _find_repeated(names: Iterable[str]) -> str | None:
    # A set, because counting each name takes a minute for 40,000 columns.
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


# Made once, because `json.loads` makes one for each line.
_DECODER = json.JSONDecoder(parse_constant=_no_constant, object_pairs_hook=_object)


def _csv_records(path: Path) -> Iterator[Record]:
    lines = _split_at_returns(_read_lines(path))
    first = next(lines, "")
    reader = csv.reader(chain([first], lines), strict=True, **_guess_dialect(first))
    rows = _csv_rows(reader, path.name)
    _number, header = next(rows, (0, []))
    unnamed = _UnnamedColumns(header, path.name)
    kept = unnamed.find_others()
    columns = _columns([header[index] for index in kept], path.name)
    for number, cells in rows:
        # Spreadsheets end a table with blank rows, and rows with blank cells. A blank cell that fills its row is a
        # value.
        if not any(cells) or (len(cells) != len(header) and not "".join(cells).strip()):
            continue
        row = cells if "".join(cells[len(header) :]).strip() else cells[: len(header)]
        place = f"{path.name}, line {number}"
        if len(row) != len(header):
            raise LLMDatasetError(f"{place}: {len(row)} cells, but the header has {len(header)} columns")
        unnamed.check(row)
        yield place, _nest_columns({name: row[index] or None for name, index in zip(columns, kept, strict=True)}, place)


def _split_at_returns(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines that end where `csv` expects it: also at a carriage return alone, as in files of old Macs."""
    for line in lines:
        if "\r" in line.rstrip("\r\n"):
            yield from io.StringIO(line, newline="")
        else:
            yield line


def _csv_rows(reader: Any, source: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not empty, each with the number of its last line."""
    while True:
        # The limit is one for the whole process, so it is changed only while a row is read.
        before = csv.field_size_limit(LARGEST_CELL)
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise LLMDatasetError(f"{source}, line {reader.line_num}: not CSV: {error}") from None
        finally:
            csv.field_size_limit(before)
        if row is None:
            return
        if row:
            yield reader.line_num, row


def _guess_dialect(line: str) -> dict[str, Any]:
    """Return the delimiter under which the header has an input, and whether a space follows each delimiter."""
    header = line.rstrip("\r\n")
    for delimiter in CSV_DELIMITERS:
        names = header.split(delimiter)
        if any(name.strip(' "').partition(".")[0] == "input" for name in names):
            spaced = len(names) > 1 and all(name.startswith(" ") for name in names[1:])
            return {"delimiter": delimiter, "skipinitialspace": spaced}
    return {}


class _UnnamedColumns:
    """Columns of a CSV file without a name. They may be empty, and the first one may be the index that pandas writes.

    Args:
        header: The first row.
        source: Name of the file, for errors.
    """

    def __init__(self, header: list[str], source: str) -> None:
        self._names = header
        self._source = source
        self._unnamed = [index for index, name in enumerate(header) if not name.strip() or name == "Unnamed: 0"]
        self._is_index: bool | None = None

    def find_others(self) -> list[int]:
        """Return the positions of the columns that have a name."""
        unnamed = set(self._unnamed)
        return [index for index in range(len(self._names)) if index not in unnamed]

    def check(self, row: list[str]) -> None:
        """Check that a row has no value in these columns.

        Raises:
            LLMDatasetError: A column without a name has cells.
        """
        for index in self._unnamed:
            cell = row[index]
            # Its first cell decides whether a column is an index: rows are read one at a time.
            if index == 0 and self._is_index is None:
                self._is_index = cell.isdecimal()
            if not (cell.isdecimal() if index == 0 and self._is_index else not cell.strip()):
                raise LLMDatasetError(
                    f"{self._source}: column {index + 1} has no name; name it, or write the file with "
                    "to_csv(index=False)"
                )


def _parquet_records(path: Path, most_mb: int) -> Iterator[Record]:
    rows = read_parquet(path, most_mb=most_mb)
    # Not by way of a DataFrame: it makes 12.0 of a 12 where another row has nothing.
    kept = [index for index, name in enumerate(rows.names) if not name.startswith(UNNAMED_INDEX)]
    columns = _columns([rows.names[index] for index in kept], path.name)
    is_missing = _missing_test()
    for number, row in enumerate(rows, start=1):
        place = f"{path.name}, row {number}"
        cells = {
            name: None if is_missing(row[index]) else row[index] for name, index in zip(columns, kept, strict=True)
        }
        yield place, _nest_columns(cells, place)


def is_frame(source: object) -> bool:
    """Return whether it is a DataFrame."""
    # A DataFrame cannot be here unless its library is loaded already.
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(source, pandas.DataFrame)


def read_frame(frame: Any, source: str, *, first: int, keep_floats: bool = False) -> Iterator[Record]:
    """Yield the position, counted from `first`, and the content of each row of a DataFrame.

    Whole numbers in columns of floats become integers. pandas turns a column of integers into floats as soon as one row
    has no value, and that must not change the other rows.

    Args:
        frame: The DataFrame.
        source: Its name, for errors.
        first: Number of the first row.
        keep_floats: Leave floats as they are, as version 0.1.0 did.

    Raises:
        LLMDatasetError: A column is unknown or does not fit another.
    """
    columns = _columns([str(name) for name in frame.columns], source)
    floats = [not keep_floats and dtype.kind == "f" for dtype in frame.dtypes]
    is_missing = _missing_test()
    for number, row in enumerate(frame.itertuples(index=False, name=None), start=first):
        place = f"{source}, row {number}"
        cells = {
            name: None if is_missing(value) else _narrow(value) if is_float else value
            for name, value, is_float in zip(columns, row, floats, strict=True)
        }
        yield place, _nest_columns(cells, place)


def _narrow(value: float) -> float | int:
    # From 2**53 on, a float is not exact.
    return int(value) if float(value).is_integer() and abs(value) < LARGEST_WHOLE_FLOAT else value


def _missing_test() -> Callable[[Any], bool]:
    from pandas import isna
    from pandas.api.types import is_scalar

    return lambda value: value is None or (is_scalar(value) and bool(isna(value)))


def _columns(names: list[str], source: str) -> list[str]:
    names = [name.strip() for name in names]
    for name in names:
        if name not in SAMPLE_FIELDS and name.partition(".")[0] not in NESTED_COLUMNS:
            known = ", ".join(SAMPLE_FIELDS)
            raise LLMDatasetError(f"{source}: unknown column {name!r}; known columns: {known}, and metadata.{name}")
    repeated = _find_repeated(names)
    if repeated is not None:
        raise LLMDatasetError(f"{source}: there are two columns {repeated!r}")
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
