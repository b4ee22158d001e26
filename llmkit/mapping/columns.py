"""The result of a map as a DataFrame: fixed columns and dtypes, one row for each row of the input."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, RootModel
from typing_extensions import is_typeddict

from llmkit.mapping.rows import MISSING, Rows
from llmkit.pydanticai.output_shape import OutputShape
from llmkit.types import ServedFrom

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MAP_COLUMNS", "NOT_RUN", "AnswerColumns", "Outcome", "build_frame", "choose_columns"]

SUCCEEDED, FAILED, SKIPPED, NOT_RUN, IN_PROGRESS = "SUCCEEDED", "FAILED", "SKIPPED", "NOT_RUN", "IN_PROGRESS"

MAP_COLUMNS: Final[Mapping[str, str]] = {
    "status": "string",
    "route": "string",
    "error_code": "string",
    "error_message": "string",
    "input_tokens": "Int64",
    "output_tokens": "Int64",
    "served_from": "string",
    "run_id": "string",
}
"""Columns after those of the answer, and their dtypes."""

TEXT_COLUMN, VALUE_COLUMN = "text", "value"
_DTYPES: Final[Mapping[type, str]] = {bool: "boolean", int: "Int64", float: "Float64", str: "string"}


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome for one distinct text; `values` are in the order of the answer's columns.

    The other attributes are the columns in `MAP_COLUMNS`.
    """

    status: str
    values: tuple[Any, ...] | None = None
    route: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    served_from: str | None = None
    run_id: str | None = None


@dataclass(frozen=True, slots=True)
class AnswerColumns:
    """Columns into which an answer is split.

    Attributes:
        dtypes: Dtype of each column, in the order of the fields.
        answer: The output type; None for plain text.
        fields: Field names in the same order; empty for a type without fields.
    """

    dtypes: Mapping[str, str]
    answer: OutputShape[Any] | None = None
    fields: tuple[str, ...] = ()

    def split_value(self, value: Any) -> tuple[Any, ...]:
        """Return the cells of one answer. Objects inside a field become dictionaries."""
        if self.answer is None:
            return (str(value),)
        # Read from the value and not from a dump of it: a serialiser may hide fields or return a string.
        if self.answer.wrapped:
            return (_unwrap_enum(_to_plain(value)),)
        read = value.get if isinstance(value, dict) else partial(getattr, value)
        return tuple(_unwrap_enum(_to_plain(read(name, None))) for name in self.fields)


def choose_columns(output_type: Any | None) -> AnswerColumns:
    """Return the columns for a type, or for plain text if None.

    They are one column for each field of a model, dataclass or TypedDict, `value` for any other type, and `text` for
    text. Whole numbers are `Int64`, numbers `Float64`, flags `boolean`; strings, literals and enums of strings are
    `string`; all of these have `<NA>` for missing values. Anything else is `object`. A field whose name is in
    `MAP_COLUMNS` gets a `_` at its end.

    Raises:
        LLMBadRequest: It is not a type, or one without a JSON schema.
    """
    if output_type is None:
        return AnswerColumns({TEXT_COLUMN: "string"})
    answer = OutputShape.of(output_type)
    if answer.wrapped:
        return AnswerColumns({VALUE_COLUMN: _choose_dtype(output_type)}, answer)
    types = _read_field_types(output_type)
    names = {name: f"{name}_" if name in MAP_COLUMNS else name for name in types}
    return AnswerColumns({names[name]: _choose_dtype(hint) for name, hint in types.items()}, answer, tuple(types))


def build_frame(rows: Rows, outcomes: Sequence[Outcome | None], columns: AnswerColumns, unrun: Outcome) -> pd.DataFrame:
    """Return a frame with one row for each row of the input, and the input's index.

    Args:
        rows: The input.
        outcomes: Outcome of each distinct text; None if it has none yet.
        columns: Columns of the answer.
        unrun: Outcome to show in place of None.
    """
    import numpy as np
    import pandas as pd

    codes = np.frombuffer(rows.codes, dtype=np.int64) if len(rows.codes) else np.empty(0, dtype=np.int64)
    # Rows with a missing value have the code -1, which as an index means the last outcome.
    assert MISSING == -1
    by_code = [*(outcome or unrun for outcome in outcomes), Outcome(SKIPPED)]
    arrays: dict[str, Any] = {}
    for position, (name, dtype) in enumerate(columns.dtypes.items()):
        cells = [None if each.values is None else each.values[position] for each in by_code]
        arrays[name] = _repeat_values(cells, dtype, codes)
    for name, dtype in MAP_COLUMNS.items():
        arrays[name] = _repeat_values([getattr(each, name) for each in by_code], dtype, codes)
    frame = pd.DataFrame(arrays)
    # Only the first row with a text was sent; equal rows share its answer.
    is_repeat = np.ones(len(codes), dtype=bool)
    is_repeat[np.frombuffer(rows.firsts, dtype=np.int64) if len(rows.firsts) else []] = False
    is_shared = is_repeat & (frame["status"] == SUCCEEDED).to_numpy(dtype=bool)
    frame.loc[is_shared, "served_from"] = str(ServedFrom.SHARED)
    return frame.set_axis(rows.index, axis=0)


def _repeat_values(values: list[Any], dtype: Any, codes: Any) -> Any:
    """Return a column: for each row the value of its code."""
    import numpy as np
    import pandas as pd

    if dtype != "object":
        try:
            return pd.array([pd.NA if value is None else value for value in values], dtype=dtype).take(codes)
        except (TypeError, ValueError, OverflowError):
            pass  # a value that does not fit the dtype, such as 2**63, is kept in an object column
    cells = np.empty(len(values), dtype=object)
    for position, value in enumerate(values):
        # One by one: numpy would unpack a list that is assigned as a whole.
        cells[position] = value
    return cells.take(codes)


def _read_field_types(output_type: Any) -> dict[str, Any]:
    if issubclass(output_type, BaseModel):
        return {name: field.annotation for name, field in output_type.model_fields.items()}
    if is_typeddict(output_type):
        return get_type_hints(output_type)
    hints = get_type_hints(output_type)
    return {field.name: hints[field.name] for field in dataclasses.fields(output_type)}


def _choose_dtype(hint: Any) -> str:
    types = _collect_types(hint) - {NoneType}
    return _DTYPES.get(types.pop(), "object") if len(types) == 1 else "object"


def _collect_types(hint: Any) -> set[Any]:
    """Return the plain types that values of an annotation have."""
    origin = get_origin(hint)
    if origin is Annotated or origin in (typing.Required, typing.NotRequired):
        return _collect_types(get_args(hint)[0])
    if origin in (Union, UnionType):
        return {kind for part in get_args(hint) for kind in _collect_types(part)}
    if origin is Literal:
        return {type(_unwrap_enum(value)) for value in get_args(hint)}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {type(member.value) for member in hint}
    return {hint}


def _to_plain(value: Any) -> Any:
    """Return a value with the objects inside it as dictionaries by field name; anything else as it is."""
    if isinstance(value, RootModel):
        return _to_plain(value.root)
    if isinstance(value, BaseModel):
        names = (*type(value).model_fields, *(value.model_extra or {}), *type(value).model_computed_fields)
        return {name: _to_plain(getattr(value, name)) for name in names}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if type(value) is dict:
        return {key: _to_plain(part) for key, part in value.items()}
    # Only these: a model in a set would become a dictionary, which no set can contain.
    return type(value)(_to_plain(part) for part in value) if type(value) in (list, tuple) else value


def _unwrap_enum(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value
