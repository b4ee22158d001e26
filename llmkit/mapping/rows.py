"""The rows of a column or a table as the texts that are asked about, equal ones once."""

from __future__ import annotations

import hashlib
import string
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.errors import LLMBadRequest

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Rows"]

TEXT = "text"
MISSING = -1


@dataclass(frozen=True, slots=True)
class _Placeholder:
    """A place in a template that a row fills."""

    name: str


Parts = tuple[str | _Placeholder, ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of the input and the distinct texts among them.

    Attributes:
        index: That of the input, as it is.
        codes: For every row the number of its text, or -1 when a value that it needs is missing.
        firsts: For every distinct text the position of the first row that has it.
    """

    index: pd.Index[Any]
    codes: array[int]
    firsts: array[int]
    _source: _Source

    @classmethod
    def of(cls, data: Any, *, template: str | None = None, prompt: str | None = None) -> Rows:
        """Read the input; sends nothing.

        Args:
            data: A Series, a DataFrame, or any sequence of values.
            template: Makes the text of a row out of its columns, written `{column}`.
            prompt: Goes around the text, where it says `{text}`, or before it. Without a template, a prompt for a
                DataFrame names columns itself.

        Raises:
            LLMBadRequest: A template cannot be read or names what is not there, or a DataFrame has several columns
                and nothing says which to use.
        """
        source = _Source.of(data, template, prompt)
        codes, firsts = array("q"), array("q")
        # By hash: the texts themselves are in the input already.
        known: dict[bytes, int] = {}
        for row in range(source.count):
            text = source.text(row)
            if text is None:
                codes.append(MISSING)
                continue
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
            code = known.setdefault(digest, len(known))
            if code == len(firsts):
                firsts.append(row)
            codes.append(code)
        return cls(source.index, codes, firsts, source)

    def text(self, code: int) -> str:
        """Return a distinct text."""
        return self._source.text(self.firsts[code]) or ""

    def sizes(self) -> array[int]:
        """For every distinct text, how many rows have it."""
        sizes = array("q", bytes(8 * len(self.firsts)))
        for code in self.codes:
            if code != MISSING:
                sizes[code] += 1
        return sizes

    @property
    def skipped(self) -> int:
        """How many rows lack a value."""
        return self.codes.count(MISSING)


@dataclass(frozen=True, slots=True)
class _Source:
    """Source of the texts: columns that fill a template, and a prompt around the result."""

    index: pd.Index[Any]
    columns: Mapping[str, Any]
    template: Parts
    around: Parts

    @classmethod
    def of(cls, data: Any, template: str | None, prompt: str | None) -> _Source:
        index, columns = _columns(data)
        around: Parts = (_Placeholder(TEXT),)
        if prompt is not None:
            around = _parse_template(prompt)
            if not _places(around):
                around = (*around, "\n\n", _Placeholder(TEXT))
            elif template is None:
                return cls(index, columns, _check_parts(around, columns), (_Placeholder(TEXT),))
        inner = _parse_template(template) if template is not None else (_Placeholder(_only(columns)),)
        return cls(index, columns, _check_parts(inner, columns), _check_parts(around, {TEXT: None}))

    @property
    def count(self) -> int:
        return len(self.index)

    def text(self, row: int) -> str | None:
        """Return the text of a row; None when a value that it needs is missing."""
        values: dict[str, str] = {}
        for name in _places(self.template):
            value = self.columns[name][row]
            if _is_missing(value):
                return None
            values[name] = value if type(value) is str else str(value)
        return _fill_parts(self.around, {TEXT: _fill_parts(self.template, values)})


def _columns(data: Any) -> tuple[pd.Index[Any], dict[str, Any]]:
    import pandas as pd

    if isinstance(data, pd.DataFrame):
        names = data.columns.map(str)  # as a template names them
        if not names.is_unique:
            raise LLMBadRequest("Two columns of the frame have the same name; rename one of them")
        return data.index, {name: data.iloc[:, place].array for place, name in enumerate(names)}
    if isinstance(data, str | bytes) or (not isinstance(data, pd.Series | pd.Index | Sequence) and not _is_array(data)):
        raise LLMBadRequest(f"map takes a Series, a DataFrame or a list of values; got {type(data).__name__}")
    series = data if isinstance(data, pd.Series) else pd.Series(list(data), dtype="object")
    columns = {TEXT: series.array}
    if isinstance(series.name, str):
        columns.setdefault(series.name, series.array)
    return series.index, columns


def _is_array(data: Any) -> bool:
    return getattr(data, "ndim", None) == 1 and hasattr(data, "__len__")


def _only(columns: Mapping[str, Any]) -> str:
    if TEXT in columns or len(columns) == 1:
        return TEXT if TEXT in columns else next(iter(columns))
    raise LLMBadRequest(
        f"Say which columns make the text, for example template='{{{next(iter(columns), 'column')}}}'; "
        f"the frame has: {', '.join(columns) or 'none'}"
    )


def _parse_template(template: str) -> Parts:
    try:
        return tuple(_parts(template))
    except ValueError as error:
        raise LLMBadRequest(f"The template cannot be read: {error}; write {{column}}, and {{{{ for a brace") from None


def _parts(template: str) -> Iterator[str | _Placeholder]:
    for literal, name, spec, conversion in string.Formatter().parse(template):
        if literal:
            yield literal
        if name is not None:
            if spec or conversion:
                raise ValueError(f"{{{name}}} is not a plain column")
            yield _Placeholder(name)


def _places(parts: Parts) -> list[str]:
    return [part.name for part in parts if isinstance(part, _Placeholder)]


def _check_parts(parts: Parts, known: Mapping[str, Any]) -> Parts:
    unknown = [name for name in _places(parts) if name not in known]
    if unknown:
        raise LLMBadRequest(
            f"The template names {{{unknown[0]}}}, and there is only {', '.join(f'{{{name}}}' for name in known)}; "
            "write {{ and }} for braces that are text"
        )
    return parts


def _fill_parts(parts: Parts, values: Mapping[str, str]) -> str:
    return "".join(part if isinstance(part, str) else values[part.name] for part in parts)


def _is_missing(value: Any) -> bool:
    from pandas import isna
    from pandas.api.types import is_scalar

    return value is None or (not isinstance(value, str) and bool(is_scalar(value)) and bool(isna(value)))
