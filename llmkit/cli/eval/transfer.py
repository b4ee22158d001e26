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
    """Write a run and its results to a file, for example as a baseline kept with the code. Calls nothing.

    Inputs and targets are not included: they belong to the dataset.
    """
    from llmkit.session import Session

    with Session(workspace) as session:
        report = session.report(run)
    report.export(file)
    typer.echo(f"Wrote {len(report.results):,} results of {run} to {file}.", err=True)


def eval_import(
    file: Annotated[Path, typer.Argument(help="A file written by `llmkit eval export`.")],
    name: Annotated[str | None, typer.Option("--name", help="Another name for the run; default its own.")] = None,
    workspace: Workspace = None,
) -> None:
    """Import a run, to compare with it or report on it. Importing the same file again changes nothing."""
    from llmkit.session import Session

    with Session(workspace) as session:
        report = session.import_run(file, name=name)
    typer.echo(f"{report.run.name} has {len(report.results):,} results.", err=True)
