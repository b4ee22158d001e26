"""`llmkit eval report`, and the output of reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.option_groups import DataOptions, RunOutput, expand_groups
from llmkit.cli.output import print_json, print_rich, write_text
from llmkit.errors import LLMBadRequest

if TYPE_CHECKING:
    from llmkit.evals import EvalReport, Task
    from llmkit.session import Session

__all__ = ["eval_report", "print_reports", "read_with_task", "require_one_page", "write_reports"]


@expand_groups
def eval_report(
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    output: RunOutput,
    data: DataOptions,
    task: Annotated[
        Path | None, typer.Option("--task", help="The task file: adds inputs, targets and full prompts.")
    ] = None,
) -> None:
    """Show the report of a stored run. Calls nothing."""
    from llmkit.session import Session

    output.require_writable()
    with Session(output.workspace, warm_up=False) as session:
        report = session.report(run)
        if task is not None:
            report = session.report(run, task=data.apply(_load_task(report, task)))
        write_reports([report], output)
    print_reports([report], output)


def read_with_task(session: Session, run: str, file: Path | None) -> EvalReport:
    """Return the report of a stored run, with the samples of its task if the file of that is given."""
    report = session.report(run)
    return report if file is None else session.report(run, task=_load_task(report, file))


def _load_task(report: EvalReport, file: Path) -> Task:
    from llmkit.evals import load_tasks

    name = report.run.task_name
    found = {task.name: task for task in load_tasks(file)}
    if name not in found:
        raise LLMBadRequest(f"{file} has no task {name!r}, the task of this run; it has: {', '.join(found)}")
    return found[name]


def require_one_page(html: Path | None, tasks: int) -> None:
    """Check, before anything is paid, that one HTML file is not wanted for several tasks.

    Raises:
        LLMBadRequest: There are several tasks and an HTML file.
    """
    if html is not None and tasks > 1:
        raise LLMBadRequest(
            f"--html writes one run, and the file has {tasks} tasks: write each with `llmkit eval report RUN --html`"
        )


def write_reports(reports: Sequence[EvalReport], output: RunOutput) -> None:
    """Write the requested files, replacing earlier ones."""
    from llmkit.evals.ci.junit import render_run_junit
    from llmkit.evals.ci.markdown import render_run_markdown

    write_text(output.junit, render_run_junit(reports))
    write_text(output.markdown, render_run_markdown(reports))
    if output.html is not None:
        (report,) = reports
        report.to_html(output.html, stable=output.stable)


def print_reports(reports: Sequence[EvalReport], output: RunOutput) -> None:
    """Print tables, or one JSON document: a list if there are several reports."""
    if output.as_json:
        documents = [report.to_json(stable=output.stable) for report in reports]
        print_json(documents[0] if len(documents) == 1 else documents)
        return
    for report in reports:
        print_rich(report.table())
