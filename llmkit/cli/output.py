"""How commands print: JSON documents, tables, and the options they share."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

__all__ = ["AsJson", "Workspace", "frame_table", "print_json", "print_rich", "table"]

PIPE_WIDTH = 200

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
Workspace = Annotated[
    str | None,
    typer.Option("--workspace", "-w", help="Whose runs these are; default LLM_WORKSPACE_ID, else 'default'."),
]


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
