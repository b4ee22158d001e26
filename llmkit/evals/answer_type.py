"""The type of an answer: any that Pydantic validates, and its form as a model, by which scorers compare fields."""

from __future__ import annotations

import dataclasses
import inspect
import re
import warnings
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from functools import cached_property, lru_cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NotRequired, Required, Union, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, RootModel, TypeAdapter, create_model, field_validator
from pydantic_core import to_json
from typing_extensions import ReadOnly, TypeAliasType, is_typeddict

from llmkit.errors import LLMEvaluationError, describe_exception

__all__ = ["RESPONSE", "ROOT", "AnswerType", "find_kinds", "vars_of"]

# The field of a model that stands for a type without fields.
ROOT = "root"
# The field in which a model writes a value that is no object; see `llmkit.pydanticai.output_shape`.
RESPONSE = "response"
_VALUES = (str, bytes, int, float, list, tuple, dict, set, BaseModel)
_COLLECTIONS = (list, tuple, set, frozenset, Iterable)
_MODULE = re.compile(r"\b(?:\w+\.)+(?=\w)")
_KINDS: Mapping[Any, str] = {
    str: "text",
    bytes: "text",
    bool: "flag",
    int: "number",
    float: "number",
    complex: "number",
    Decimal: "number",
    NoneType: "none",
}


@dataclass(frozen=True)
class AnswerType:
    """A type of answers.

    Attributes:
        declared: The type as the task declares it; `Any` where nothing is known but that it is JSON.
        name: Its name, for messages.
    """

    declared: Any
    name: str

    @classmethod
    def of(cls, declared: Any) -> AnswerType:
        """Return the answer type of any type that has a JSON schema.

        Raises:
            LLMEvaluationError: It is a value and no type, or has no JSON schema; the message says why.
        """
        try:
            # `int | str` and `str | int` are equal, and their schemas are not.
            return _build(declared, repr(declared))
        except TypeError:  # not hashable: an Annotated with a dictionary in it, say
            return _build.__wrapped__(declared, "")

    @property
    def is_text(self) -> bool:
        """Whether the answer is free text, for which no JSON is requested."""
        return self.declared is str

    @property
    def is_open(self) -> bool:
        """Whether any JSON value is an answer, so that nothing is known about it before it exists."""
        return self.declared is Any

    @property
    def has_open_fields(self) -> bool:
        """Whether its fields are known only once there is an answer: those of a dictionary, or of any JSON."""
        plain = get_origin(self.declared) or self.declared
        is_mapping = inspect.isclass(plain) and issubclass(plain, Mapping) and not is_typeddict(plain)
        return self.is_open or is_mapping

    @property
    def is_model(self) -> bool:
        """Whether it is a Pydantic model."""
        return isinstance(self.declared, type) and issubclass(self.declared, BaseModel)

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """The adapter of the declared type."""
        return TypeAdapter(self.declared)

    @cached_property
    def schema(self) -> dict[str, Any]:
        """The JSON schema of the type."""
        return (
            cast("type[BaseModel]", self.declared).model_json_schema() if self.is_model else self.adapter.json_schema()
        )

    @cached_property
    def wire_schema(self) -> dict[str, Any] | None:
        """The JSON schema of the object that a model is asked for; None for free text."""
        if self.is_text or self.is_open:
            return None
        if self.schema.get("type") == "object" and ("properties" in self.schema or self.is_model):
            return self.schema
        fields: dict[str, Any] = {RESPONSE: (self.declared, ...)}
        wire: type[BaseModel] = create_model("Answer", **fields)
        return wire.model_json_schema()

    @cached_property
    def view(self) -> type[BaseModel]:
        """The model by whose fields scorers compare: of a type without fields, one with the only field `root`."""
        declared = self.declared
        if self.is_model:
            return cast("type[BaseModel]", declared)
        if is_typeddict(declared):
            return _make_model(self.name, _list_typed_dict_fields(declared))
        if dataclasses.is_dataclass(declared):
            return _make_model(self.name, _list_dataclass_fields(declared), _copy_validators(declared))
        base: Any = RootModel[declared]  # type: ignore[valid-type]  # a type that is known at run time only
        return create_model(self.name, __base__=base)

    def view_of(self, value: Any, target: Any = None) -> BaseModel:
        """Return a value as an instance of its view, so that scorers find its fields by name.

        Args:
            value: The value.
            target: What it is compared with; a dictionary names the fields that an answer of open fields should have.
        """
        if isinstance(value, BaseModel):
            return value
        if self.has_open_fields:
            own, wanted = (each if isinstance(each, Mapping) else {} for each in (value, target))
            names = tuple(dict.fromkeys([*own, *wanted]))
            if names and all(isinstance(name, str) and name[:1] != "_" for name in names):
                # The values of a target are converted as those of an answer were: "1.5" to a decimal, for example.
                parts = get_args(self.declared)
                kind = parts[1] if len(parts) == 2 and isinstance(parts[1], Hashable) else Any
                return _open_model(names, kind).model_construct(None, **own)
            return RootModel[Any].model_construct(value)
        if issubclass(self.view, RootModel):
            return self.view.model_construct(value)
        given = value if isinstance(value, Mapping) else vars_of(value)
        return self.view.model_construct(None, **given)

    def write_json(self, value: Any) -> str:
        """Return a value as its type serialises it.

        Raises:
            Exception: A serialiser of the type raised it.
        """
        if self.is_model:
            text: str = value.model_dump_json(by_alias=True, round_trip=True)
            return text
        if self.is_open:
            return to_json(value, by_alias=True).decode()
        return self.adapter.dump_json(value, by_alias=True, round_trip=True).decode()

    def read_json(self, text: str) -> Any:
        """Return the value that `write_json` wrote.

        Raises:
            ValidationError: It does not fit the type.
        """
        # By name too: version 0.1.0 stored fields under their own names, whatever an answer calls them.
        return self.adapter.validate_json(text, by_alias=True, by_name=True)


def vars_of(value: Any) -> dict[str, Any]:
    """Return the fields of an instance of a dataclass, of those that it has."""
    return {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if hasattr(value, each.name)}


@lru_cache(maxsize=256)
def _build(declared: Any, _written: str) -> AnswerType:
    name = getattr(declared, "__name__", None) if isinstance(declared, type) and not get_args(declared) else None
    answer = AnswerType(declared, name or _MODULE.sub("", str(declared)))
    # Pydantic takes a string for the name of a type that is still to come, and a function for a type of arguments.
    if declared is None or isinstance(declared, _VALUES) or inspect.isroutine(declared):
        raise LLMEvaluationError(
            f"output_type must be a type, such as str, list[str] or a Pydantic model; got the value {declared!r:.80}."
        )
    try:
        # Types of a module that postpones the evaluation of its annotations may be incomplete until now.
        if not answer.is_open:
            answer.schema  # noqa: B018
            answer.view  # noqa: B018
    except Exception as error:  # noqa: BLE001 (Pydantic raises a dozen classes here, some of them its users' own)
        # Pydantic's own advice, which follows, is for the authors of types.
        reason = describe_exception(error).partition("\n")[0].partition(". Set `arbitrary_types_allowed")[0]
        raise LLMEvaluationError(f"output_type {answer.name} cannot be turned into a JSON schema: {reason}") from None
    return answer


def _make_model(name: str, fields: Mapping[str, Any], validators: dict[str, Any] | None = None) -> type[BaseModel]:
    config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())
    with warnings.catch_warnings():
        # A field may be called `json` or `copy`, which a model has as methods.
        warnings.simplefilter("ignore")
        known = {name: field for name, field in fields.items() if not name.startswith("_")}
        return create_model(name, __config__=config, __validators__=validators, **known)


def _list_typed_dict_fields(declared: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, hint in get_type_hints(declared, include_extras=True).items():
        plain = hint
        while get_origin(plain) in (Required, NotRequired, ReadOnly):
            (plain,) = get_args(plain)
        fields[name] = (plain, ... if name in declared.__required_keys__ else None)
    return fields


def _list_dataclass_fields(declared: Any) -> dict[str, Any]:
    known = getattr(declared, "__pydantic_fields__", None)
    if known is not None:
        return {name: (info.annotation, info) for name, info in known.items() if info.init is not False}
    hints = get_type_hints(declared, include_extras=True)
    fields: dict[str, Any] = {}
    for each in dataclasses.fields(declared):
        default: Any = ...
        if each.default is not dataclasses.MISSING:
            default = each.default
        elif each.default_factory is not dataclasses.MISSING:
            default = each.default_factory()
        fields[each.name] = (hints[each.name], default)
    return fields


def _copy_validators(declared: Any) -> dict[str, Any]:
    """Return the validators of single fields of a Pydantic dataclass, for a model with the same fields."""
    decorators = getattr(declared, "__pydantic_decorators__", None)
    if decorators is None:
        return {}
    copied: dict[str, Any] = {}
    for name, each in decorators.field_validators.items():
        decorate: Any = field_validator(*each.info.fields, mode=each.info.mode, check_fields=False)
        copied[name] = decorate(staticmethod(getattr(declared, name)))
    return copied


@lru_cache(maxsize=1024)
def _open_model(names: tuple[str, ...], kind: Any) -> type[BaseModel]:
    fields: dict[str, Any] = dict.fromkeys(names, (kind, None))
    return _make_model("Output", fields)


def find_kinds(annotation: Any) -> frozenset[str]:  # noqa: C901 - one line for each form of annotation
    """Return the kinds of values that an annotation allows.

    Returns:
        Some of `text`, `number`, `flag`, `date`, `collection`, `object`, `none`, and `other` for anything else.
    """
    origin = get_origin(annotation)
    if isinstance(annotation, TypeAliasType) or hasattr(annotation, "__value__"):
        return find_kinds(annotation.__value__)
    if origin in (Annotated, Required, NotRequired, ReadOnly):
        return find_kinds(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return frozenset().union(*map(find_kinds, get_args(annotation)))
    if origin is Literal:
        return frozenset(_kind_of_value(value) for value in get_args(annotation))
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return frozenset(_kind_of_value(each.value) for each in annotation)
    plain = origin or annotation
    if plain in _KINDS:
        return frozenset({_KINDS[plain]})
    if not inspect.isclass(plain):
        return frozenset({"none"}) if annotation is None else frozenset({"other"})
    if issubclass(plain, RootModel):
        return find_kinds(plain.model_fields[ROOT].annotation)
    if issubclass(plain, BaseModel | Mapping) or dataclasses.is_dataclass(plain) or is_typeddict(plain):
        return frozenset({"object"})
    if issubclass(plain, date):
        return frozenset({"date"})
    return frozenset({"collection"}) if issubclass(plain, _COLLECTIONS) else frozenset({"other"})


def _kind_of_value(value: Any) -> str:
    return _KINDS.get(type(value), "other")
