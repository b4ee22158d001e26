"""Groups of options that several commands share: one parameter of a command stands for all options of a group."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from llmkit.cli.output import (
    AsJson,
    HtmlFile,
    JUnitFile,
    MarkdownFile,
    Stable,
    Workspace,
    require_writable,
)

if TYPE_CHECKING:
    from llmkit.evals import Task

__all__ = ["DataColumns", "DataOptions", "GateOutput", "RunOutput", "expand_groups"]

KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY


@dataclass(frozen=True, slots=True, kw_only=True)
class GateOutput:
    """Workspace of the runs, and the files of a verdict."""

    junit: JUnitFile = None
    markdown: MarkdownFile = None
    workspace: Workspace = None
    as_json: AsJson = False

    def require_writable(self) -> None:
        """Check that the files can be written.

        Raises:
            LLMBadRequest: One of them cannot.
        """
        require_writable(self.junit, self.markdown)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutput(GateOutput):
    """Workspace of the runs, and the files of a report."""

    html: HtmlFile = None
    stable: Stable = False

    def require_writable(self) -> None:
        """Check that the files can be written.

        Raises:
            LLMBadRequest: One of them cannot.
        """
        require_writable(self.junit, self.markdown, self.html)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataColumns:
    """Columns of a task's dataset but its ids, and how its file is read; what is given replaces what the task says."""

    input: Annotated[
        list[str] | None, typer.Option(help="Column of the dataset that is the input; repeat it for several.")
    ] = None
    target: Annotated[
        list[str] | None, typer.Option(help="Column of the right answer; repeat it for several fields.")
    ] = None
    group: Annotated[str | None, typer.Option(help="Column of the samples' groups.")] = None
    metadata: Annotated[
        list[str] | None, typer.Option(help="Column to keep as metadata; repeat it for several, '*' for all others.")
    ] = None
    encoding: Annotated[str | None, typer.Option(help="Encoding of the dataset file; default UTF-8.")] = None
    delimiter: Annotated[
        str | None, typer.Option(help="Delimiter of a CSV file; default the one that its first rows fit.")
    ] = None
    records: Annotated[
        str | None, typer.Option(help="Path of the records inside a JSON document, such as data.questions.")
    ] = None
    split: Annotated[str | None, typer.Option(help="Part of a dataset that has several.")] = None

    def apply(self, task: Task, **others: str | None) -> Task:
        """Return the task with its dataset read in this way.

        Args:
            task: The task.
            **others: Further parts of a task that name columns.
        """
        given = {part.name: getattr(self, part.name) for part in fields(self)} | others
        # One column is a value, several are an object.
        columns = {
            name: value[0] if isinstance(value, list) and len(value) == 1 else value
            for name, value in given.items()
            if value
        }
        return replace(task, **columns) if columns else task


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions(DataColumns):
    """All columns of a task's dataset, and how its file is read."""

    id: Annotated[str | None, typer.Option(help="Column of the samples' ids.")] = None


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each dataclass parameter of a command by its fields, at the end of the signature that Typer reads."""
    hints = get_type_hints(command, include_extras=True)
    parameters = inspect.signature(command).parameters.values()
    groups = {each.name: hints[each.name] for each in parameters if is_dataclass(hints[each.name])}
    own = [
        each.replace(kind=KEYWORD_ONLY, annotation=hints[each.name]) for each in parameters if each.name not in groups
    ]
    flat = [*own, *(option for kind in groups.values() for option in _list_options(kind))]

    @wraps(command)
    def run_command(**arguments: Any) -> None:
        for name, kind in groups.items():
            arguments[name] = kind(**{part.name: arguments.pop(part.name) for part in fields(kind)})
        command(**arguments)

    run_command.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]  # what inspect reads first
    run_command.__annotations__ = {option.name: option.annotation for option in flat}
    return run_command


def _list_options(kind: type[Any]) -> list[inspect.Parameter]:
    """Return the fields of a group as parameters. All have defaults."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        inspect.Parameter(part.name, KEYWORD_ONLY, default=part.default, annotation=hints[part.name])
        for part in fields(kind)
    ]
