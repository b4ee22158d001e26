"""Rows as a DataFrame with given columns and dtypes. pandas is imported when the first frame is built."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["Columns", "Kind", "build_frame", "build_frame_from_batches"]

Kind = Literal["uuid", "time", "string", "Int64", "Float64", "boolean"]
Columns = Mapping[str, Kind]

TIME_DTYPE: Final = "datetime64[us, UTC]"
HEX_DIGITS: Final = 32
HYPHENS_BEFORE: Final = (8, 12, 16, 20)


def build_frame(rows: Iterable[tuple[Any, ...]], columns: Columns) -> pd.DataFrame:
    """Return a frame from rows whose values are in the order of `columns`.

    Times may be aware datetimes or UTC strings; ids may be UUIDs or strings with or without hyphens.
    """
    return build_frame_from_batches([rows], columns)


def build_frame_from_batches(
    batches: Iterable[Iterable[Sequence[Any]]], columns: Columns, *, packed: Collection[str] = ()
) -> pd.DataFrame:
    """Return a frame from batches of rows. Small batches are faster, because they stay in the processor's cache.

    Args:
        batches: Batches of rows.
        columns: Columns of the frame.
        packed: Names of columns that come together, as one JSON array, before the others. One string is read faster
            than several values, and each distinct string is parsed only once.
    """
    import pandas as pd

    together = {name: kind for name, kind in columns.items() if name in packed}
    apart = {name: kind for name, kind in columns.items() if name not in packed}
    by_column: list[list[Any]] = [[] for _ in (*list(together)[:1], *apart)]
    for rows in batches:
        for column_so_far, values in zip(by_column, zip(*rows, strict=True), strict=False):
            column_so_far.extend(values)
    typed = _unpack_columns(by_column.pop(0), together) if together else {}
    typed |= {
        name: _convert_column(values, kind) for values, (name, kind) in zip(by_column, apart.items(), strict=True)
    }
    # Nothing else refers to these arrays, so pandas need not copy them.
    return pd.DataFrame(typed, columns=list(columns), copy=False)


def _unpack_columns(texts: list[str], columns: Columns) -> dict[str, pd.Series[Any]]:
    """Return the columns of JSON arrays, many of which are equal."""
    import numpy as np
    import pandas as pd

    codes, distinct = pd.factorize(np.array(texts, dtype=object))
    rows = [json.loads(text) for text in distinct]
    by_column = [list(values) for values in zip(*rows, strict=True)] or [[] for _ in columns]
    typed = (
        (name, _convert_column(values, kind)) for values, (name, kind) in zip(by_column, columns.items(), strict=True)
    )
    return {name: pd.Series(values.array.take(codes), copy=False) for name, values in typed}


def _convert_column(values: list[Any], kind: Kind) -> pd.Series[Any]:
    import pandas as pd

    if kind == "boolean":
        values = [None if value is None else bool(value) for value in values]
    series = _convert_with_pyarrow(values, kind)
    if series is not None:
        return series
    if kind == "uuid":
        return _convert_column([_hyphenate_id(value) for value in values], "string")
    if kind == "time":
        return pd.to_datetime(pd.Series(values, dtype="object"), utc=True, format="ISO8601").astype(TIME_DTYPE)
    # Going through float would round large whole numbers.
    return pd.Series(values, dtype="object").astype(kind)


def _convert_with_pyarrow(values: list[Any], kind: Kind) -> pd.Series[Any] | None:
    """Return the column, in a third of pandas' time; None if pyarrow is not installed or refuses the values."""
    try:
        import pyarrow as pa
    except ImportError:
        return None
    import pandas as pd

    types = {"string": pa.large_string, "Int64": pa.int64, "Float64": pa.float64, "boolean": pa.bool_}
    dtypes: Mapping[str, Any] = {"Int64": pd.Int64Dtype, "Float64": pd.Float64Dtype, "boolean": pd.BooleanDtype}
    try:
        if kind == "time":
            # pyarrow refuses strings with a zone. Those without one are in UTC.
            times = pa.array(values, type=pa.string()).cast(pa.timestamp("us"))
            return pd.Series(times.to_pandas()).dt.tz_localize("UTC")
        array = _hyphenate_ids(values) if kind == "uuid" else pa.array(values, types[kind](), from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeError):
        return None
    return None if array is None else pd.Series(dtypes.get(kind, pd.StringDtype)().__from_arrow__(array), copy=False)


def _hyphenate_ids(values: list[Any]) -> pa.LargeStringArray | None:
    """Return SQLite's ids, which are 32 digits, with hyphens; None if one is missing or has another form."""
    import numpy as np
    import pyarrow as pa

    if {*map(type, values)} != {str} or {*map(len, values)} != {HEX_DIGITS}:
        return None
    digits = np.frombuffer("".join(values).encode("ascii"), dtype="S1").reshape(-1, HEX_DIGITS)
    texts = np.insert(digits, HYPHENS_BEFORE, b"-", axis=1)
    ends = np.arange(0, texts.size + 1, texts.shape[1], dtype=np.int64)
    return pa.LargeStringArray.from_buffers(len(values), pa.py_buffer(ends), pa.py_buffer(texts))


def _hyphenate_id(value: Any) -> str | None:
    """Return an id with hyphens, which SQLite stores without."""
    if value is None:
        return None
    text = str(value)
    return text if len(text) != HEX_DIGITS else f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
