"""Input and output of commands, and the options that they share."""

from __future__ import annotations

import json
import os
import select
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.cli.reserved_stdout import find_document_stream
from llmkit.display.terminal_text import escape_controls
from llmkit.errors import LLMBadRequest

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

__all__ = [
    "AsJson",
    "HtmlFile",
    "Interruption",
    "InterruptionMessage",
    "JUnitFile",
    "MarkdownFile",
    "MaxCostUsd",
    "MaxTimeS",
    "MaxTokens",
    "Stable",
    "Workspace",
    "abandon_stdout",
    "build_record_table",
    "format_cell",
    "handle_interruption",
    "make_table",
    "print_json",
    "print_rich",
    "read_piped_text",
    "replace_unencodable_characters",
    "require_writable",
    "split_routes",
    "write_text",
]

PIPE_WIDTH = 250
PIPE_PATIENCE_S = 10.0

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
Workspace = Annotated[
    str | None,
    typer.Option("--workspace", "-w", help="Workspace of the runs; default LLM_WORKSPACE_ID, else 'default'."),
]


def _make_absolute(file: Path | None) -> Path | None:
    # At the start: a scorer or a task file may change the working directory.
    return None if file is None else file.expanduser().absolute()


JUnitFile = Annotated[
    Path | None, typer.Option("--junit", callback=_make_absolute, help="Also write JUnit XML to this file.")
]
MarkdownFile = Annotated[
    Path | None, typer.Option("--markdown", callback=_make_absolute, help="Also write a Markdown summary to this file.")
]
MaxTokens = Annotated[
    int | None,
    typer.Option(min=1, help="Largest number of tokens, input and output, that the run may use, judges included."),
]
MaxCostUsd = Annotated[float | None, typer.Option(help="Largest cost of the run, in US dollars.")]
MaxTimeS = Annotated[float | None, typer.Option(help="Longest time that this call may run, in seconds.")]
HtmlFile = Annotated[
    Path | None,
    typer.Option(
        "--html", callback=_make_absolute, help="Also write the full report, with every sample, to this HTML file."
    ),
]
Stable = Annotated[
    bool, typer.Option("--stable", help="Leave ids, clock times and latencies out of --html and --json.")
]


class Interruption(Exception):
    """Ctrl-C in a command; the message says what state its work is in."""


@dataclass(slots=True)
class InterruptionMessage:
    """Text to print if the command is interrupted now; the command updates it as its work advances."""

    text: str


@contextmanager
def handle_interruption(text: str) -> Iterator[InterruptionMessage]:
    """Replace the usual message after Ctrl-C by one that fits this command.

    Raises:
        Interruption: Instead of KeyboardInterrupt, with the text as it stands then.
    """
    message = InterruptionMessage(text)
    try:
        yield message
    except KeyboardInterrupt:
        raise Interruption(message.text) from None


def require_writable(*files: Path | None) -> None:
    """Check that output files can be written, before anything is paid.

    Raises:
        LLMBadRequest: The folder of a file does not exist, or the file is a folder.
    """
    for file in files:
        if file is not None and (file.is_dir() or not file.parent.is_dir()):
            raise LLMBadRequest(f"Cannot write {file}: name a file in a folder that exists")


def write_text(file: Path | None, text: str) -> None:
    """Write a text file, replacing an earlier one; do nothing without a file.

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
    """Send what is still buffered for stdout to the null device: at exit, Python would try again and complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def replace_unencodable_characters() -> None:
    """Make stdout and stderr escape characters that their encoding lacks.

    A paid answer must not end in a UnicodeEncodeError because a terminal or a pipe uses cp1252 or ASCII.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def split_routes(routes: str) -> list[str]:
    """Return the routes of a comma-separated option.

    Raises:
        LLMBadRequest: There is none, or one is not written `provider/model`, `provider/model@prompt` or `policy:NAME`.
    """
    from llmkit.notebook.arguments import parse_route

    labels = [route.strip() for route in routes.split(",") if route.strip()]
    if not labels:
        raise LLMBadRequest("--routes names at least one route, for example --routes ollama/llama3.2")
    for label in labels:
        if not label.startswith("policy:"):
            parse_route(label.rpartition("@")[0] or label)
    return labels


def read_piped_text(*, is_required: bool) -> str:
    """Read standard input if a pipe or a file is connected to it.

    Args:
        is_required: Read until the end in any case. Otherwise a pipe that sends nothing within `PIPE_PATIENCE_S`, such
            as one inherited from a scheduler that never writes, is ignored with a note.
    """
    if sys.stdin is None or sys.stdin.closed:
        return ""
    if is_required:
        return "" if sys.stdin.isatty() else sys.stdin.read()
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except OSError:  # io.UnsupportedOperation too: the stream has no file behind it
        return ""
    if stat.S_ISFIFO(mode) and not select.select([sys.stdin], [], [], PIPE_PATIENCE_S)[0]:
        typer.echo(f"Standard input sent nothing within {PIPE_PATIENCE_S:.0f} s and is ignored", err=True)
        return ""
    return sys.stdin.read() if stat.S_ISFIFO(mode) or stat.S_ISREG(mode) else ""


def print_json(value: Any) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(value, indent=2, default=str), file=find_document_stream())


def print_rich(renderable: Any) -> None:
    """Print a table or marked-up text, without control sequences that a model or a server put into it."""
    from rich.console import Console
    from rich.segment import Segment, Segments

    # A pipe or a log has no window width, so a table is written at full width.
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
    # Here rather than at each cell: colours are styles at this point, so every escape in the text is foreign.
    segments = [Segment(escape_controls(part.text), part.style, part.control) for part in console.render(renderable)]
    console.print(Segments(segments), end="")


def make_table(*columns: str) -> Table:
    """Return an empty table without a frame, which never breaks a word.

    Where the columns do not fit beside each other, each row is printed as a block of lines: a name, and its value.
    """
    from llmkit.display.fitting_table import FittingTable

    table: Table = FittingTable(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def build_record_table(record: pd.Series[Any]) -> Table:
    """Return the known values of one row of a DataFrame, a line for each."""
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in record.items():
        text = format_cell(value)
        if text:
            table.add_row(str(name), escape(escape_controls(text)))
    return table


def format_cell(value: Any) -> str:
    """Return a value of a frame as people read it."""
    import pandas as pd

    if pd.isna(value):
        return ""
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return f"{value:.0f}" if isinstance(value, float) else str(value)
