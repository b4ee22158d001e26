"""Prompts: a template with named fields, or a function of the sample."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from llmkit.batch.task_guard import guard_tasks
from llmkit.batch.template import parse_template
from llmkit.errors import LLMEvaluationError, describe_exception
from llmkit.evals.dataset.dataset import Sample
from llmkit.types import Message

__all__ = ["Content", "Prompt", "Template", "as_messages", "content_of", "render"]

Prompt: TypeAlias = str | Callable[[Sample], str | Sequence[Message]]
# Of one sample: the text of a user message, or a conversation.
Content: TypeAlias = str | tuple[Message, ...]

_FIELD = re.compile(r"(?P<name>[^\[\].!:{}\s]+)(\[(?P<key>[^\[\]{}]+)\])?")
_SYNTAX = "write {input}, {input[field]}, {field} or {metadata[field]}, and {{ or }} for a brace"


@dataclass(frozen=True, slots=True)
class Field:
    """A place in a template that a sample fills: `{name}` or `{name[key]}`."""

    name: str
    key: str | None = None

    def __str__(self) -> str:
        return f"{{{self.name}[{self.key}]}}" if self.key is not None else f"{{{self.name}}}"

    def value(self, sample: Sample) -> Any:
        """Return the sample's value for this placeholder.

        Raises:
            KeyError: It has nothing there.
        """
        fields = sample.input if isinstance(sample.input, dict) else {}
        if self.key is None:
            return sample.input if self.name == "input" else fields[self.name]
        parents: Mapping[str, Any] = {"input": fields, "metadata": sample.metadata}
        return parents[self.name][self.key]


@dataclass(frozen=True, slots=True)
class Template:
    """A prompt with places for fields of the sample, filled in one pass: braces in a sample are just text.

    Text goes in as it is, anything else as JSON. Neither attributes nor format specifications are possible, so a
    template from elsewhere reaches nothing but the sample. The target cannot be named.
    """

    parts: tuple[str | Field, ...]

    @classmethod
    def parse(cls, text: str) -> Template:
        """Read `{field}` look-ups; `{{` and `}}` are literal braces.

        Raises:
            LLMEvaluationError: A brace is left open or a place is not a plain look-up.
        """
        try:
            return cls(
                tuple(part if isinstance(part, str) else _read_field(part.name) for part in parse_template(text))
            )
        except ValueError as error:
            raise LLMEvaluationError(f"The prompt template cannot be read: {error}; {_SYNTAX}.") from None

    def render(self, sample: Sample) -> str:
        """Fill the template.

        Raises:
            LLMEvaluationError: The sample lacks a field; the message lists those that it has.
        """
        return "".join(part if isinstance(part, str) else _fill_field(part, sample) for part in self.parts)


def _read_field(name: str) -> Field:
    found = _FIELD.fullmatch(name)
    if found is None:
        raise ValueError(f"{{{name}}} is not a plain field")
    return Field(found["name"], found["key"])


def _fill_field(field: Field, sample: Sample) -> str:
    try:
        value = field.value(sample)
    except KeyError:
        raise LLMEvaluationError(f"The prompt names {field}, but sample {sample.id!r} has {_places(sample)}.") from None
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _places(sample: Sample) -> str:
    names = ["{input}"]
    if isinstance(sample.input, dict):
        names += [f"{{{name}}}" for name in sample.input]
    names += [f"{{metadata[{name}]}}" for name in sample.metadata]
    return "only " + ", ".join(names)


def render(
    prompt: Template | Callable[[Sample], Any], sample: Sample, system: str | None = None
) -> tuple[Message, ...]:
    """Return the messages that a sample is sent as.

    Args:
        prompt: A template, or a function that returns text or messages.
        sample: What to fill in.
        system: A system message to begin with.

    Raises:
        LLMEvaluationError: A field is missing, the function failed, or it returned something else.
    """
    return as_messages(content_of(prompt, sample), system)


def content_of(prompt: Template | Callable[[Sample], Any], sample: Sample) -> Content:
    """Apply a prompt to a sample.

    Raises:
        LLMEvaluationError: As `render`.
    """
    return prompt.render(sample) if isinstance(prompt, Template) else _call_prompt(prompt, sample)


def as_messages(content: Content, system: str | None = None) -> tuple[Message, ...]:
    """Return the content as it is sent, behind a system message if there is one."""
    messages = (Message(role="user", content=content),) if isinstance(content, str) else content
    return messages if system is None else (Message(role="system", content=system), *messages)


def _call_prompt(function: Callable[[Sample], Any], sample: Sample) -> Content:
    name = getattr(function, "__name__", repr(function))
    try:
        with guard_tasks():
            content = function(sample)
    except Exception as error:
        raise LLMEvaluationError(
            f"The prompt function {name} failed on sample {sample.id!r}: {describe_exception(error)}"
        ) from error
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence) and content and all(isinstance(item, Message) for item in content):
        return tuple(content)
    kind = type(content).__name__
    raise LLMEvaluationError(f"The prompt function {name} must return text or messages; got {kind} for {sample.id!r}.")
