"""The written form of a value: the JSON that a model would write for it, and that validation reads.

It differs from the serialised form, which may use other names, hide secrets, leave fields out and lose information.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from typing import Any

from pydantic import AliasChoices, AliasPath, BaseModel, RootModel, SecretBytes, SecretStr, TypeAdapter
from pydantic.fields import FieldInfo
from pydantic_core import to_json, to_jsonable_python

__all__ = ["find_written_form", "is_plain_json", "write_json"]

_SEQUENCES = (list, tuple, deque)
_SCALARS = (str, int, float, bool, type(None))


def find_written_form(adapter: TypeAdapter[Any], value: Any, given: Any = None) -> str | None:
    """Return the JSON from which a type reads this value again; None if there is none.

    Args:
        adapter: Of the type.
        value: A value of the type.
        given: What the value was made of, in case only that can be read, because a validator converts what it gets.
    """
    # Field by field first: a serialiser may write a list as one string, which is no answer to the schema. Then the
    # serialised form, which follows the settings of a type for bytes and durations.
    forms: tuple[Callable[[], str], ...] = (
        partial(write_json, value),
        lambda: adapter.dump_json(value, by_alias=True, round_trip=True).decode(),
        partial(write_json, given),
    )
    for write in forms:
        try:
            text = write()
            if _is_same(adapter.validate_json(text), value):
                return text
        except Exception:  # noqa: BLE001, S112 (validators and serialisers are the user's code: a form that fails is none)
            continue
    return None


def write_json(value: Any) -> str:
    """Return a value as JSON text, field by field, without the serialisers of its type.

    Fields have the names by which they are validated. Secrets and excluded fields are written, computed ones are not.

    Raises:
        ValueError: A part of it has no form in JSON.
    """
    return to_json(_to_tree(value), inf_nan_mode="constants").decode()


def is_plain_json(value: Any) -> bool:
    """Return whether a value consists of the types of JSON only."""
    if isinstance(value, dict):
        return all(type(key) is str and is_plain_json(part) for key, part in value.items())
    if isinstance(value, list | tuple):
        return all(is_plain_json(part) for part in value)
    return type(value) in _SCALARS


def _to_tree(value: Any) -> Any:
    if isinstance(value, RootModel):
        return _to_tree(value.root)
    if isinstance(value, BaseModel):
        return _model_to_tree(value)
    if is_dataclass(value) and not isinstance(value, type):
        infos = getattr(value, "__pydantic_fields__", {})
        tree: dict[str, Any] = {}
        for each in fields(value):
            _put(tree, _choose_path(each.name, infos.get(each.name), {}), _to_tree(getattr(value, each.name)))
        return tree
    if isinstance(value, Mapping):
        return {_to_key(key): _to_tree(part) for key, part in value.items()}
    if isinstance(value, set | frozenset):
        # Their order differs between processes, and a prompt with examples is found by its hash.
        return sorted((_to_tree(part) for part in value), key=repr)
    if isinstance(value, _SEQUENCES):
        return [_to_tree(part) for part in value]
    if isinstance(value, Enum):
        return _to_tree(value.value)
    if isinstance(value, SecretStr | SecretBytes) or hasattr(value, "get_secret_value"):
        return _to_tree(value.get_secret_value())
    return to_jsonable_python(value)


def _model_to_tree(value: BaseModel) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, info in type(value).model_fields.items():
        # An instance that was built by `model_construct` may lack fields.
        if name in value.__dict__:
            _put(tree, _choose_path(name, info, type(value).model_config), _to_tree(value.__dict__[name]))
    for name, extra in (value.model_extra or {}).items():
        tree[name] = _to_tree(extra)
    return tree


def _choose_path(name: str, info: FieldInfo | None, config: Mapping[str, Any]) -> list[str | int]:
    """Return the place from which a field is read: the name that its JSON schema has, where it has one name."""
    alias = info.validation_alias if info is not None and config.get("validate_by_alias", True) else None
    if isinstance(alias, AliasPath):
        return alias.convert_to_aliases()
    if isinstance(alias, AliasChoices):
        paths = alias.convert_to_aliases()
        return next((path for path in paths if len(path) == 1), paths[0])
    return [alias or name]


def _put(tree: dict[str, Any], path: list[str | int], value: Any) -> None:
    """Put a value at a path of keys and positions, and make what lies on the way."""
    place: Any = tree
    for step, following in zip(path, [*path[1:], None], strict=True):
        if isinstance(place, list) and isinstance(step, int):
            # Places before the one that is read must exist, and nothing is known of them.
            place.extend([None] * (step + 1 - len(place)))
            inner = place[step]
        else:
            inner = place.get(step)
        if following is None:
            inner = value
        elif inner is None:
            inner = [] if isinstance(following, int) else {}
        place[step] = inner
        place = inner


def _to_key(key: Any) -> str:
    return key if type(key) is str else next(iter(to_jsonable_python({key: None})))


def _is_same(read: Any, value: Any) -> bool:
    # NaN differs from itself, and a plain class may define no equality. Then all that can be seen must be equal: the
    # representation names the classes, and the written form contains what a representation hides, such as secrets.
    if type(read) is not type(value):
        return False
    return bool(read == value) or (repr(read) == repr(value) and write_json(read) == write_json(value))
