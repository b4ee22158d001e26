"""`llmkit eval report`, and how reports are written and printed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.output import (
    AsJson,
    HtmlFile,
    JUnitFile,
    MarkdownFile,
    Stable,
    Workspace,
    print_json,
    print_rich,
    require_places,
    write_text,
)
from llmkit.errors import LLMBadRequest

if TYPE_CHECKING:
    from llmkit.evals import EvalReport, Task

__all__ = ["eval_report", "print_reports", "require_one_page", "write_reports"]


def eval_report(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    task: Annotated[
        Path | None, typer.Option("--task", help="The file of its task: adds inputs, targets and whole prompts.")
    ] = None,
    junit: JUnitFile = None,
    markdown: MarkdownFile = None,
    html: HtmlFile = None,
    stable: Stable = False,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Report on a stored run. Calls nothing."""
    from llmkit.session import Session

    require_places(junit, markdown, html)
    with Session(workspace) as session:
        report = session.report(run)
        if task is not None:
            report = session.report(run, task=_task_of(report, task))
        write_reports([report], junit=junit, markdown=markdown, html=html, stable=stable)
    print_reports([report], stable=stable, as_json=as_json)


def _task_of(report: EvalReport, file: Path) -> Task:
    from llmkit.evals import load_tasks

    name = report.run.task_name
    found = {task.name: task for task in load_tasks(file)}
    if name not in found:
        raise LLMBadRequest(f"{file} has no task {name!r}, which the run is of; it has: {', '.join(found)}")
    return found[name]


def require_one_page(html: Path | None, tasks: int) -> None:
    """Refuse one HTML file for several tasks, before anything is paid.

    Raises:
        LLMBadRequest: There are several.
    """
    if html is not None and tasks > 1:
        raise LLMBadRequest(
            f"--html writes one run, and the file has {tasks} tasks: write each with `llmkit eval report RUN --html`"
        )


def write_reports(
    reports: Sequence[EvalReport], *, junit: Path | None, markdown: Path | None, html: Path | None, stable: bool
) -> None:
    """Write the files that were asked for, over earlier ones."""
    from llmkit.evals.for_ci import run_junit, run_markdown

    write_text(junit, run_junit(reports))
    write_text(markdown, run_markdown(reports))
    if html is not None:
        (report,) = reports
        report.to_html(html, stable=stable)


def print_reports(reports: Sequence[EvalReport], *, stable: bool, as_json: bool) -> None:
    """Tables, or one JSON document: a list when there are several reports."""
    if as_json:
        documents = [report.to_json(stable=stable) for report in reports]
        print_json(documents[0] if len(documents) == 1 else documents)
        return
    for report in reports:
        print_rich(report.table())
