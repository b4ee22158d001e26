"""Records of JSON: lines, an array, or a document with the records inside."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeAlias

from llmkit.errors import LLMDatasetError

if TYPE_CHECKING:
    from llmkit.evals.dataset.streams import TextFile

__all__ = ["Record", "find_repeated", "number_fields", "parse_object", "read_json", "read_json_lines"]

Record: TypeAlias = tuple[str, Mapping[str, Any]]

BLANK = " \t\r\n"
BYTES_PER_MB = 1_000_000
# Where data ends in the middle of a value, the parser stops at most this far before: in the longest word or escape.
LONGEST_TOKEN = 12


def read_json_lines(file: TextFile) -> Iterator[Record]:
    """Yield the place and the content of each line: an object, or in all lines a list, whose fields are its positions.

    A file that begins with a list of objects or lists is read as one JSON document.

    Raises:
        LLMDatasetError: A line is no JSON object; the message names line and column.
    """
    is_first, is_rows = True, False
    lines = file.lines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if is_first and line.lstrip().startswith("["):
            is_rows = _is_row(line)
            if not is_rows:
                yield from _read_document(chain([line], lines), file)
                return
        is_first = False
        place = f"{file.name}, line {number}"
        if is_rows:
            yield place, number_fields(_parse(line, place))
            continue
        # Lines that were cut out of an array still have their commas.
        yield place, parse_object(line.rstrip().removesuffix(","), place)


def _is_row(line: str) -> bool:
    """Return whether a line is a list of values, such as `["text", "label"]`, and not a list of records."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, list) and not all(isinstance(item, dict | list) for item in found)


def number_fields(row: Any) -> dict[str, Any]:
    """Return the fields of a record that is a list: its positions, from 0."""
    return {str(number): value for number, value in enumerate(row)}


def read_json(file: TextFile, records: str | None = None, wanted: Sequence[str] = ()) -> Iterator[Record]:
    """Yield the place and the content of each record of a JSON document, or of objects one behind the other.

    Args:
        file: The file.
        records: Path of the records. A document that has its first step is one record, which the caller takes apart.
        wanted: Columns that the records should have.

    Raises:
        LLMDatasetError: It is not JSON, or has no records; the message names record or line.
    """
    return _read_document(file.chunks(), file, records, wanted)


def parse_object(line: str, place: str) -> Mapping[str, Any]:
    """Return the JSON object in a text.

    Raises:
        LLMDatasetError: It contains anything else; the message names the column.
    """
    return _require_object(_parse(line, place), place)


def _parse(line: str, place: str) -> Any:
    try:
        return _DECODER.decode(line)
    except json.JSONDecodeError as error:
        hint = _suggest_json(line) or (_ONE_LINE if line.strip() == "{" else "")
        raise LLMDatasetError(f"{place}, column {error.colno}: not JSON: {error.msg}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise LLMDatasetError(f"{place}: not JSON: {error}") from None


def _suggest_json(text: str) -> str:
    """Return how to correct a text that is nearly JSON, as the end of a message."""
    text = text.strip()
    if text.startswith(("#", "//", "/*")):
        return "; JSON has no comments: delete the line"
    if _PYTHON.match(text):
        return "; JSON is written with double quotes: write it with json.dumps"
    return ""


def find_repeated(names: Iterable[str]) -> str | None:
    """Return the first name that occurs twice."""
    # A set, because counting each name takes a minute for 40,000 columns.
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _require_object(record: Any, place: str) -> Mapping[str, Any]:
    if not isinstance(record, dict):
        raise LLMDatasetError(f"{place}: a sample is a JSON object with the field input; got {type(record).__name__}")
    return record


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError(f"the field {find_repeated(name for name, _value in pairs)!r} stands twice in one object")
    return made


def _read_constant(name: str) -> Any:
    # Python writes NaN for what is missing, and JSON has no such value. Tables of all kinds have it for that, too.
    if name == "NaN":
        return None
    raise ValueError(f"{name} is not a JSON value; write null where a value is missing")


# How Python writes a dictionary.
_PYTHON = re.compile(r"[\[{]\s*'")
_ONE_LINE = "; each line of .jsonl is one object: name a file .json whose objects take several lines"

# Made once, because `json.loads` makes one for each line.
_DECODER = json.JSONDecoder(parse_constant=_read_constant, object_pairs_hook=_object)


class _Buffer:
    """Text that arrives in chunks, and the values in it, one at a time."""

    def __init__(self, chunks: Iterable[str], name: str, most_mb: int) -> None:
        self._chunks = iter(chunks)
        self._most_mb = most_mb
        self._name = name
        self._text = ""
        self._at = 0
        self._line = 1
        self._is_whole = False

    def peek(self) -> str:
        """Return the next character that is not blank, without consuming it; "" at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in BLANK:
                self._at += 1
            if self._at < len(self._text) or not self._read_on():
                return self._text[self._at : self._at + 1]

    def skip(self) -> None:
        """Consume one character."""
        self._at += 1

    def read_value(self) -> Any:
        """Consume the next value.

        Raises:
            LLMDatasetError: The text there is not JSON.
        """
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # A string that is open is as long as it may be; anything else is wrong where the parser stopped.
                is_cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - LONGEST_TOKEN
                if not (is_cut and self._read_on()):
                    hint = _suggest_json(self._text[self._at : self._at + LONGEST_TOKEN])
                    raise self.describe(f"not JSON: {error.msg}{hint}", error.pos) from None
            except (ValueError, RecursionError) as error:
                raise self.describe(f"not JSON: {error}") from None
            else:
                # A number may go on in the next chunk, also behind a "." or "e" that is not taken for a part of it yet.
                is_whole = isinstance(value, dict | list | str) or end < len(self._text) - LONGEST_TOKEN
                if is_whole or not self._read_on():
                    self._at = end
                    return value

    def describe(self, problem: str, at: int | None = None) -> LLMDatasetError:
        """Return an error that names the line."""
        line = self._line + self._text.count("\n", 0, self._at if at is None else at)
        return LLMDatasetError(f"{self._name}, line {line}: {problem}")

    def _read_on(self) -> bool:
        """Append what comes next; as much as there is already, so that a long value takes linear work."""
        self._line += self._text.count("\n", 0, self._at)
        rest = self._text[self._at :]
        parts, size = [rest], 0
        while size <= len(rest):
            chunk = next(self._chunks, None)
            if chunk is None:
                self._is_whole = True
                break
            parts.append(chunk)
            size += len(chunk)
            if len(rest) + size > self._most_mb * BYTES_PER_MB:
                raise self.describe(
                    f"one value takes more than {self._most_mb:,} MB; raise LLM_MAX_FILE_MB if you trust the file, or "
                    "write it as JSON Lines"
                )
        self._text, self._at = "".join(parts), 0
        return size > 0


def _read_document(
    chunks: Iterable[str], file: TextFile, records: str | None = None, wanted: Sequence[str] = ()
) -> Iterator[Record]:
    name = file.name
    buffer = _Buffer(chunks, name, file.most_mb)
    first = buffer.peek()
    if not first:
        return
    if first == "[":
        yield from _read_array(buffer, name)
        return
    document = _require_object(buffer.read_value(), f"{name}, record 1")
    if not buffer.peek():
        is_whole = records is not None and records.partition(".")[0] in document
        yield from [(name, document)] if is_whole else _find_records(document, name, wanted)
        return
    # Objects one behind the other, as JSON Lines under another name have them.
    yield f"{name}, record 1", document
    number = 1
    while buffer.peek():
        number += 1
        place = f"{name}, record {number}"
        yield place, _require_object(buffer.read_value(), place)


def _read_array(buffer: _Buffer, name: str) -> Iterator[Record]:
    buffer.skip()
    number = 0
    while (following := buffer.peek()) != "]" or number:
        if following == "]":
            break
        number += 1
        place = f"{name}, record {number}"
        record = buffer.read_value()
        yield place, number_fields(record) if isinstance(record, list) else _require_object(record, place)
        following = buffer.peek()
        if following not in ("]", ","):
            raise buffer.describe("not JSON: expected ',' or ']' behind a record" if following else "the list is cut")
        if following == ",":
            buffer.skip()
            if buffer.peek() == "]":
                raise buffer.describe("not JSON: a record must follow the ','")
    buffer.skip()
    if buffer.peek():
        raise buffer.describe("there is something behind the list")


def _find_records(document: Mapping[str, Any], name: str, wanted: Sequence[str]) -> Iterator[Record]:
    """Yield the records inside a document that is one object."""
    values = list(document.values())
    lists = [field for field, value in document.items() if _is_list_of(value, dict)]
    if len(lists) > 1:
        longest = max(reversed(lists), key=lambda field: len(document[field]))
        raise LLMDatasetError(
            f"{name}: the document has the lists {', '.join(lists)}: pass records={longest!r} for the records in it"
        )
    if lists:
        for number, record in enumerate(document[lists[0]], start=1):
            yield f"{name}, record {number}", record
    elif {"columns", "data"} <= document.keys() and _is_list_of(document["data"], list):
        # What pandas calls the orient "split".
        names = [str(column) for column in document["columns"]]
        for number, row in enumerate(document["data"], start=1):
            yield f"{name}, record {number}", dict(zip(names, row, strict=False))
    elif values and all(isinstance(value, list) for value in values):
        _require_columns(document, name)
        for number, row in enumerate(zip(*values, strict=True), start=1):
            yield f"{name}, record {number}", dict(zip(document, row, strict=True))
    elif values and all(isinstance(value, dict) for value in values):
        yield from _read_mapping(document, name, wanted)
    else:
        # One record, as a file of JSON Lines with a single line has it.
        yield f"{name}, record 1", document


def _require_columns(document: Mapping[str, Any], name: str) -> None:
    """Refuse lists that are no columns: they have different lengths."""
    if len({len(value) for value in document.values()}) == 1:
        return
    names = ", ".join(document)
    longest = max(document, key=lambda field: len(document[field]))
    if all(isinstance(item, list) for value in document.values() for item in value):
        raise LLMDatasetError(
            f"{name}: the document has the lists {names}: pass records={longest!r} for the records in it"
        )
    raise LLMDatasetError(f"{name}: the columns {names} have different numbers of values")


def _read_mapping(document: Mapping[str, Any], name: str, wanted: Sequence[str]) -> Iterator[Record]:
    """Yield the records of an object of objects: records by their ids, or columns by the numbers or names of rows."""
    inner = list(next(iter(document.values())))
    is_numbered = all(key.isdecimal() for key in inner) and not all(key.isdecimal() for key in document)
    is_wanted = bool(wanted) and document.keys() >= set(wanted) and not set(wanted) & set(inner)
    if inner and (is_numbered or is_wanted):
        for number, row in enumerate(inner, start=1):
            yield f"{name}, record {number}", {column: cells.get(row) for column, cells in document.items()}
        return
    for number, (key, record) in enumerate(document.items(), start=1):
        yield f"{name}, record {number}", record if "id" in record else {**record, "id": key}


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, kind) for item in value)
