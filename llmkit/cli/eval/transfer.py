"""`llmkit eval export` and `llmkit eval import`: runs as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.output import Workspace
from llmkit.errors import LLMEvaluationError
from llmkit.settings import load_settings

if TYPE_CHECKING:
    from llmkit.session import Session

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

    with Session(workspace, warm_up=False) as session:
        report = session.report(run)
    report.export(file)
    typer.echo(f"Wrote {len(report.results):,} results of {run} to {file}.", err=True)


def eval_import(
    file: Annotated[Path, typer.Argument(help="A file written by `llmkit eval export`.")],
    name: Annotated[str | None, typer.Option("--name", help="Another name for the run; default its own.")] = None,
    workspace: Annotated[
        str | None, typer.Option("--workspace", "-w", help="Workspace to import into; default that of the file.")
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Import into the file's workspace even if it exists and is not yours.")
    ] = False,
) -> None:
    """Import a run, to compare with it or report on it. Importing the same file again changes nothing.

    Without --workspace the run goes into the workspace that the file names. If that one exists and is not the one of
    LLM_WORKSPACE_ID, this is refused unless it is confirmed with --yes.
    """
    from llmkit.evals.export import read_origin
    from llmkit.session import Session

    with Session(workspace or read_origin(file).workspace_id, warm_up=False) as session:
        if workspace is None and not yes:
            _require_new_or_own(session)
        report = session.import_run(file, name=name)
    typer.echo(
        f"{report.run.name} has {len(report.results):,} results in workspace {report.run.workspace_id}.", err=True
    )


def _require_new_or_own(session: Session) -> None:
    """Refuse an existing workspace that only the file names: the author of the file need not own it."""
    workspace, core = session.workspace, session._core  # noqa: SLF001 - part of the same package
    if workspace == load_settings().workspace_id:
        return
    if core.run(core.eval_store.list_runs(workspace)) or not session.runs(limit=1).empty:
        raise LLMEvaluationError(
            f"The file is of workspace {workspace!r}, which exists and is not yours (LLM_WORKSPACE_ID). Name the "
            "workspace to import into with --workspace, or confirm this one with --yes."
        )
