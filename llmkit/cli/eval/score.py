"""`llmkit eval score`: scores of answers that exist already."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmkit.cli.eval.report import print_reports, write_reports
from llmkit.cli.exit_codes import EXIT_FAILED, EXIT_OK
from llmkit.cli.option_groups import DataColumns, RunOutput, expand_groups
from llmkit.errors import LLMBadRequest

if TYPE_CHECKING:
    from llmkit.evals import Task

__all__ = ["eval_score"]


@expand_groups
def eval_score(  # noqa: PLR0913 - options of a command
    file: Annotated[Path, typer.Argument(help="A task file, as for `eval run`.")],
    answers: Annotated[
        list[str],
        typer.Argument(
            help="Files of answers: JSON Lines, CSV, Parquet, or a run that `eval export` wrote; several as NAME=FILE."
        ),
    ],
    output: RunOutput,
    data: DataColumns,
    name: Annotated[str | None, typer.Option(help="Name of the run; default that of the task with -answers.")] = None,
    task: Annotated[str | None, typer.Option(help="Name of the task, if FILE has several.")] = None,
    answer: Annotated[str | None, typer.Option(help="Column with the answers.")] = None,
    id_column: Annotated[
        str | None, typer.Option("--id", help="Column of the answers with the ids of the samples.")
    ] = None,
    sample_id: Annotated[str | None, typer.Option(help="Column of the dataset with the ids of the samples.")] = None,
    variant: Annotated[str | None, typer.Option(help="Column with the names of what is compared.")] = None,
    epoch: Annotated[str | None, typer.Option(help="Column with the number of the repeat.")] = None,
    is_strict: Annotated[
        bool, typer.Option("--strict", help="Refuse samples without an answer, and answers without a sample.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N samples.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Most calls of judges in progress at once.")] = None,
) -> None:
    """Score answers that exist already. Calls nothing unless a judge is among the scorers.

    Exit code 1 if answers are missing or do not fit the output type.
    """
    from llmkit.evals import load_tasks
    from llmkit.session import Session

    output.require_writable()
    chosen = data.apply(_choose_task(load_tasks(file), task, file), id=sample_id)
    options: dict[str, Any] = {"answer": answer, "id": id_column, "variant": variant, "epoch": epoch, "limit": limit}
    options |= {"strict": is_strict, "concurrency": concurrency}
    with Session(output.workspace, warm_up=False) as session:
        reports = [session.score(chosen, _read_arguments(answers), name=name, **options)]
        write_reports(reports, output)
    print_reports(reports, output)
    raise typer.Exit(EXIT_FAILED if reports[0].has_failures else EXIT_OK)


def _choose_task(tasks: Sequence[Task], name: str | None, file: Path) -> Task:
    by_name = {task.name: task for task in tasks}
    if name is None and len(tasks) == 1:
        return tasks[0]
    if name not in by_name:
        raise LLMBadRequest(f"{file} has the tasks {', '.join(by_name)}: name one with --task")
    return by_name[name]


def _read_arguments(answers: Sequence[str]) -> Path | dict[str, Path]:
    """Return the file, or the files by the names before them.

    Raises:
        LLMBadRequest: Two have one name.
    """
    if len(answers) == 1 and (Path(answers[0]).is_file() or "=" not in answers[0]):
        return Path(answers[0]).absolute()
    files: dict[str, Path] = {}
    for text in answers:
        label, equals, place = text.partition("=")
        path = Path(text if Path(text).is_file() or not equals else place)
        label = label if equals and not Path(text).is_file() else path.name.partition(".")[0]
        if label in files:
            raise LLMBadRequest(f"Two files of answers are called {label!r}: write NAME=FILE")
        files[label] = path.absolute()
    return files
