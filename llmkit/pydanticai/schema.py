"""One schema on the wire: a type's JSON Schema in the form that every provider takes, and what that form leaves out.

The form: `type` on every node, `anyOf` for every union, `enum` for every constant, `$ref` alone in its node, properties
in the order of the type (models write them in that order), `additionalProperties` always present, definitions under
`$defs` and only those in use, no titles, defaults or examples. What a decoder cannot enforce is left out of it, is
listed, and is enforced by validation. The limits come from https://ai.google.dev/api/generate-content (field
`responseJsonSchema`) and from llama.cpp's translation of schemas to grammars, which Ollama uses too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from llmkit.canonical_json import sha256_of
from llmkit.types import ProviderCaps

__all__ = ["CanonicalSchema", "SchemaError", "canonical"]

JsonSchema = dict[str, Any]

MAX_DEPTH = 48
MAX_NODES = 5_000
# llama.cpp writes a bounded repetition out and refuses long ones.
MAX_REPETITIONS = 256

_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object")
_FORMATS = frozenset({"date", "date-time", "time"})
# Keywords that do not restrict values.
_ANNOTATIONS = frozenset(
    {
        "$comment",
        "$defs",
        "$id",
        "$schema",
        "contentEncoding",
        "contentMediaType",
        "default",
        "deprecated",
        "description",
        "discriminator",
        "examples",
        "propertyOrdering",
        "readOnly",
        "title",
        "writeOnly",
    }
)
_LENGTHS = ("minLength", "maxLength")
_BOUNDS = {"minimum": "minimum", "maximum": "maximum", "exclusiveMinimum": "minimum", "exclusiveMaximum": "maximum"}
_STEPS = {"exclusiveMinimum": 1, "exclusiveMaximum": -1}
_READ_OF_TYPE: Mapping[str, frozenset[str]] = {
    "string": frozenset({"format", "pattern", *_LENGTHS}),
    "integer": frozenset(_BOUNDS),
    "number": frozenset(_BOUNDS),
    "boolean": frozenset(),
    "null": frozenset(),
    "array": frozenset({"items", "prefixItems", "minItems", "maxItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
}
# The regular expressions that llama.cpp's grammars can follow: anchored, and of classes and repetitions only.
_PLAIN_PATTERN = re.compile(r"\^(?:[A-Za-z0-9 _@:/,#-]|\[[A-Za-z0-9 _-]+\]|\{\d{1,2}(?:,\d{0,2})?\}|[+*?])+\$")
_POINTER = "#/$defs/"


class SchemaError(ValueError):
    """The JSON Schema is malformed, or contains something that no provider accepts; the message says where."""


@dataclass(frozen=True)
class CanonicalSchema:
    """A schema as every provider gets it.

    Attributes:
        json_schema: The canonical form.
        validated_only: What it leaves out, as `path: keyword`; validation of the answer enforces these.
        bounds: Constraints that some providers do not enforce, as pairs of path and keyword.
    """

    json_schema: JsonSchema
    validated_only: tuple[str, ...] = ()
    bounds: tuple[tuple[str, str], ...] = ()

    @cached_property
    def sha256(self) -> str:
        """Equal to `Attempt.schema_sha256` of a request that carried this schema unchanged."""
        return sha256_of(self.json_schema)

    def list_unenforced(self, caps: ProviderCaps) -> tuple[str, ...]:
        """List the parts that this provider does not enforce, as `path: keyword`."""
        ignored = caps.unenforced_schema_keywords
        own = (f"{path}: {keyword}" for path, keyword in self.bounds if keyword in ignored)
        return tuple(dict.fromkeys((*self.validated_only, *own)))


def canonical(schema: Any) -> CanonicalSchema:
    """Bring a JSON Schema of an object into the canonical form. Canonical ones come back as they are.

    Raises:
        SchemaError: It is malformed, refers to what it does not define, or is too deep or too large.
    """
    return _Canonicaliser(schema).result()


@dataclass(slots=True)
class _Canonicaliser:
    """One walk over one schema."""

    schema: Any
    validated_only: dict[str, None] = field(default_factory=dict)
    bounds: dict[tuple[str, str], None] = field(default_factory=dict)
    nodes: int = 0
    used: dict[str, None] = field(default_factory=dict)
    within: str | None = None

    def result(self) -> CanonicalSchema:
        root = self._root()
        shaped = self._node(root, "", 0)
        definitions: JsonSchema = {}
        while (name := next((name for name in self.used if name not in definitions), None)) is not None:
            self.within = name
            definitions[name] = self._node(self._definition(name), name, 0)
        if definitions:
            shaped["$defs"] = {name: definitions[name] for name in sorted(definitions)}
        return CanonicalSchema(shaped, tuple(self.validated_only), tuple(self.bounds))

    def _root(self) -> Any:
        """Return the schema itself, or the definition that it only points to: a provider wants an object at the top."""
        root, seen = self.schema, set[str]()
        while isinstance(root, dict) and isinstance(root.get("$ref"), str):
            name = self._name_of(root["$ref"])
            if name in seen:
                raise SchemaError(f"$defs.{name} refers to itself and to nothing else")
            seen.add(name)
            description = {key: root[key] for key in ("description",) if key in root}
            target = self._definition(name)
            root = {**target, **description} if isinstance(target, dict) else target
        return root

    # --- references -----------------------------------------------------------------------------------------------

    def _definitions(self) -> Mapping[str, Any]:
        found = self.schema.get("$defs") or {}
        if not isinstance(found, Mapping):
            raise SchemaError("$defs must be an object")
        return found

    def _name_of(self, reference: Any) -> str:
        if not isinstance(reference, str) or not reference.startswith(_POINTER):
            raise SchemaError(f"$ref {reference!r} does not point into $defs")
        return reference.removeprefix(_POINTER).replace("~1", "/").replace("~0", "~")

    def _definition(self, name: str) -> Any:
        try:
            return self._definitions()[name]
        except KeyError:
            raise SchemaError(f"$ref points to {name!r}, which $defs does not define") from None

    def _reference(self, schema: JsonSchema, path: str) -> JsonSchema:
        name = self._name_of(schema["$ref"])
        self._definition(name)
        self.used[name] = None
        self._note_rest(schema, {"$ref"}, path)
        bare = {"$ref": schema["$ref"]}
        # The Gemini API allows no other keyword beside `$ref`.
        return {"description": schema["description"], "anyOf": [bare]} if schema.get("description") else bare

    def _reaches(self, start: Any, target: str) -> bool:
        """Return whether a value of this schema may contain a value of the definition."""
        open_, seen = list(_references(start)), set[str]()
        while open_:
            name = self._name_of(open_.pop())
            if name == target:
                return True
            if name not in seen:
                seen.add(name)
                open_ += _references(self._definition(name))
        return False

    # --- nodes ----------------------------------------------------------------------------------------------------

    def _node(self, schema: Any, path: str, depth: int) -> JsonSchema:
        self.nodes += 1
        if depth > MAX_DEPTH or self.nodes > MAX_NODES:
            raise SchemaError(f"the schema is too {'deep' if depth > MAX_DEPTH else 'large'} at {_format_path(path)}")
        if schema is True:
            return {}
        if not isinstance(schema, dict):
            raise SchemaError(f"{_format_path(path)} is not a schema but {schema!r:.60}")
        if "$ref" in schema:
            return self._reference(schema, path)
        for keyword in ("anyOf", "oneOf", "allOf"):
            if keyword in schema:
                return self._combination(keyword, schema, path, depth)
        if "const" in schema or "enum" in schema:
            return self._constants(schema, path)
        return self._add_type(schema, path, depth)

    def _combination(self, keyword: str, schema: JsonSchema, path: str, depth: int) -> JsonSchema:
        choices = schema[keyword]
        if not isinstance(choices, list | tuple) or not choices:
            raise SchemaError(f"{keyword} of {_format_path(path)} is not a list of schemas")
        rest = {name: value for name, value in schema.items() if name != keyword}
        if keyword == "allOf" and len(choices) == 1 and isinstance(choices[0], dict):
            return self._node({**choices[0], **rest}, path, depth + 1)
        if keyword == "allOf":
            self._note(path, keyword)
            return self._node(rest, path, depth + 1)
        self._note_rest(schema, {keyword, "type"}, path)
        return _union([self._node(choice, path, depth + 1) for choice in choices], schema.get("description"))

    def _constants(self, schema: JsonSchema, path: str) -> JsonSchema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        if not isinstance(values, list | tuple) or not values:
            raise SchemaError(f"enum of {_format_path(path)} is not a list of values")
        self._note_rest(schema, {"const", "enum", "type"}, path)
        groups: dict[str, list[Any]] = {}
        for value in values:
            kind = next((name for fits, name in _PYTHON_TYPES if fits(value)), "array")
            groups.setdefault(kind, []).append(value)
        return _union([self._group(kind, group, path) for kind, group in groups.items()], schema.get("description"))

    def _group(self, kind: str, values: list[Any], path: str) -> JsonSchema:
        if kind in ("string", "integer", "number"):
            return {"type": kind, "enum": list(dict.fromkeys(values))}
        if kind != "null" and not (kind == "boolean" and len(set(values)) > 1):
            self._note(path, "enum")
        return {"type": kind}

    def _add_type(self, schema: JsonSchema, path: str, depth: int) -> JsonSchema:
        kind = schema.get("type", _infer_type(schema))
        if isinstance(kind, list | tuple):
            return _union([self._add_type({**schema, "type": each}, path, depth + 1) for each in kind], None)
        about = {"description": schema["description"]} if schema.get("description") else {}
        if kind is None:
            self._note_rest(schema, set(), path)
            return about
        if kind not in _TYPES:
            raise SchemaError(f"type of {_format_path(path)} is {kind!r:.40}, which JSON Schema does not have")
        self._note_rest(schema, {"type", *_READ_OF_TYPE[kind]}, path)
        return {"type": kind, **about, **self._SHAPES[kind](self, schema, path, depth)}

    def _string(self, schema: JsonSchema, path: str, _depth: int) -> JsonSchema:
        shaped = self._format(schema, path)
        pattern = schema.get("pattern")
        if pattern is not None:
            plain = str(pattern).replace(r"\d", "[0-9]")
            if _PLAIN_PATTERN.fullmatch(plain):
                shaped["pattern"] = plain
                self.bounds[_format_path(path), "pattern"] = None
            else:
                self._note(path, "pattern")
        return shaped | self._sizes(schema, _LENGTHS, path)

    def _format(self, schema: JsonSchema, path: str) -> JsonSchema:
        name = schema.get("format")
        if name is None:
            return {}
        if name in _FORMATS:
            return {"format": name}
        self._note(path, "format")
        words = f"Format: {name}"
        description = str(schema.get("description") or "")
        if words in description:
            return {"description": description}
        return {"description": f"{description} ({words})" if description else words}

    def _sizes(self, schema: JsonSchema, keywords: Iterable[str], path: str) -> JsonSchema:
        shaped: JsonSchema = {}
        for keyword in keywords:
            size = schema.get(keyword)
            if size is None:
                continue
            if not isinstance(size, int | float) or isinstance(size, bool) or size < 0:
                raise SchemaError(f"{keyword} of {_format_path(path)} is not a size but {size!r:.40}")
            if size > MAX_REPETITIONS:
                self._note(path, keyword)
            else:
                shaped[keyword] = int(size)
                self.bounds[_format_path(path), keyword] = None
        return shaped

    def _number(self, schema: JsonSchema, path: str, _depth: int) -> JsonSchema:
        shaped: JsonSchema = {}
        whole = schema["type"] == "integer"
        for keyword, plain in _BOUNDS.items():
            bound = schema.get(keyword)
            if bound is None:
                continue
            if not isinstance(bound, int | float) or isinstance(bound, bool):
                raise SchemaError(f"{keyword} of {_format_path(path)} is not a number but {bound!r:.40}")
            if keyword in _STEPS and not whole:  # the edge itself is let through, and caught by validation
                self._note(path, keyword)
            edge = bound + _STEPS.get(keyword, 0) if whole else bound
            tighter = max if plain == "minimum" else min
            shaped[plain] = tighter(shaped[plain], edge) if plain in shaped else edge
            self.bounds[_format_path(path), plain if whole else f"number.{plain}"] = None
        return shaped

    def _array(self, schema: JsonSchema, path: str, depth: int) -> JsonSchema:
        shaped: JsonSchema = {}
        prefix = schema.get("prefixItems")
        if prefix is not None:
            if not isinstance(prefix, list | tuple):
                raise SchemaError(f"prefixItems of {_format_path(path)} is not a list of schemas")
            shaped["prefixItems"] = [self._node(item, f"{path}[{n}]", depth + 1) for n, item in enumerate(prefix)]
        items = schema.get("items")
        if items is not None and items is not False:
            shaped["items"] = self._node(items, f"{path}[]", depth + 1)
        return shaped | self._sizes(schema, ("minItems", "maxItems"), path)

    def _object(self, schema: JsonSchema, path: str, depth: int) -> JsonSchema:
        properties = schema.get("properties")
        if properties is not None and not isinstance(properties, Mapping):
            raise SchemaError(f"properties of {_format_path(path)} is not an object of schemas")
        shaped: JsonSchema = {}
        if properties is not None:
            shaped["properties"] = {
                name: self._node(inner, f"{path}.{name}" if path else str(name), depth + 1)
                for name, inner in properties.items()
            }
            shaped["required"] = self._list_required(schema, properties, path)
        extra = schema.get("additionalProperties", properties is None)
        shaped["additionalProperties"] = (
            extra if isinstance(extra, bool) else self._node(extra, f"{path}.*" if path else "*", depth + 1)
        )
        return shaped

    def _list_required(self, schema: JsonSchema, properties: Mapping[str, Any], path: str) -> list[str]:
        required = schema.get("required", ())
        if not isinstance(required, list | tuple):
            raise SchemaError(f"required of {_format_path(path)} is not a list of names")
        kept = []
        for name in properties:
            if name not in required:
                continue
            # Gemini unrolls a cycle a few times, and only where it may stop: in properties that may be left out.
            if self.within is not None and self._reaches(properties[name], self.within):
                self._note(f"{path}.{name}", "required")
            else:
                kept.append(name)
        return kept

    # --- what is left out -----------------------------------------------------------------------------------------

    def _note(self, path: str, keyword: str) -> None:
        self.validated_only[f"{_format_path(path)}: {keyword}"] = None

    def _note_rest(self, schema: JsonSchema, read: set[str], path: str) -> None:
        for keyword in schema:
            if keyword not in read and keyword not in _ANNOTATIONS and schema[keyword] not in (None, False):
                self._note(path, keyword)

    _SHAPES = {  # noqa: RUF012
        "string": _string,
        "integer": _number,
        "number": _number,
        "boolean": lambda *_: {},
        "null": lambda *_: {},
        "array": _array,
        "object": _object,
    }


def _format_path(path: str) -> str:
    return path or "the value"


def _infer_type(schema: JsonSchema) -> str | None:
    if "properties" in schema or "additionalProperties" in schema:
        return "object"
    return "array" if "items" in schema or "prefixItems" in schema else None


_PYTHON_TYPES: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (lambda value: value is None, "null"),
    (lambda value: isinstance(value, bool), "boolean"),
    (lambda value: isinstance(value, str), "string"),
    (lambda value: isinstance(value, int), "integer"),
    (lambda value: isinstance(value, float), "number"),
    (lambda value: isinstance(value, Mapping), "object"),
)


def _union(choices: list[JsonSchema], description: str | None) -> JsonSchema:
    """Build `anyOf` without nesting and repetition; of one choice that choice itself."""
    flat: list[JsonSchema] = []
    for choice in choices:
        inner = choice["anyOf"] if set(choice) == {"anyOf"} else [choice]
        flat += [each for each in inner if each not in flat]
    about = {"description": description} if description else {}
    if len(flat) == 1 and "$ref" not in flat[0]:
        (only,) = flat
        return {**{key: only[key] for key in ("type",) if key in only}, **only, **about}
    return flat[0] if len(flat) == 1 and not about else {**about, "anyOf": flat}


def _references(schema: Any) -> Iterator[Any]:
    """Yield every `$ref` in a schema, its definitions left aside."""
    open_ = [schema]
    while open_:
        node = open_.pop()
        if isinstance(node, Mapping):
            if "$ref" in node:
                yield node["$ref"]
            open_ += [value for key, value in node.items() if key != "$defs"]
        elif isinstance(node, list | tuple):
            open_ += node
