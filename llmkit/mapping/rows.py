"""Rows of a column or a table, as the distinct texts that are sent."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.batch.template import Parts, Placeholder, fill_template, list_placeholders, parse_template
from llmkit.errors import LLMBadRequest

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Rows"]

TEXT = "text"
MISSING = -1


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of the input and the distinct texts among them.

    Attributes:
        index: Index of the input, unchanged.
        codes: Number of the text of each row, or -1 if a value that it needs is missing.
        firsts: Position of the first row with each distinct text.
    """

    index: pd.Index[Any]
    codes: array[int]
    firsts: array[int]
    _source: _Source

    @classmethod
    def read(cls, data: Any, *, template: str | None = None, prompt: str | None = None) -> Rows:
        """Read the input. Sends nothing.

        Args:
            data: A Series, a DataFrame, or any sequence of values or dictionaries; or a table or column of polars,
                Arrow or Hugging Face.
            template: Builds the text of a row from its columns, written `{column}`.
            prompt: Contains `{text}` where the text goes, or is put before it. Without a template, a prompt for a
                DataFrame names columns itself.

        Raises:
            LLMBadRequest: A template cannot be read or names an unknown column, or a DataFrame has several columns
                and neither template nor prompt names one.
        """
        source = _Source.read(data, template, prompt)
        codes, firsts = array("q"), array("q")
        # Texts are compared by hash, because keeping them all would double the memory of the input.
        codes_by_digest: dict[bytes, int] = {}
        for row in range(source.count):
            text = source.build_text(row)
            if text is None:
                codes.append(MISSING)
                continue
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            code = codes_by_digest.setdefault(digest, len(codes_by_digest))
            if code == len(firsts):
                firsts.append(row)
            codes.append(code)
        return cls(source.index, codes, firsts, source)

    def build_text(self, code: int) -> str:
        """Return a distinct text."""
        return self._source.build_text(self.firsts[code]) or ""

    def write_values(self, code: int) -> str:
        """Return what a distinct text was made of, without the prompt and the template around it."""
        return " | ".join((self._source.read_values(self.firsts[code]) or {}).values())

    def count_repeats(self) -> array[int]:
        """Return the number of rows with each distinct text."""
        sizes = array("q", bytes(8 * len(self.firsts)))
        for code in self.codes:
            if code != MISSING:
                sizes[code] += 1
        return sizes

    @property
    def skipped(self) -> int:
        """Number of rows that lack a value."""
        return self.codes.count(MISSING)


@dataclass(frozen=True, slots=True)
class _Source:
    """Source of the texts: columns that fill a template, and a prompt around the result."""

    index: pd.Index[Any]
    columns: Mapping[str, Any]
    template: Parts
    around: Parts

    @classmethod
    def read(cls, data: Any, template: str | None, prompt: str | None) -> _Source:
        index, columns = _read_columns(data)
        text = (Placeholder(TEXT),)
        around: Parts = text
        if prompt is not None:
            around = _parse(prompt)
            if not list_placeholders(around):
                around = (*around, "\n\n", *text)
            elif template is None:
                # The prompt itself is the template: it names columns.
                return cls(index, columns, _check_parts(around, columns), text)
        inner = _parse(template) if template is not None else (Placeholder(_choose_only_column(columns)),)
        return cls(index, columns, _check_parts(inner, columns), _check_parts(around, {TEXT: None}))

    @property
    def count(self) -> int:
        return len(self.index)

    def build_text(self, row: int) -> str | None:
        """Return the text of a row; None if a value that it needs is missing."""
        values = self.read_values(row)
        if values is None:
            return None
        text = fill_template(self.template, values.__getitem__)
        return fill_template(self.around, lambda _name: text)

    def read_values(self, row: int) -> dict[str, str] | None:
        """Return the values that the text of a row needs, by column; None if one is missing."""
        values: dict[str, str] = {}
        for name in list_placeholders(self.template):
            value = self.columns[name][row]
            if _is_missing(value):
                return None
            values[name] = value if type(value) is str else str(value)
        return values


def _read_columns(data: Any) -> tuple[pd.Index[Any], dict[str, Any]]:
    import pandas as pd

    data = _to_pandas(data)
    if isinstance(data, pd.DataFrame):
        # A template names columns by strings.
        names = data.columns.map(str)
        if not names.is_unique:
            raise LLMBadRequest("Two columns of the frame have the same name; rename one of them")
        return data.index, {name: data.iloc[:, position].array for position, name in enumerate(names)}
    is_array = getattr(data, "ndim", None) == 1 and hasattr(data, "__len__")
    if isinstance(data, str | bytes) or (not isinstance(data, pd.Series | pd.Index | Sequence) and not is_array):
        splits = f": pass one of its splits, such as data[{next(iter(data))!r}]" if isinstance(data, Mapping) else ""
        remedy = splits if hasattr(data, "column_names") else ": pass list(data)" if isinstance(data, Iterable) else ""
        raise LLMBadRequest(f"map takes a Series, a DataFrame or a list of values; got {type(data).__name__}{remedy}")
    series = data if isinstance(data, pd.Series) else pd.Series(list(data), dtype="object")
    columns = {TEXT: series.array}
    if isinstance(series.name, str):
        columns.setdefault(series.name, series.array)
    columns |= _find_fields(series.array)
    return series.index, columns


class _RecordField:
    """A field of dictionaries as a column. It keeps no copy: few of the fields are usually named.

    Args:
        records: The dictionaries; anything else has no fields.
        name: Name of the field.
    """

    def __init__(self, records: Any, name: str) -> None:
        self._records = records
        self._name = name

    def __getitem__(self, row: int) -> Any:
        record = self._records[row]
        return record.get(self._name) if isinstance(record, Mapping) else None


def _find_fields(values: Any) -> dict[str, Any]:
    """Return the fields of dictionaries as columns by name; nothing for values of another kind.

    A field alone is the text too, as a column alone is. Of several, the text is the dictionary, unless one is `text`.
    """
    names: dict[str, None] = {}
    for value in values:
        if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            names |= dict.fromkeys(value)
        elif not _is_missing(value):
            return {}
    fields = {name: _RecordField(values, name) for name in names}
    return {TEXT: next(iter(fields.values())), **fields} if len(fields) == 1 else fields


def _to_pandas(data: Any) -> Any:
    """Return a table or a column of polars, Arrow or Hugging Face as one of pandas; anything else as it is.

    By their lists, and not by `to_pandas`, which needs pyarrow, and makes 1.0 of a 1 above a missing value.
    """
    import pandas as pd

    if hasattr(data, "collect_schema") and hasattr(data, "collect"):  # a plan of polars, which has no rows yet
        data = data.collect()
    columns: Any = None
    if hasattr(data, "get_columns"):  # polars
        columns = {each.name: each.to_list() for each in data.get_columns()}
    elif hasattr(data, "to_pydict"):  # Arrow
        columns = data.to_pydict()
    elif hasattr(data, "features") and hasattr(data, "to_dict"):  # Hugging Face
        columns = {name: _name_classes(data.features[name], values) for name, values in data.to_dict().items()}
    elif hasattr(data, "to_pylist"):
        return data.to_pylist()
    elif type(data).__module__.startswith("polars."):
        return pd.Series(data.to_list(), name=data.name or None, dtype="object")
    return data if columns is None else pd.DataFrame(columns, dtype="object")


def _name_classes(feature: Any, values: list[Any]) -> list[Any]:
    """Return the names of the codes in a column of a `ClassLabel`, and the values of any other as they are."""
    if not hasattr(feature, "int2str"):
        return values
    return [None if value is None or value < 0 else feature.int2str(value) for value in values]


def _choose_only_column(columns: Mapping[str, Any]) -> str:
    if TEXT in columns or len(columns) == 1:
        return TEXT if TEXT in columns else next(iter(columns))
    raise LLMBadRequest(
        f"Name the columns of the text, for example template='{{{next(iter(columns), 'column')}}}'; "
        f"the frame has: {', '.join(columns) or 'none'}"
    )


def _parse(template: str) -> Parts:
    try:
        return parse_template(template)
    except ValueError as error:
        raise LLMBadRequest(f"The template cannot be read: {error}; write {{column}}, and {{{{ for a brace") from None


def _check_parts(parts: Parts, known: Mapping[str, Any]) -> Parts:
    unknown = [name for name in list_placeholders(parts) if name not in known]
    if unknown:
        raise LLMBadRequest(
            f"The template names {{{unknown[0]}}}, and there is only {', '.join(f'{{{name}}}' for name in known)}; "
            "write {{ and }} for braces that are text"
        )
    return parts


def _is_missing(value: Any) -> bool:
    from pandas import isna
    from pandas.api.types import is_scalar

    return value is None or (not isinstance(value, str) and bool(is_scalar(value)) and bool(isna(value)))
