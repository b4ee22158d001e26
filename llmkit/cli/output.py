"""How commands print: JSON documents, tables, and the options they share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.errors import LLMBadRequest

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

__all__ = [
    "AsJson",
    "HtmlFile",
    "Interruption",
    "JUnitFile",
    "MarkdownFile",
    "MaxCostUsd",
    "MaxTimeS",
    "MaxTokens",
    "Stable",
    "Standing",
    "Workspace",
    "abandon_stdout",
    "frame_table",
    "interruptible",
    "print_json",
    "print_rich",
    "require_places",
    "table",
    "write_text",
]

PIPE_WIDTH = 200

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
Workspace = Annotated[
    str | None,
    typer.Option("--workspace", "-w", help="Whose runs these are; default LLM_WORKSPACE_ID, else 'default'."),
]

JUnitFile = Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML to this file as well.")]
MarkdownFile = Annotated[Path | None, typer.Option("--markdown", help="Write a Markdown summary to this file as well.")]
MaxTokens = Annotated[
    int | None, typer.Option(min=1, help="Most tokens, in and out, that a run may take in all, judges included.")
]
MaxCostUsd = Annotated[float | None, typer.Option(help="Most US dollars that a run may cost in all.")]
MaxTimeS = Annotated[float | None, typer.Option(help="Most seconds that a run may take now.")]
HtmlFile = Annotated[
    Path | None, typer.Option("--html", help="Write the whole report, with every sample, to this HTML file as well.")
]
Stable = Annotated[
    bool, typer.Option("--stable", help="Leave ids, clock times and latencies out of --html and --json.")
]


class Interruption(Exception):
    """Ctrl-C in a command; the message says what became of its work."""


@dataclass(slots=True)
class Standing:
    """What is true of a command's work if it is interrupted now; changed as the work goes on."""

    said: str


@contextmanager
def interruptible(said: str) -> Iterator[Standing]:
    """A command of which something else is true, when it is interrupted, than of most.

    Raises:
        Interruption: With what is said then, in the place of KeyboardInterrupt.
    """
    standing = Standing(said)
    try:
        yield standing
    except KeyboardInterrupt:
        raise Interruption(standing.said) from None


def require_places(*files: Path | None) -> None:
    """Refuse files that could not be written, before anything is paid.

    Raises:
        LLMBadRequest: A folder is missing, or a folder stands where the file would be.
    """
    for file in files:
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise LLMBadRequest(f"Cannot write {file}: name a file in a folder that exists")


def write_text(file: Path | None, text: str) -> None:
    """Write a report where one is wanted, over an earlier one.

    Raises:
        LLMBadRequest: The file cannot be written.
    """
    if file is None:
        return
    try:
        file.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise LLMBadRequest(f"Cannot write {file}: {error.strerror}") from None


def abandon_stdout() -> None:
    """Let what could not be written go nowhere: the interpreter would try again at its end, and complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def print_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2, default=str))


def print_rich(renderable: Any) -> None:
    """Print a table or marked-up text."""
    from rich.console import Console

    # Where nobody's window limits it (a pipe, a log), a table is written whole.
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(renderable)


def table(*columns: str) -> Table:
    """An empty table without a frame."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def frame_table(frame: pd.DataFrame) -> Table:
    """A DataFrame as a table, without its index."""
    from rich.markup import escape

    made = table(*frame.columns)
    for row in frame.itertuples(index=False):
        made.add_row(*(escape(_cell(value)) for value in row))
    return made


def _cell(value: Any) -> str:
    import pandas as pd

    if pd.isna(value):
        return ""
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return f"{value:.0f}" if isinstance(value, float) else str(value)
