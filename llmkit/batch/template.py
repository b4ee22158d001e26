"""Templates with placeholders, `{name}`, and `{{` and `}}` for braces. Filled in one pass, so values stay text."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Parts", "Placeholder", "fill_template", "list_placeholders", "parse_template"]


@dataclass(frozen=True, slots=True)
class Placeholder:
    """The text between two braces of a template."""

    name: str


Parts: TypeAlias = tuple[str | Placeholder, ...]


def parse_template(text: str) -> Parts:
    """Split a template into literal text and placeholders.

    Raises:
        ValueError: A brace is left open, or a placeholder has a conversion or a format specification.
    """
    parts: list[str | Placeholder] = []
    for literal, name, specification, conversion in string.Formatter().parse(text):
        if literal:
            parts.append(literal)
        if name is not None:
            if specification or conversion:
                raise ValueError(f"{{{name}}} is not a plain name")
            parts.append(Placeholder(name))
    return tuple(parts)


def list_placeholders(parts: Parts) -> list[str]:
    """Return the names of all placeholders, in order."""
    return [part.name for part in parts if isinstance(part, Placeholder)]


def fill_template(parts: Parts, look_up: Callable[[str], str]) -> str:
    """Return the text of a template, with the value of each placeholder."""
    return "".join(part if isinstance(part, str) else look_up(part.name) for part in parts)
