"""Rows as a DataFrame with given columns and dtypes. pandas is imported when the first frame is made."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Columns", "Kind", "frame_of", "framed"]

Kind = Literal["uuid", "time", "string", "Int64", "Float64", "boolean"]
Columns = Mapping[str, Kind]

TIME_DTYPE: Final = "datetime64[us, UTC]"
HEX_DIGITS: Final = 32
HYPHENS_BEFORE: Final = (8, 12, 16, 20)


def frame_of(rows: Iterable[tuple[Any, ...]], columns: Columns) -> pd.DataFrame:
    """A frame from rows whose values are in the order of `columns`.

    Times may be aware datetimes or UTC texts, ids UUIDs or texts with or without hyphens.
    """
    return framed([rows], columns)


def framed(batches: Iterable[Iterable[Sequence[Any]]], columns: Columns) -> pd.DataFrame:
    """As `frame_of`, from batches of rows that become columns at once: few rows stay in the processor's cache."""
    import pandas as pd

    by_column: list[list[Any]] = [[] for _ in columns]
    for rows in batches:
        for column_so_far, values in zip(by_column, zip(*rows, strict=True), strict=False):
            column_so_far.extend(values)
    typed = {name: _typed(values, kind) for values, (name, kind) in zip(by_column, columns.items(), strict=True)}
    # Of arrays of our own, which nobody else holds.
    return pd.DataFrame(typed, columns=list(columns), copy=False)


def _typed(values: list[Any], kind: Kind) -> pd.Series[Any]:
    import pandas as pd

    if kind == "uuid":
        return _typed(_hyphenated(values), "string")
    if kind == "boolean":
        values = [None if value is None else bool(value) for value in values]
    by_arrow = _by_arrow(values, kind)
    if by_arrow is not None:
        return by_arrow
    if kind == "time":
        return pd.to_datetime(pd.Series(values, dtype="object"), utc=True, format="ISO8601").astype(TIME_DTYPE)
    # Never by way of a float: that would round large counts.
    return pd.Series(values, dtype="object").astype(kind)


def _by_arrow(
    values: list[Any], kind: Literal["time", "string", "Int64", "Float64", "boolean"]
) -> pd.Series[Any] | None:
    """The same through pyarrow, in a third of the time; None when it is not there or does not take the values."""
    try:
        import pyarrow as pa
    except ImportError:
        return None
    import pandas as pd

    types = {"string": pa.large_string, "Int64": pa.int64, "Float64": pa.float64, "boolean": pa.bool_}
    dtypes = {"string": pd.StringDtype, "Int64": pd.Int64Dtype, "Float64": pd.Float64Dtype, "boolean": pd.BooleanDtype}
    try:
        if kind == "time":
            # Only of texts without a zone, which are in UTC.
            times: pd.Series[Any] = pa.array(values, type=pa.string()).cast(pa.timestamp("us")).to_pandas()
            return times.dt.tz_localize("UTC")
        array = pa.array(values, type=types[kind](), from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeError):
        return None
    return pd.Series(dtypes[kind]().__from_arrow__(array), copy=False)


def _hyphenated(values: list[Any]) -> list[str | None]:
    """Ids in the usual form; SQLite has them without hyphens."""
    import numpy as np

    texts = [None if value is None else str(value) for value in values]
    is_short = [text is not None and len(text) == HEX_DIGITS and text.isascii() for text in texts]
    digits = "".join(itertools.compress(texts, is_short)).encode()  # type: ignore[arg-type]
    letters = np.frombuffer(digits, dtype="S1").reshape(-1, HEX_DIGITS)
    joined = np.insert(letters, HYPHENS_BEFORE, b"-", axis=1).tobytes().decode()
    length = HEX_DIGITS + len(HYPHENS_BEFORE)
    long = (joined[start : start + length] for start in range(0, len(joined), length))
    return [next(long) if short else text for text, short in zip(texts, is_short, strict=True)]
