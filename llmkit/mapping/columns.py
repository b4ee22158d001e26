"""The result of a map as a DataFrame: fixed columns and dtypes, one row for each row of the input."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel
from typing_extensions import is_typeddict

from llmkit.mapping.rows import MISSING, Rows
from llmkit.pydanticai.output_shape import FIELD, OutputShape
from llmkit.types import ServedFrom

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MAP_COLUMNS", "NOT_RUN", "FieldColumns", "Outcome", "field_columns", "map_frame"]

SUCCEEDED, FAILED, SKIPPED, NOT_RUN, IN_PROGRESS = "SUCCEEDED", "FAILED", "SKIPPED", "NOT_RUN", "IN_PROGRESS"

MAP_COLUMNS: Final[Mapping[str, str]] = {
    "status": "string",
    "error_code": "string",
    "error_message": "string",
    "input_tokens": "Int64",
    "output_tokens": "Int64",
    "served_from": "string",
    "run_id": "string",
}
"""Columns that follow those of the answer, and their dtypes."""

TEXT_COLUMN, VALUE_COLUMN = "text", "value"
_DTYPES: Final[Mapping[type, str]] = {bool: "boolean", int: "Int64", float: "Float64", str: "string"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome for one distinct text; `values` are in the order of the answer's columns."""

    status: str
    values: tuple[Any, ...] | None = None
    error_code: str | None = None
    error_message: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    served_from: str | None = None
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class FieldColumns:
    """Mapping of an answer to columns.

    Attributes:
        dtypes: By column, in the order of the fields.
        answer: The type; None for plain text.
        fields: Field names in the same order; empty for a value that is no object, or one without fields.
    """

    dtypes: Mapping[str, str]
    answer: OutputShape[Any] | None = None
    fields: tuple[str, ...] = ()

    def values(self, found: Any) -> tuple[Any, ...]:
        """Return the values of one answer. Objects inside a field become dictionaries."""
        if self.answer is None:
            return (str(found),)
        if self.answer.wrapped:
            held = self.answer.wire_type.model_construct(**{FIELD: found})
            return (_plain(self.answer.adapter.dump_python(held)[FIELD]),)
        whole = self.answer.adapter.dump_python(found, by_alias=False)
        return tuple(_plain(whole.get(name)) for name in self.fields)


def field_columns(output_type: Any | None) -> FieldColumns:
    """Return the columns of a type, or of plain text when None.

    One column for each field of a model, dataclass or TypedDict, `value` for any other type, `text` for text. Whole
    numbers are `Int64`, numbers `Float64`, flags `boolean`, texts, literals and enums of texts `string`, with `<NA>`
    for what is missing; anything else is `object`. A field that has the name of one of `MAP_COLUMNS` gets a `_` at the
    end.

    Raises:
        LLMBadRequest: It is no type, or one without a JSON schema.
    """
    if output_type is None:
        return FieldColumns({TEXT_COLUMN: "string"})
    answer = OutputShape.of(output_type)
    if answer.wrapped:
        return FieldColumns({VALUE_COLUMN: _dtype(output_type)}, answer)
    hints = _hints(output_type)
    names = {name: f"{name}_" if name in MAP_COLUMNS else name for name in hints}
    return FieldColumns({names[name]: _dtype(hint) for name, hint in hints.items()}, answer, tuple(hints))


def map_frame(rows: Rows, outcomes: Sequence[Outcome | None], columns: FieldColumns, unrun: Outcome) -> pd.DataFrame:
    """One row for each row of the input, aligned with its index.

    Args:
        rows: The input.
        outcomes: By distinct text; None for one that has none.
        columns: Those of the answer.
        unrun: Stands for None.
    """
    import numpy as np
    import pandas as pd

    codes = np.frombuffer(rows.codes, dtype=np.int64) if len(rows.codes) else np.empty(0, dtype=np.int64)
    # The last one is what code -1 finds.
    known = [*(outcome or unrun for outcome in outcomes), Outcome(SKIPPED)]
    made: dict[str, Any] = {}
    for place, (name, dtype) in enumerate(columns.dtypes.items()):
        made[name] = _spread([None if each.values is None else each.values[place] for each in known], dtype, codes)
    for name, dtype in MAP_COLUMNS.items():
        made[name] = _spread([getattr(each, name) for each in known], dtype, codes)
    frame = pd.DataFrame(made)
    again = np.ones(len(codes), dtype=bool)
    again[np.frombuffer(rows.firsts, dtype=np.int64) if len(rows.firsts) else []] = False
    frame.loc[again & (frame["status"] == SUCCEEDED).to_numpy(dtype=bool), "served_from"] = str(ServedFrom.SHARED)
    assert MISSING == -1
    return frame.set_axis(rows.index, axis=0)


def _spread(values: list[Any], dtype: Any, codes: Any) -> Any:
    import numpy as np
    import pandas as pd

    if dtype != "object":
        try:
            return pd.array([pd.NA if value is None else value for value in values], dtype=dtype).take(codes)
        except (TypeError, ValueError, OverflowError):
            pass  # what the column cannot hold, such as a whole number above 2**63, is kept as it is
    held = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        held[place] = value
    return held.take(codes)


def _hints(output_type: Any) -> dict[str, Any]:
    if issubclass(output_type, BaseModel):
        return {name: field.annotation for name, field in output_type.model_fields.items()}
    if is_typeddict(output_type):
        return get_type_hints(output_type)
    hints = get_type_hints(output_type)
    return {field.name: hints[field.name] for field in dataclasses.fields(output_type)}


def _dtype(hint: Any) -> str:
    kinds = {kind for kind in _kinds(hint) if kind is not NoneType}
    return _DTYPES.get(kinds.pop(), "object") if len(kinds) == 1 else "object"


def _kinds(hint: Any) -> set[Any]:
    """Return the plain types that values of an annotation have."""
    origin = get_origin(hint)
    if origin is Annotated or origin in (typing.Required, typing.NotRequired):
        return _kinds(get_args(hint)[0])
    if origin in (Union, UnionType):
        return {kind for part in get_args(hint) for kind in _kinds(part)}
    if origin is Literal:
        return {type(_plain(value)) for value in get_args(hint)}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {type(member.value) for member in hint}
    return {hint}


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
