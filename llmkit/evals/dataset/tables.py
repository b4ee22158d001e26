"""Tables and datasets of other libraries: pandas, polars, Arrow, Hugging Face, and what speaks their protocols."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from numbers import Integral
from typing import Any, NamedTuple

from pydantic import BaseModel

from llmkit.errors import LLMDatasetError
from llmkit.evals.dataset.delimited import require_unique
from llmkit.evals.dataset.json_records import Record, number_fields

__all__ = [
    "LARGEST_WHOLE_FLOAT",
    "Records",
    "find_class_names",
    "find_missing_test",
    "is_frame",
    "name_class",
    "open_table",
    "read_item",
]

# From here on, not every whole number is a float.
LARGEST_WHOLE_FLOAT = 2**53
BATCH_ROWS = 256
# Exact types first: asking pandas whether each string is missing took a third of the time of reading a frame.
UNCHANGED = (str, int, bool)
HUGGING_FACE_KEY = b"huggingface"


class Records(NamedTuple):
    """Records of a source.

    Attributes:
        name: Name of the source, for errors.
        rows: The place and the fields of each record.
        length: How many there are; None when only reading them shows it.
        is_table: Whether all records have the same fields.
    """

    name: str
    rows: Iterator[Record]
    length: int | None = None
    is_table: bool = True


def open_table(
    source: Any, split: str | None, *, wanted: Sequence[str] = (), keep_floats: bool = False
) -> Records | None:
    """Return the records of a table, or None for what is no table.

    Args:
        source: A DataFrame of pandas or polars, an Arrow table, a `Dataset` or `DatasetDict` of Hugging Face, a
            dictionary of columns, or an object with `__arrow_c_stream__` or `__dataframe__`.
        split: The part of a `DatasetDict`.
        wanted: Columns that are mapped: the index of a DataFrame is a column if it has the name of one of these.
        keep_floats: As for `_read_pandas`.

    Raises:
        LLMDatasetError: It cannot be read as a table, or the split is missing.
    """
    kind = f"{type(source).__module__}.{type(source).__name__}"
    if is_frame(source):
        source = _name_index(source, wanted)
        return Records("DataFrame", _read_pandas(source, "DataFrame", keep_floats=keep_floats), len(source))
    if isinstance(source, Mapping):
        return _open_mapping(source, split)
    if split is not None:
        raise LLMDatasetError(f"split= is for a DatasetDict; got {type(source).__name__}.")
    if hasattr(source, "to_frame") and hasattr(source, "dtype"):
        raise LLMDatasetError(f"A dataset has columns, and a {type(source).__name__} is one; pass its to_frame().")
    if hasattr(source, "collect") and hasattr(source, "collect_schema"):
        # A lazy frame of polars is a plan, which has no rows yet.
        return open_table(source.collect(), split)
    if hasattr(source, "column_names") and hasattr(source, "features"):
        return _open_hugging_face(source)
    if hasattr(source, "iter_rows") and hasattr(source, "columns"):
        # Without pyarrow, which polars does not need either.
        names = [str(name) for name in source.columns]
        return Records("DataFrame", _number_rows(names, source.iter_rows(), "DataFrame"), len(source))
    if kind.startswith("pyarrow.") or hasattr(source, "__arrow_c_stream__"):
        return _open_arrow(source)
    if hasattr(source, "__dataframe__"):
        from pandas.api.interchange import from_dataframe

        return open_table(from_dataframe(source), split)
    return None


def read_item(item: Any, number: int) -> Mapping[str, Any]:
    """Return the fields of an item of a list: of a dictionary, a model, a dataclass, or a row of a database.

    Raises:
        LLMDatasetError: It has no named fields.
    """
    if isinstance(item, Mapping):
        return {str(name): None if _is_nothing(value) else value for name, value in item.items()}
    if isinstance(item, BaseModel):
        return {name: getattr(item, name) for name in type(item).model_fields}
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return {each.name: getattr(item, each.name) for each in dataclasses.fields(item)}
    if hasattr(item, "_asdict"):
        return dict(item._asdict())
    if hasattr(item, "keys") and hasattr(item, "__getitem__") and not isinstance(item, type):
        # sqlite3.Row is such: iterating it gives its values.
        return {str(name): item[name] for name in item.keys()}  # noqa: SIM118
    if isinstance(item, list | tuple):
        return number_fields(item)
    raise LLMDatasetError(
        f"Sample {number} of the list is a {type(item).__name__}; give a Sample, or a dictionary of its fields."
    )


def is_frame(source: object) -> bool:
    """Return whether it is a DataFrame of pandas."""
    # A DataFrame cannot be here unless its library is loaded already.
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(source, pandas.DataFrame)


def find_class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, Sequence[str]]:
    """Return the names of the classes by column, as Hugging Face's datasets write them into the schema of a table."""
    try:
        features = json.loads((metadata or {})[HUGGING_FACE_KEY])["info"]["features"]
        # The classes of a list of them are those of its `feature`.
        parts = {name: each if "names" in each else each.get("feature", {}) for name, each in features.items()}
        return {name: each["names"] for name, each in parts.items() if isinstance(each.get("names"), list)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def name_class(names: Sequence[str] | None, value: Any) -> Any:
    """Return the name of a class for its code, also in a list; codes below 0 stand for no label."""
    if names is None:
        return value
    if isinstance(value, list):
        return [name_class(names, item) for item in value]
    if not isinstance(value, Integral) or isinstance(value, bool):
        return value
    return None if value < 0 else names[int(value)] if value < len(names) else value


def list_values(column: Any) -> list[Any]:
    """Return the values of an Arrow column; a map becomes a dictionary, unless a key occurs twice."""
    try:
        values: list[Any] = column.to_pylist(maps_as_pydicts="strict")
    except KeyError:
        values = column.to_pylist()
    return values


def _is_nothing(value: Any) -> bool:
    """Return whether a value stands for a missing one: a NaN, NaT or NA."""
    # Those of pandas are not equal to themselves, or refuse to say.
    try:
        return value is None or (not isinstance(value, str | int | dict | list) and bool(value != value))
    except (TypeError, ValueError):
        return type(value).__name__ == "NAType"


def _number_rows(names: Sequence[str], rows: Iterable[Sequence[Any]], source: str, first: int = 0) -> Iterator[Record]:
    names = [name.strip() for name in names]
    require_unique(names, source)
    for number, row in enumerate(rows, start=first):
        # NaN is no null for these libraries, but what comes from pandas has it in place of one.
        cells = {
            name: None if isinstance(value, float) and value != value else value
            for name, value in zip(names, row, strict=True)
        }
        yield f"{source}, row {number}", cells


def _open_mapping(source: Mapping[Any, Any], split: str | None) -> Records:
    """Return the records of a dictionary of columns, or of datasets by split."""
    values = list(source.values())
    tables = (
        bool(values)
        and all(
            is_frame(value) or hasattr(value, "column_names") or hasattr(value, "__arrow_c_stream__")
            for value in values
        )
        and not any(hasattr(value, "dtype") for value in values)
    )
    if not tables and split is None:
        return _open_columns(source)
    names = [str(name) for name in source]
    chosen = split if split is not None else names[0] if len(names) == 1 else None
    if chosen is None or chosen not in source:
        problem = (
            f"has the splits {', '.join(names)}"
            if split is None
            else f"has no split {split!r}; it has {', '.join(names)}"
        )
        raise LLMDatasetError(f"The {type(source).__name__} {problem}: pass split={(names or [''])[-1]!r}.")
    table = open_table(source[chosen], None)
    if table is None:
        raise LLMDatasetError(f"The split {chosen!r} is no table; got {type(source[chosen]).__name__}.")
    return table


def _open_columns(source: Mapping[Any, Any]) -> Records:
    names = [str(name) for name in source]
    columns = [value.tolist() if hasattr(value, "tolist") else value for value in source.values()]
    if not columns or not all(isinstance(column, list | tuple) for column in columns):
        raise LLMDatasetError(
            f"A dataset is a file, samples, records or a table; got one {type(source).__name__}; "
            "put it into a list if it is a record."
        )
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise LLMDatasetError(f"The columns {', '.join(names)} have different numbers of values.")
    return Records("columns", _number_rows(names, zip(*columns, strict=True), "columns"), lengths.pop())


def _open_hugging_face(source: Any) -> Records:
    """Return the records of a `Dataset` or `IterableDataset`, with the names of classes in place of their codes."""
    if hasattr(source, "with_format"):
        # A format makes arrays or frames of the rows.
        source = source.with_format(None)
    features = source.features or {}
    parts: dict[str, Any] = {
        name: each if hasattr(each, "int2str") else getattr(each, "feature", None) for name, each in features.items()
    }
    classes = {name: each.names for name, each in parts.items() if hasattr(each, "int2str")}

    def read() -> Iterator[Record]:
        for number, row in enumerate(source):
            cells = {name: name_class(classes.get(name), value) for name, value in row.items()}
            yield (
                f"Dataset, row {number}",
                {name: None if _is_nothing(value) else value for name, value in cells.items()},
            )

    return Records("Dataset", read(), len(source) if isinstance(source, Sized) else None)


def _open_arrow(source: Any) -> Records:
    """Return the records of an Arrow table, record batch or stream."""
    try:
        import pyarrow as pa
    except ImportError:
        raise LLMDatasetError(
            f"Reading a {type(source).__name__} needs pyarrow: pip install 'llmkit-research[parquet]'"
        ) from None
    try:
        if isinstance(source, pa.Table | pa.RecordBatch):
            length: int | None = source.num_rows
            batches: Any = source.to_batches(BATCH_ROWS) if isinstance(source, pa.Table) else [source]
            schema = source.schema
        else:
            reader = source if hasattr(source, "read_next_batch") else pa.RecordBatchReader.from_stream(source)
            length, batches, schema = None, reader, reader.schema
    except (pa.ArrowException, TypeError) as error:
        raise LLMDatasetError(f"The {type(source).__name__} cannot be read as a table: {error}") from None
    classes = find_class_names(schema.metadata)
    names = [str(name) for name in schema.names]

    def read() -> Iterator[Sequence[Any]]:
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH_ROWS):
                part = batch.slice(start, BATCH_ROWS)
                for row in zip(*map(list_values, part.columns), strict=True):
                    yield [name_class(classes.get(name), value) for name, value in zip(names, row, strict=True)]

    return Records("table", _number_rows(names, read(), "table"), length)


def _name_index(frame: Any, wanted: Sequence[str]) -> Any:
    """Return the frame with its index as columns, if the mapping names one of its levels."""
    is_wanted = any(name is not None and str(name) in wanted for name in frame.index.names)
    return frame.reset_index() if is_wanted else frame


def _read_pandas(frame: Any, source: str, *, keep_floats: bool = False) -> Iterator[Record]:
    """Yield the place and the content of each row of a DataFrame.

    Whole numbers among floats become integers. pandas turns a column of integers into floats as soon as one row has no
    value, and that must not change the other rows, also when the column becomes one of objects later.

    Args:
        frame: The DataFrame.
        source: Its name, for errors.
        keep_floats: Leave floats as they are, as version 0.1.0 did.

    Raises:
        LLMDatasetError: Two columns have one name.
    """
    names = [str(name).strip() for name in frame.columns]
    require_unique(names, source)
    is_missing = find_missing_test()
    for number, row in enumerate(frame.itertuples(index=False, name=None)):
        cells = {
            name: value
            if type(value) in UNCHANGED
            else None
            if is_missing(value)
            else value
            if keep_floats
            else _narrow(value)
            for name, value in zip(names, row, strict=True)
        }
        yield f"{source}, row {number}", cells


def _narrow(value: Any) -> Any:
    # numpy's float64 is a float, and its other floats are not.
    if isinstance(value, float) or (getattr(getattr(value, "dtype", None), "kind", "") == "f" and value.ndim == 0):
        number = float(value)
        # From 2**53 on, a float is not exact.
        return int(number) if number.is_integer() and abs(number) < LARGEST_WHOLE_FLOAT else value
    return value


def find_missing_test() -> Callable[[Any], bool]:
    """Return the test of pandas for a missing value, for values of any kind."""
    from pandas import isna
    from pandas.api.types import is_scalar

    return lambda value: value is None or (is_scalar(value) and bool(isna(value)))
