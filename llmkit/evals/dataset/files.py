"""Sources of records: files of every known kind, tables, and iterables."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from llmkit.errors import LLMDatasetError
from llmkit.evals.dataset.columns import Columns
from llmkit.evals.dataset.delimited import read_delimited, require_unique
from llmkit.evals.dataset.json_records import Record, read_json, read_json_lines
from llmkit.evals.dataset.parquet import read_parquet
from llmkit.evals.dataset.streams import COMPRESSIONS, ZIP, TextFile, find_zip_member, open_bytes
from llmkit.evals.dataset.tables import Records, find_class_names, find_missing_test, name_class

__all__ = ["find_file", "open_file"]

# What pandas calls the index of a DataFrame in a file.
UNNAMED_INDEX = "__index_level_"
JSON_LINES, JSON, CSV, TSV, PARQUET = (
    (".jsonl", ".ndjson"),
    (".json",),
    (".csv",),
    (".tsv", ".tab"),
    (".parquet", ".pq"),
)
KINDS = (*JSON_LINES, *JSON, *CSV, *TSV, *PARQUET)
REMEDIES = {
    ".xlsx": "read it with pandas.read_excel and pass the DataFrame, or save it as CSV",
    ".xls": "read it with pandas.read_excel and pass the DataFrame, or save it as CSV",
    ".txt": "rename it to .csv or .tsv if it is a table, or pass a list of dictionaries",
    ".arrow": "read it with datasets.Dataset.from_file or pyarrow and pass the table",
    ".feather": "read it with pandas.read_feather and pass the DataFrame",
    ".pkl": "read it in Python and pass the DataFrame or a list",
    ".yaml": "read it in Python and pass a list of dictionaries",
    ".yml": "read it in Python and pass a list of dictionaries",
    ".xml": "read it with pandas.read_xml and pass the DataFrame",
    ".tar": "unpack it, and name the file to read",
    ".tgz": "unpack it, and name the file to read",
}


def find_file(path: Path, base_dir: Path | None) -> Path:
    """Return the file of a dataset.

    Raises:
        LLMDatasetError: It is not there.
    """
    place = (base_dir or Path.cwd()) / path
    with suppress(OSError, RuntimeError):
        # A name may begin with "~" and be no user's, or be longer than any file's.
        place = place if place.is_file() else (base_dir or Path.cwd()) / path.expanduser()
        if place.is_file():
            return place
    if str(path).startswith(("http:/", "https:/")):
        raise LLMDatasetError(f"There is no dataset file {path}: download it first, or pass a table.")
    if os.path.isdir(place):  # noqa: PTH112 - that of a path raises for a name that is too long
        raise LLMDatasetError(
            f"There is no dataset file {place}: it is a folder. Name a file in it; what Hugging Face saved is read "
            "with datasets.load_from_disk, and passed as it is."
        )
    hint = (
        ""
        if path.is_absolute()
        else " A relative path starts at the task file, or in a notebook at the working directory."
    )
    raise LLMDatasetError(f"There is no dataset file {place}.{hint}")


def open_file(path: Path, columns: Columns, *, most_mb: int) -> Records:
    """Return the records of a file, which are read one at a time.

    Args:
        path: The file.
        columns: How it is read.
        most_mb: Most memory that its decompressed content may take, in MB.

    Raises:
        LLMDatasetError: Its kind is unknown.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-1] if suffixes else ""
    if kind in COMPRESSIONS:
        kind = suffixes[-2] if len(suffixes) > 1 else ""
    elif kind == ZIP:
        kind = Path(find_zip_member(path)).suffix.lower()
    if kind not in KINDS:
        remedy = f"; {REMEDIES[kind]}" if kind in REMEDIES else ""
        known = ", ".join(KINDS)
        raise LLMDatasetError(
            f"{path.name}: unknown kind of dataset file; known kinds: {known}, also compressed "
            f"({', '.join((*COMPRESSIONS, ZIP))}){remedy}"
        )
    return Records(path.name, _read(path, kind, columns, most_mb), is_table=kind not in (*JSON_LINES, *JSON))


def _read(path: Path, kind: str, columns: Columns, most_mb: int) -> Iterator[Record]:
    """Yield the records of a file.

    Raises:
        LLMDatasetError: The file cannot be read or a line is malformed; the message names file, line and field.
        LLMConfigurationError: No package reads a file of this kind.
    """
    try:
        if kind in PARQUET:
            yield from _read_parquet(path, most_mb)
            return
        text = TextFile(path, most_mb, columns.encoding)
        if kind in JSON_LINES:
            yield from read_json_lines(text)
        elif kind in JSON:
            yield from read_json(text, columns.records, columns.list_names())
        else:
            delimiter = columns.delimiter or ("\t" if kind in TSV else None)
            wanted = columns.list_names()
            yield from read_delimited(text, delimiter=delimiter, wanted=wanted, is_strict=not columns.is_mapped)
    except OSError as error:
        raise LLMDatasetError(f"{path.name} cannot be read: {error.strerror or error}") from None


def _read_parquet(path: Path, most_mb: int) -> Iterator[Record]:
    file, compression = open_bytes(path, most_mb)
    with file:
        # Parquet is read from its end, so a compressed file is decompressed as a whole, up to the limit.
        opened: Path | IO[bytes] = BytesIO(file.read()) if compression else path
    rows = read_parquet(opened, most_mb=most_mb, name=path.name)
    # Not by way of a DataFrame: it makes 12.0 of a 12 where another row has nothing.
    kept = [index for index, name in enumerate(rows.names) if not name.startswith(UNNAMED_INDEX)]
    columns = [rows.names[index].strip() for index in kept]
    require_unique(columns, path.name)
    classes: dict[str, Any] = find_class_names(rows.metadata)
    is_missing = find_missing_test()
    for number, row in enumerate(rows, start=1):
        cells = {
            name: None if is_missing(row[index]) else row[index] for name, index in zip(columns, kept, strict=True)
        }
        for name, names in classes.items():
            cells[name] = name_class(names, cells.get(name))
        yield f"{path.name}, row {number}", cells
