"""Rows of a Parquet file, read a few at a time and only up to a limit of memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any

from llmkit.errors import LLMConfigurationError, LLMDatasetError

__all__ = ["ParquetRows", "read_parquet"]

# Rows that are decoded at once, and values of lists within them.
BATCH_ROWS = 256
BATCH_VALUES = 65_536
# A row becomes a few Python objects, however little it contains.
BYTES_PER_ROW = 512
# The least that a value in a list takes.
BYTES_PER_VALUE = 8
BYTES_PER_MB = 1_000_000


class ParquetRows:
    """Rows of a Parquet file, as tuples. Iterate once.

    A file of 137 kB can decode to 8 GB: equal values are stored once, with the number of times that they occur. So
    sizes are looked up or computed before anything is made of the values, and the rows are counted as they are read.

    Args:
        name: Name of the file, for errors.
        most_mb: As for `read_parquet`.
        file: The open `pyarrow.parquet.ParquetFile`, whose columns of strings are read as dictionaries.

    Attributes:
        names: Names of the columns.
        metadata: Metadata of the schema.
    """

    def __init__(self, name: str, most_mb: int, file: Any) -> None:
        self._name = name
        self._most_mb = most_mb
        self._left = most_mb * BYTES_PER_MB
        self._file = file
        self.names: tuple[str, ...] = tuple(file.schema_arrow.names)
        self.metadata: Mapping[bytes, bytes] = file.schema_arrow.metadata or {}

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        from pyarrow import ArrowException

        try:
            for group in range(self._file.metadata.num_row_groups):
                yield from self._read_group(group)
        except (ArrowException, OSError) as error:
            raise LLMDatasetError(f"{self._name} cannot be read: {error}") from None
        finally:
            self._file.close()

    def _read_group(self, number: int) -> Iterator[tuple[Any, ...]]:
        group = self._file.metadata.row_group(number)
        chunks = [group.column(index) for index in range(group.num_columns)]
        # A single page may be as large as all of its column, so this is checked before anything is decompressed.
        self._require_room(sum(chunk.total_uncompressed_size for chunk in chunks))
        # A column with more values than rows contains lists; one row may contain all of the values.
        nested = max((chunk.num_values for chunk in chunks if chunk.num_values > group.num_rows), default=0)
        self._require_room(nested * BYTES_PER_VALUE)
        values_per_row = max(1, nested // max(1, group.num_rows))
        batches = self._file.iter_batches(
            batch_size=max(1, min(BATCH_ROWS, BATCH_VALUES // values_per_row)), row_groups=[number], use_threads=False
        )
        for batch in batches:
            size = sum(map(_measure, batch.columns)) + BYTES_PER_ROW * batch.num_rows
            self._require_room(size)
            self._left -= size
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def _require_room(self, size: int) -> None:
        if size > self._left:
            raise LLMDatasetError(
                f"{self._name}: its rows take more than {self._most_mb:,} MB of memory; "
                "raise LLM_MAX_FILE_MB if you trust the file, or use fewer samples (limit)."
            )


def _measure(column: Any) -> int:
    """Return the bytes of the values of a column, each repetition counted."""
    from pyarrow import compute, types

    if not types.is_dictionary(column.type):
        return int(column.nbytes)
    lengths = compute.binary_length(column.dictionary).take(column.indices)
    return int(compute.sum(lengths).as_py() or 0)


def read_parquet(source: Path | IO[bytes], *, most_mb: int, name: str) -> ParquetRows:
    """Open a Parquet file.

    Args:
        source: Path of the file, or its content.
        most_mb: Most memory that its decoded rows may take, in MB.
        name: Name of the file, for errors.

    Raises:
        LLMDatasetError: It is not one, or (while rows are read) it is damaged or too large.
        LLMConfigurationError: There is no package that reads it.
    """
    try:
        from pyarrow import ArrowException, parquet, types
    except ImportError:
        raise LLMConfigurationError(
            f"{name}: reading Parquet needs pyarrow: pip install 'llmkit-research[parquet]'"
        ) from None
    # Without buffering ahead, which would decode more than is asked for.
    open_file = partial(parquet.ParquetFile, source, pre_buffer=False)
    try:
        with open_file() as file:
            fields = list(file.schema_arrow)
        strings = [field.name for field in fields if types.is_string(field.type) or types.is_binary(field.type)]
        return ParquetRows(name, most_mb, open_file(read_dictionary=strings))
    except (ArrowException, ValueError) as error:
        raise LLMDatasetError(f"{name} is not a Parquet file: {error}") from None
    except OSError as error:
        raise LLMDatasetError(f"{name} cannot be read: {error.strerror or error}") from None
