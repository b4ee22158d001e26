"""Rows of CSV and TSV files in the dialect that their first rows fit."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

from llmkit.errors import LLMDatasetError
from llmkit.evals.dataset.columns import POSITIONS, SAMPLE_FIELDS
from llmkit.evals.dataset.json_records import Record, find_repeated
from llmkit.evals.dataset.streams import TextFile

__all__ = ["read_delimited", "require_unique"]

LARGEST_CELL = 2**31 - 1
# The comma first; Excel writes semicolons where the comma is the decimal mark.
DELIMITERS = (",", ";", "\t", "|")
# What a dialect is recognised by.
SAMPLE_LINES = 200
SAMPLE_CHARACTERS = 200_000
# A dialect fits when this share of the rows has as many cells as the header.
MOST_ROWS = 0.9
BY_PANDAS = "if the file is right, read it with pandas.read_csv and pass the DataFrame"


def read_delimited(
    file: TextFile, *, delimiter: str | None, wanted: Sequence[str], is_strict: bool
) -> Iterator[Record]:
    """Yield the place and the content of each row that is not blank.

    Args:
        file: The file.
        delimiter: Between cells; None to recognise it.
        wanted: Columns that the file should have. A dialect under which it has them is preferred.
        is_strict: Whether cells in columns without a name are refused.

    Raises:
        LLMDatasetError: A row does not fit the header; the message names the line.
    """
    head, lines = _peek(_split_at_returns(file.lines()))
    skipped = 0
    if head and head[0].lower().startswith("sep=") and len(head[0].strip()) <= len("sep=") + 1:
        # Excel reads the delimiter from such a line, and some programs write it.
        delimiter = delimiter or head[0].rstrip("\r\n")[4:] or None
        next(lines)
        head, skipped = head[1:], 1
    dialect = _recognise(head, [delimiter] if delimiter else DELIMITERS, wanted)
    reader = csv.reader(lines, strict=True, **dialect)
    rows: Iterator[tuple[int, list[str]]] = (
        (number + skipped, row) for number, row in _iterate_rows(reader, file.name, skipped) if any(map(str.strip, row))
    )
    number, header = next(rows, (0, []))
    if len(header) == 1 and header[0].startswith("#") and header[0].strip() not in wanted:
        raise LLMDatasetError(
            f"{file.name}, line {number}: a comment and not the names of columns; delete the lines that begin with #, "
            "or read it with pandas.read_csv(..., comment='#') and pass the DataFrame"
        )
    unnamed = _UnnamedColumns(header, file.name)
    if wanted and all(name.isdecimal() for name in wanted) and not {*wanted} <= {name.strip() for name in header}:
        # Columns are named by their positions: the first row is one of data.
        rows = chain(iter([(number, header)]), rows)
        kept = list(range(len(header)))
        columns = [str(index) for index in kept]
    else:
        kept = unnamed.find_others()
        columns = [header[index].strip() for index in kept]
        columns = columns if is_strict else _tell_apart(columns, wanted)
        _require_unique_header(columns, file.name)
    for number, cells in rows:
        # Spreadsheets end a table with blank rows, and rows with blank cells. A blank cell that fills its row is a
        # value.
        row = cells if "".join(cells[len(header) :]).strip() else cells[: len(header)]
        place = f"{file.name}, line {number}"
        if len(row) != len(header):
            raise LLMDatasetError(
                f"{place}: {len(row)} cells, but the header has {len(header)} columns with the delimiter "
                f"{dialect['delimiter']!r}; pass delimiter= if it is another one"
            )
        if is_strict:
            unnamed.check(row)
        yield place, {name: row[index] or None for name, index in zip(columns, kept, strict=True)}


def require_unique(columns: Sequence[str], source: str) -> None:
    """Check that no two columns have one name.

    Raises:
        LLMDatasetError: Two have.
    """
    repeated = find_repeated(columns)
    if repeated is not None:
        raise LLMDatasetError(f"{source}: there are two columns {repeated!r}; rename one")


def _require_unique_header(columns: Sequence[str], source: str) -> None:
    try:
        require_unique(columns, source)
    except LLMDatasetError as error:
        raise LLMDatasetError(f"{error}, or {POSITIONS}") from None


def _tell_apart(columns: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the columns with a number behind a repeated name, as pandas has it; names that count are left alone."""
    names: list[str] = []
    counts: dict[str, int] = {}
    for column in columns:
        count = counts[column] = counts.get(column, -1) + 1
        names.append(f"{column}.{count}" if count and column not in (*wanted, *SAMPLE_FIELDS) else column)
    return names


def _split_at_returns(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines that end where `csv` expects it: also at a carriage return alone, as in files of old Macs."""
    for line in lines:
        if "\r" in line.rstrip("\r\n"):
            yield from io.StringIO(line, newline="")
        else:
            yield line


def _peek(lines: Iterator[str]) -> tuple[list[str], Iterator[str]]:
    """Return the first lines, and all of them. An error in the first ones is raised where it stands."""
    head: list[str] = []
    size = 0

    def fail(error: LLMDatasetError) -> Iterator[str]:
        raise error
        yield

    while len(head) < SAMPLE_LINES and size < SAMPLE_CHARACTERS:
        try:
            line = next(lines, None)
        except LLMDatasetError as error:
            return head, chain(list(head), fail(error))
        if line is None:
            break
        head.append(line)
        size += len(line)
    return head, chain(list(head), lines)


def _iterate_rows(reader: Any, source: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with the number of its last line."""
    while True:
        # The limit is one for the whole process, so it is changed only while a row is read.
        before = csv.field_size_limit(LARGEST_CELL)
        try:
            row = next(reader, None)
        except csv.Error as error:
            line = reader.line_num + skipped
            raise LLMDatasetError(f"{source}, line {line}: not CSV: {error}; {BY_PANDAS}") from None
        finally:
            csv.field_size_limit(before)
        if row is None:
            return
        if any(map(str.strip, row)):
            yield reader.line_num + skipped, row


class _Fit(NamedTuple):
    """Quality of a dialect; the larger one is better, part by part."""

    has_wanted: int
    is_table: bool
    share: float
    columns: int


def _recognise(head: Sequence[str], delimiters: Sequence[str], wanted: Sequence[str]) -> Mapping[str, Any]:
    """Return the options of `csv.reader` that the first lines fit best, the usual ones where several do."""
    usual: dict[str, Any] = {"delimiter": delimiters[0]}
    text = "".join(head)
    first = next((line for line in head if line.strip()), "")
    found: list[dict[str, Any]] = [{"delimiter": each} for each in delimiters if each in first or each in text] or [
        usual
    ]
    best = max(found, key=lambda dialect: _measure(head, dialect, wanted))
    fit = _measure(head, best, wanted)
    # Only where the usual way fails, because most files with these signs have them in their texts.
    others: list[dict[str, Any]] = []
    if fit.share < 1:
        others.append({"skipinitialspace": True})
        others += [{"escapechar": "\\"}, {"escapechar": "\\", "doublequote": False}] if '\\"' in text else []
        # Texts beside tabs are often written as they are, with quotes that nothing closes.
        others += [{"delimiter": "\t", "quoting": csv.QUOTE_NONE}] if "\t" in delimiters and "\t" in first else []
    if first.lstrip().startswith("'"):
        others.append({"quotechar": "'"})
    for options in others:
        for candidate in [dialect | options for dialect in found]:
            better = _measure(head, candidate, wanted)
            if better > fit:
                best, fit = candidate, better
    if "skipinitialspace" not in best and _is_spaced(head, best):
        best = best | {"skipinitialspace": True}
    return best


def _parse(head: Sequence[str], dialect: Mapping[str, Any]) -> tuple[list[list[str]], bool]:
    """Return the rows that the first lines contain, and whether all of them could be read."""
    rows: list[list[str]] = []
    before = csv.field_size_limit(LARGEST_CELL)
    try:
        rows.extend(row for row in csv.reader(head, strict=True, **dialect) if any(map(str.strip, row)))
    except csv.Error as error:
        # The last row may only be cut off.
        return rows, "unexpected end of data" in str(error) and len(head) >= SAMPLE_LINES
    finally:
        csv.field_size_limit(before)
    return rows, True


def _measure(head: Sequence[str], dialect: Mapping[str, Any], wanted: Sequence[str]) -> _Fit:
    rows, is_readable = _parse(head, dialect)
    if not rows:
        return _Fit(has_wanted=0, is_table=False, share=0.0, columns=0)
    header = [name.strip() for name in rows[0]]
    names = {*header, *(name.partition(".")[0] for name in header)}
    width = len(header)
    fitting = sum(len(row) == width or (len(row) > width and not "".join(row[width:]).strip()) for row in rows[1:])
    share = (fitting / (len(rows) - 1) if len(rows) > 1 else 1.0) if is_readable else fitting / max(len(head), 1) / 2
    found = sum(name in names for name in (wanted or SAMPLE_FIELDS))
    return _Fit(found, width > 1 and share >= MOST_ROWS, share, width)


def _is_spaced(head: Sequence[str], dialect: Mapping[str, Any]) -> bool:
    """Return whether a space follows each delimiter: in the header, or else in all rows."""
    rows, _is_readable = _parse(head, dialect)
    header = rows[0][1:] if rows else []
    if header and all(name.startswith(" ") for name in header):
        return True
    cells = [cell for row in rows[1:] for cell in row[1:] if cell]
    return bool(cells) and all(cell.startswith(" ") for cell in cells)


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
