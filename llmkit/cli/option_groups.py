"""Options that several commands share, as groups: a parameter of a command stands for all options of its group."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints

from llmkit.cli.output import (
    AsJson,
    HtmlFile,
    JUnitFile,
    MarkdownFile,
    Stable,
    Workspace,
    require_places,
)

__all__ = ["GateOutput", "RunOutput", "grouped"]

KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOutput:
    """Whose runs are looked at, and where a verdict goes to."""

    junit: JUnitFile = None
    markdown: MarkdownFile = None
    workspace: Workspace = None
    as_json: AsJson = False

    def require_places(self) -> None:
        """Refuse files that could not be written.

        Raises:
            LLMBadRequest: There is such a file.
        """
        require_places(self.junit, self.markdown)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutput(GateOutput):
    """Whose runs are looked at, and where a report on one goes to."""

    html: HtmlFile = None
    stable: Stable = False

    def require_places(self) -> None:
        """Refuse files that could not be written.

        Raises:
            LLMBadRequest: There is such a file.
        """
        require_places(self.junit, self.markdown, self.html)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command as Typer reads it: a parameter that is a dataclass gives way to the fields of it, at the end."""
    hints = get_type_hints(command, include_extras=True)
    given = inspect.signature(command).parameters.values()
    groups = {each.name: hints[each.name] for each in given if is_dataclass(hints[each.name])}
    own = [each.replace(kind=KEYWORD_ONLY, annotation=hints[each.name]) for each in given if each.name not in groups]
    flat = [*own, *(option for kind in groups.values() for option in _options(kind))]

    @wraps(command)
    def called(**arguments: Any) -> None:
        for name, kind in groups.items():
            arguments[name] = kind(**{part.name: arguments.pop(part.name) for part in fields(kind)})
        command(**arguments)

    called.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]  # what inspect reads first
    called.__annotations__ = {option.name: option.annotation for option in flat}
    return called


def _options(kind: type[Any]) -> list[inspect.Parameter]:
    """Each field of a group; all have defaults."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(part.name, KEYWORD_ONLY, default=part.default, annotation=hints[part.name])
        for part in fields(kind)
    ]
