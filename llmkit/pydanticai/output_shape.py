"""An output type as the JSON object that represents it in requests and answers."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, is_dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, RootModel, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError
from typing_extensions import is_typeddict

from llmkit.errors import LLMBadRequest, describe_validation
from llmkit.pydanticai.written_form import find_written_form, is_plain_json, write_json

__all__ = ["OutputShape"]

T = TypeVar("T")

FIELD = "response"
_VALUES = (str, bytes, int, float, list, tuple, dict, set)


@dataclass(frozen=True, slots=True)
class OutputShape(Generic[T]):
    """Wire form of a type: a model, dataclass or TypedDict as itself, any other type as `{"response": value}`.

    Attributes:
        name: Of the type, for messages and as the name of the schema.
        wire_type: A type whose JSON is always an object.
        adapter: Of `wire_type`.
        wrapped: Whether a value is in the field `response`.
    """

    name: str
    wire_type: Any
    adapter: TypeAdapter[Any]
    wrapped: bool

    @classmethod
    def of(cls, output_type: Any) -> OutputShape[Any]:
        """Return the form of a type.

        Raises:
            LLMBadRequest: It is no type, or one without a JSON schema.
        """
        try:
            # `int | str` and `str | int` are equal, and their schemas are not.
            return _answer(output_type, repr(output_type))
        except TypeError:  # not hashable: an Annotated with a dictionary in it, say
            return _make_shape(output_type)

    def value(self, found: Any) -> T:
        """Return the value in a validated object."""
        value: T = getattr(found, FIELD) if self.wrapped else found
        return value

    def write_json(self, value: Any) -> str:
        """Return the JSON that a model would write for a value, which may be an instance or validate to one.

        Raises:
            LLMBadRequest: It is not of the type, or no JSON is read as it.
        """
        given = {FIELD: value} if self.wrapped else value
        try:
            found = self._read(given)
        except ValidationError as error:
            problems = "; ".join(describe_validation(error))
            raise LLMBadRequest(f"An example is not a valid {self.name}: {problems}") from None
        text = find_written_form(self.adapter, found, given)
        if text is None:
            raise LLMBadRequest(
                f"An example cannot be written as JSON that reads back as the same {self.name}; "
                "give it as a dictionary, as the model is to write it"
            )
        return text

    def read_json(self, text: str) -> T:
        """Return the value of a JSON text that a model wrote.

        Raises:
            ValidationError: It does not fit the type.
        """
        return self.value(self.adapter.validate_json(text))

    def _read(self, given: Any) -> Any:
        """Return the validated object, from instances by field name or from the JSON that a model would write."""
        # Plain data is read as an answer is: in JSON, bytes may be base64 and a strict date is a string.
        modes = (self._read_as_json, self._read_as_python)
        first, second = modes if is_plain_json(given) else reversed(modes)
        try:
            return first(given)
        except ValidationError:
            return second(given)

    def _read_as_json(self, given: Any) -> Any:
        return self.adapter.validate_json(write_json(given), by_name=True, by_alias=True)

    def _read_as_python(self, given: Any) -> Any:
        return self.adapter.validate_python(given, by_name=True, by_alias=True)


@lru_cache(maxsize=256)
def _answer(output_type: Any, _written: str) -> OutputShape[Any]:
    return _make_shape(output_type)


def _make_shape(output_type: Any) -> OutputShape[Any]:
    name = getattr(output_type, "__name__", None) or str(output_type)
    try:
        # Pydantic takes a string for the name of a type that is still to come, and None for the type of None.
        if output_type is None or isinstance(output_type, _VALUES):
            raise TypeError("a value")
        adapter = TypeAdapter(output_type)
        adapter.json_schema()
        if _is_object(output_type):
            return OutputShape(name, output_type, adapter, wrapped=False)
        fields: dict[str, Any] = {FIELD: (output_type, ...)}
        wire_type = create_model("OutputShape", **fields)
        return OutputShape(name, wire_type, TypeAdapter(wire_type), wrapped=True)
    except Exception as error:  # noqa: BLE001
        # Pydantic raises a dozen classes here, some of them its users' own.
        raise LLMBadRequest(
            f"{name:.80} cannot be an output type, because {_explain_no_schema(output_type, error)}; "
            "use a Pydantic model, a dataclass, a TypedDict, or a type such as list[str]"
        ) from None


def _explain_no_schema(output_type: Any, error: Exception) -> str:
    """Return the reason for the error: the field without a schema, or the undefined name, if either can be found."""
    found = _find_culprit(output_type, set())
    if isinstance(error, PydanticUserError) and error.code == "typed-dict-version":
        return "Python before 3.12 has TypedDicts that cannot be read: from typing_extensions import TypedDict"
    if found is None:
        return f"it has no JSON schema ({type(error).__name__})"
    path, undefined = found
    if undefined is not None:
        return f"the name {undefined} is not defined (define it, then rebuild the type)"
    return f"its field {path} has no JSON schema ({type(error).__name__})"


def _find_culprit(annotation: Any, seen: set[int]) -> tuple[str, str | None] | None:
    """Return the path of the innermost field without a JSON schema, and the undefined name in it, if that is why."""
    if id(annotation) in seen:
        return None
    seen.add(id(annotation))
    for argument in get_args(annotation):
        found = _find_culprit(argument, seen)
        if found is not None:
            return found
    try:
        hints = _list_fields(annotation)
    except NameError as error:
        return "", error.name
    except Exception:  # noqa: BLE001 - a custom type may raise anything here
        return None
    for name, hint in hints.items():
        found = _find_culprit(hint, seen)
        if found is not None:
            return f"{name}.{found[0]}" if found[0] else name, found[1]
        if not _has_schema(hint):
            return name, None
    return None


def _list_fields(annotation: Any) -> dict[str, Any]:
    """Return the fields of a model, dataclass or TypedDict and their types; nothing for any other type."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel) and annotation.__pydantic_complete__:
        # Not `get_type_hints`, which does not see the names of a function in which the model was defined.
        return {name: field.annotation for name, field in annotation.model_fields.items()}
    is_record = is_dataclass(annotation) or is_typeddict(annotation)
    if is_record or (inspect.isclass(annotation) and issubclass(annotation, BaseModel)):
        return get_type_hints(annotation)
    return {}


def _has_schema(hint: Any) -> bool:
    try:
        takes_config = not (inspect.isclass(hint) and (issubclass(hint, BaseModel) or is_dataclass(hint)))
        takes_config = takes_config and not is_typeddict(hint)
        TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True) if takes_config else None).json_schema()
    except Exception:  # noqa: BLE001 - see `_make_shape`
        return False
    return True


def _is_object(output_type: Any) -> bool:
    if not inspect.isclass(output_type):
        return False
    if issubclass(output_type, BaseModel):
        return not issubclass(output_type, RootModel)
    return is_dataclass(output_type) or is_typeddict(output_type)
