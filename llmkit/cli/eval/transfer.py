"""`llmkit eval export` and `llmkit eval import`: runs as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.output import Workspace

__all__ = ["eval_export", "eval_import"]


def eval_export(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    file: Annotated[Path, typer.Argument(help="A new .jsonl or .parquet file.")],
    workspace: Workspace = None,
) -> None:
    """Write a run and its results to a file, such as a baseline that is kept with the code. Calls nothing.

    Inputs and targets are not part of it: they are the dataset's.
    """
    from llmkit.session import Session

    with Session(workspace) as session:
        report = session.report(run)
    report.export(file)
    typer.echo(f"Wrote {len(report.results):,} results of {run} to {file}.", err=True)


def eval_import(
    file: Annotated[Path, typer.Argument(help="What `llmkit eval export` wrote.")],
    name: Annotated[str | None, typer.Option("--name", help="Another name for the run; its own by default.")] = None,
    workspace: Workspace = None,
) -> None:
    """Read a run from a file, to compare with it or to report on it. The same file again changes nothing."""
    from llmkit.session import Session

    with Session(workspace) as session:
        report = session.import_run(file, name=name)
    typer.echo(f"{report.run.name} has {len(report.results):,} results.", err=True)
