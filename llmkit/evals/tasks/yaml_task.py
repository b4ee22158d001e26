"""Tasks as data: a YAML file with a JSON schema, a prompt and scorers by name. Nothing in it is executed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, TypeAlias, cast

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, validate_call

from llmkit.errors import LLMError, LLMEvaluationError
from llmkit.evals.scorers import SCORERS, DatasetMetric, Scorer, lower_is_better
from llmkit.evals.tasks.schema_model import SchemaProblem, build_output_type
from llmkit.evals.tasks.task import Task

__all__ = ["load_task_data"]

Place: TypeAlias = tuple[str | int, ...]
# A name, or a position for a column without one.
Column: TypeAlias = str | Annotated[int, Field(strict=True)]
# An option of every scorer.
LOWER = "lower_is_better"


class _TaskData(BaseModel):
    """The keys of a task file; they mean what the attributes of `Task` mean."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: str
    dataset: str
    prompt: str
    output_schema: dict[str, Any] | str
    scorers: list[str | dict[str, Any]] = Field(default_factory=list)
    system: str | None = None
    prompts: dict[str, str] = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict)
    description: str = ""
    input: Column | list[Column] | dict[str, Column] | None = None
    target: Column | list[Column] | dict[str, Column] | None = None
    id: Column | None = None
    group: Column | None = None
    metadata: Column | list[Column] | dict[str, Column] | None = None
    encoding: str | None = None
    delimiter: str | None = None
    records: str | None = None
    split: str | None = None


def load_task_data(file: Path) -> Task:
    """Return the task of a YAML file. Relative paths in it start at its folder.

    Raises:
        LLMEvaluationError: A part cannot be used; the message names file, line and field.
    """
    document = _Document.read(file)
    try:
        data = _TaskData.model_validate(document.content)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        problems = [str(document.problem(each["msg"], _plain(each["loc"]))) for each in found]
        raise LLMEvaluationError("\n".join(dict.fromkeys(problems))) from None
    output_type = _output_type(document, data.output_schema)
    scorers = [_scorer(document, item, number, output_type) for number, item in enumerate(data.scorers)]
    try:
        return Task(
            **data.model_dump(exclude={"scorers", "output_schema"}),
            output_type=output_type,
            scorers=scorers,
            base_dir=file.parent,
        )
    except LLMEvaluationError as error:
        raise error if str(file) in str(error) else LLMEvaluationError(f"{file}: {error}") from None


@dataclass(frozen=True, slots=True)
class _Document:
    """A YAML file's content, and the line of each part of it."""

    file: Path
    content: Any
    lines: Mapping[Place, int]

    @classmethod
    def read(cls, file: Path) -> _Document:
        """Read the file.

        Raises:
            LLMEvaluationError: It is no YAML mapping, has a key twice, or has an alias.
        """
        try:
            text = file.read_text(encoding="utf-8")
            # Composed as well as loaded, because only nodes know their lines.
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            lines = dict(_lines(root, ())) if root is not None else {}
            content = yaml.safe_load(text)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise LLMEvaluationError(f"{file}:{line}: not YAML: {error.problem}") from None
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise LLMEvaluationError(f"{file} cannot be read as YAML: {error}") from None
        if not isinstance(content, dict):
            raise LLMEvaluationError(f"{file}:1: a task file is a mapping with name, dataset, prompt and output_schema")
        return cls(file, content, lines)

    def problem(self, message: str, place: Place) -> LLMEvaluationError:
        """Return an error that names the file, the line of the nearest part that is there, and the field."""
        near = next((place[:end] for end in range(len(place), -1, -1) if place[:end] in self.lines), ())
        field = ".".join(str(part) for part in place)
        return LLMEvaluationError(f"{self.file}:{self.lines.get(near, 1)}: {field}: {message}")


def _lines(node: yaml.Node, place: Place, seen: set[int] | None = None) -> Iterator[tuple[Place, int]]:
    seen = set() if seen is None else seen
    # Aliases can make a file of a few hundred bytes expand to gigabytes, or a node contain itself.
    if id(node) in seen:
        raise yaml.MarkedYAMLError(problem="an alias (*name); write it out", problem_mark=node.start_mark)
    seen.add(id(node))
    yield place, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} appears twice", problem_mark=key.start_mark)
            keys.add(key.value)
            yield from _lines(value, (*place, key.value), seen)
            yield (*place, key.value), key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _lines(value, (*place, number), seen)


def _plain(location: tuple[str | int, ...]) -> Place:
    """Return a location without the names that Pydantic gives to the members of a union."""
    return tuple(
        part
        for part in location
        if not (isinstance(part, str) and (part == "str" or part.startswith(("dict[", "list["))))
    )


def _output_type(document: _Document, given: dict[str, Any] | str) -> Any:
    place: Place = ("output_schema",)
    schema = given
    if isinstance(given, str):
        schema = _schema_file(document, given)
    try:
        return build_output_type(schema)  # type: ignore[arg-type]  # a string was read just now
    except SchemaProblem as error:
        raise document.problem(str(error), (*place, *error.place)) from None


def _schema_file(document: _Document, name: str) -> dict[str, Any]:
    try:
        schema = json.loads((document.file.parent / name).read_text(encoding="utf-8"))
    except OSError as error:
        raise document.problem(f"{name} cannot be read: {error.strerror}", ("output_schema",)) from None
    except ValueError as error:
        raise document.problem(f"{name} is not JSON: {error}", ("output_schema",)) from None
    if not isinstance(schema, dict):
        raise document.problem(f"{name} contains no JSON object", ("output_schema",))
    return schema


def _scorer(document: _Document, item: str | dict[str, Any], number: int, output_type: Any) -> Scorer | DatasetMetric:
    place: Place = ("scorers", number)
    named = {item: {}} if isinstance(item, str) else item
    if len(named) != 1:
        raise document.problem("a scorer is its name, or its name with options indented below it", place)
    ((name, options),) = named.items()
    if name not in SCORERS:
        raise document.problem(f"unknown scorer {name!r}; known scorers: {', '.join(SCORERS)}", place)
    fields, options = _arguments(options)
    is_lower = options.pop(LOWER, False)
    if not isinstance(is_lower, bool):
        raise document.problem(f"{name}: true or false", (*place, name, LOWER))
    try:
        parameters = signature(SCORERS[name]).parameters.values()
        if any(parameter.kind is Parameter.VAR_POSITIONAL for parameter in parameters):
            fields = [_find_field(path, output_type) for path in fields]
        made = validate_call(SCORERS[name])(*fields, **options)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = [str(part) for part in first["loc"]]
        raise document.problem(f"{name}: {first['msg']}", (*place, name, *where)) from None
    except LLMError as error:
        raise document.problem(str(error), place) from None
    return lower_is_better(cast("Scorer", made)) if is_lower else made


def _find_field(path: Any, output_type: Any) -> Any:
    """Return the path by field names of a path that begins with a property's JSON name."""
    is_model = isinstance(output_type, type) and issubclass(output_type, BaseModel)
    fields = output_type.model_fields if is_model else {}
    names = {info.alias: name for name, info in fields.items() if info.alias is not None}
    if isinstance(path, str) and path in names:
        return names[path]
    head, dot, rest = str(path).partition(".")
    return names[head] + dot + rest if head in names else path


def _arguments(options: Any) -> tuple[list[Any], dict[Any, Any]]:
    """Split arguments into positional ones (`field_match: [a, b]`) and named ones (`field_match: {fields.

    [a], name: x}`).
    """
    if isinstance(options, dict):
        options = dict(options)
        fields = options.pop("fields", [])
        return (fields if isinstance(fields, list) else [fields]), options
    return (options if isinstance(options, list) else [] if options is None else [options]), {}
