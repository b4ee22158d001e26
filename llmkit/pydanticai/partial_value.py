"""Values of a type whose JSON is still being written: the fields that have arrived, and nothing that is guessed.

Pydantic's own partial validation (`experimental_allow_partial`) does not cover models, and it reads the first digits
of a date as a date. Here only texts grow; every other value is there once it is complete and fits its type.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, RootModel, TypeAdapter
from pydantic_core import from_json, to_json
from typing_extensions import is_typeddict

from llmkit.pydanticai.output_shape import FIELD, OutputShape

__all__ = ["ABSENT", "PartialReader"]

ABSENT: Any = object()
"""In place of a value of which nothing has arrived."""

_MARKS = re.compile(r'[{}\[\]":,]|\\.', re.DOTALL)
# A number at the end may go on: 28 becomes 2800000.
_OPEN_NUMBER = re.compile(r"-?\d[\d.eE+-]*\Z")


class PartialReader:
    """Reads the JSON of one answer while it arrives.

    Args:
        shape: The type to read. Models and TypedDicts, and lists and dictionaries of them, grow; a value of another
            type is there when it is complete.
    """

    def __init__(self, shape: OutputShape[Any]) -> None:
        self._read = _find_reader(shape)
        self._is_wrapped = shape.wrapped
        self._text = ""
        self._nesting = _Nesting()
        self._last: Any = ABSENT

    def add(self, text: str) -> Any:
        """Return the value so far; `ABSENT` when there is none yet, or the same as the last time."""
        if not self._text:
            # A model without a schema may write words or a fence before its JSON.
            start = text.find("{")
            text = text[start:] if start >= 0 else ""
        self._text += text
        self._nesting.add(text)
        if not self._nesting.depth:
            return ABSENT  # before the beginning, or after the end: the whole answer is validated then
        sure = self._text if self._nesting.in_string else _OPEN_NUMBER.sub("", self._text)
        try:
            data = from_json(sure, allow_partial="trailing-strings")
        except ValueError:
            return ABSENT
        if data == self._last:
            return ABSENT
        self._last = data
        value = self._read(data, _OpenPart(self._nesting.depth, self._nesting.is_value_open))
        return value.get(FIELD, ABSENT) if self._is_wrapped else value


class _Nesting:
    """Open brackets and strings at the end of a JSON text, followed piece by piece."""

    def __init__(self) -> None:
        self._brackets: list[str] = []
        self._rest = ""
        self._last_mark = ""
        self.in_string = False

    @property
    def depth(self) -> int:
        """Number of objects and lists that are open."""
        return len(self._brackets)

    @property
    def is_value_open(self) -> bool:
        """Whether the text ends inside a string that is a value, and not a name."""
        is_name = self._brackets[-1:] == ["{"] and self._last_mark != ":"
        return self.in_string and not is_name

    def add(self, text: str) -> None:
        """Follow more of the text."""
        text = self._rest + text
        # A backslash at the end belongs to the character that follows it.
        slashes = len(text) - len(text.rstrip("\\"))
        self._rest = text[-1:] if slashes % 2 else ""
        for mark in _MARKS.finditer(text, 0, len(text) - len(self._rest)):
            sign = mark.group()
            if sign == '"':
                self.in_string = not self.in_string
            elif self.in_string or len(sign) > 1:
                continue
            elif sign in "{[":
                self._brackets.append(sign)
            elif sign in "}]" and self._brackets:
                self._brackets.pop()
            if sign != '"':
                self._last_mark = sign


@dataclass(frozen=True, slots=True)
class _OpenPart:
    """Which part of a value is still being written.

    Attributes:
        depth: Number of open objects and lists, from the value down along the last of each.
        is_text_open: Whether the innermost one ends in a text that goes on.
    """

    depth: int
    is_text_open: bool

    @property
    def is_open(self) -> bool:
        return self.depth > 0 or self.is_text_open

    def of_last(self) -> _OpenPart:
        """Return the opening of the last part."""
        return _OpenPart(self.depth - 1, self.is_text_open) if self.depth > 0 else self


_CLOSED = _OpenPart(0, is_text_open=False)
_Read = Callable[[Any, _OpenPart], Any]


@lru_cache(maxsize=128)
def _find_reader(shape: OutputShape[Any]) -> _Read:
    try:
        return _make_reader(shape.wire_type, ()) if not shape.wrapped else _make_wrapped_reader(shape.wire_type)
    except Exception:  # noqa: BLE001 - a custom type may raise anything; its value is there at the end
        return lambda _data, _opening: {} if shape.wrapped else ABSENT


def _make_wrapped_reader(wire_type: type[BaseModel]) -> _Read:
    fields = {FIELD: (FIELD, _make_reader(wire_type.model_fields[FIELD].annotation, ()))}
    return lambda data, opening: _read_fields(fields, data, opening)


def _make_reader(annotation: Any, outer: tuple[Any, ...]) -> _Read:
    """Return how values of a type are read. A type inside itself is read when it is complete."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _make_leaf_reader(annotation) if _is_custom(arguments[1:]) else _make_reader(arguments[0], outer)
    if annotation is str or annotation is Any:
        return lambda data, opening: data if isinstance(data, str) or not opening.is_open else ABSENT
    if origin in (Union, types.UnionType) and type(None) in arguments:
        others = [each for each in arguments if each is not type(None)]
        if len(others) == 1:
            inner = _make_reader(others[0], outer)
            return lambda data, opening: None if data is None else inner(data, opening)
    if origin is list and arguments:
        return _make_list_reader(_make_reader(arguments[0], outer))
    if origin is dict and arguments and arguments[0] is str:
        return _make_dict_reader(_make_reader(arguments[1], outer))
    if annotation not in outer:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel) and not issubclass(annotation, RootModel):
            return _make_model_reader(annotation, (*outer, annotation))
        if is_typeddict(annotation):
            hints = get_type_hints(annotation, include_extras=True)
            fields = {name: (name, _make_reader(hint, (*outer, annotation))) for name, hint in hints.items()}
            return lambda data, opening: _read_fields(fields, data, opening) if isinstance(data, dict) else ABSENT
    return _make_leaf_reader(annotation)


def _is_custom(metadata: tuple[Any, ...]) -> bool:
    """Return whether an annotation may change a value, so that it is read with it: all but plain limits may."""
    return any(type(each).__module__ != "annotated_types" for each in metadata)


def _make_leaf_reader(annotation: Any) -> _Read:
    adapter: TypeAdapter[Any] = TypeAdapter(annotation)

    def read(data: Any, opening: _OpenPart) -> Any:
        if opening.is_open:
            return ABSENT
        try:
            # As JSON, in which a strict date is a string.
            return adapter.validate_json(to_json(data))
        except Exception:  # noqa: BLE001 - validators are custom code; the whole answer is validated at the end
            return ABSENT

    return read


def _make_list_reader(read: _Read) -> _Read:
    def read_list(data: Any, opening: _OpenPart) -> Any:
        if not isinstance(data, list):
            return ABSENT
        last = len(data) - 1
        items = (read(each, opening.of_last() if number == last else _CLOSED) for number, each in enumerate(data))
        return [each for each in items if each is not ABSENT]

    return read_list


def _make_dict_reader(read: _Read) -> _Read:
    def read_dict(data: Any, opening: _OpenPart) -> Any:
        if not isinstance(data, dict):
            return ABSENT
        return _read_fields({key: (key, read) for key in data}, data, opening)

    return read_dict


def _make_model_reader(model: type[BaseModel], outer: tuple[Any, ...]) -> _Read:
    whole = _make_leaf_reader(model)
    fields: dict[str, tuple[str, _Read]] = {}
    for name, field in model.model_fields.items():
        custom = Annotated[field.annotation, *field.metadata] if _is_custom(tuple(field.metadata)) else field.annotation
        key = field.validation_alias if isinstance(field.validation_alias, str) else name
        fields[key] = (name, _make_reader(custom, outer))

    def read_model(data: Any, opening: _OpenPart) -> Any:
        if not isinstance(data, dict):
            return ABSENT
        if not opening.is_open and (value := whole(data, opening)) is not ABSENT:
            return value
        found = _read_fields(fields, data, opening)
        try:
            return model.model_construct(_fields_set=set(found), **found)
        except Exception:  # noqa: BLE001 - its `model_post_init` may need a field that is still to come
            return ABSENT

    return read_model


def _read_fields(
    fields: Mapping[str, tuple[str, _Read]], data: Mapping[str, Any], opening: _OpenPart
) -> dict[str, Any]:
    last = [*data][-1] if data else None
    found = {}
    for key, raw in data.items():
        if key in fields:
            name, read = fields[key]
            value = read(raw, opening.of_last() if key == last else _CLOSED)
            if value is not ABSENT:
                found[name] = value
    return found
