"""`llmkit eval run`, and the group of commands under `llmkit eval`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from llmkit.cli.eval.check import eval_check
from llmkit.cli.eval.compare import eval_compare, eval_gate
from llmkit.cli.eval.list import eval_list
from llmkit.cli.eval.plan import eval_plan
from llmkit.cli.eval.report import eval_report, print_reports, require_one_page, write_reports
from llmkit.cli.eval.score import eval_score
from llmkit.cli.eval.transfer import eval_export, eval_import
from llmkit.cli.exit_codes import EXIT_FAILED, EXIT_OK
from llmkit.cli.option_groups import DataOptions, RunOutput, expand_groups
from llmkit.cli.output import MaxCostUsd, MaxTimeS, MaxTokens, split_routes
from llmkit.cli.reserved_stdout import reserve_stdout

__all__ = ["eval_app"]


eval_app = typer.Typer(help="Run tasks over several routes and compare them.", no_args_is_help=True)


eval_app.command("list")(eval_list)
eval_app.command("compare")(eval_compare)
eval_app.command("gate")(eval_gate)
eval_app.command("check")(reserve_stdout(eval_check))
eval_app.command("plan")(reserve_stdout(eval_plan))
eval_app.command("report")(reserve_stdout(eval_report))
eval_app.command("score")(reserve_stdout(eval_score))
eval_app.command("export")(eval_export)
eval_app.command("import")(eval_import)


@eval_app.callback()
def _describe_group() -> None:
    """Run tasks over several routes and compare them."""


@eval_app.command("run")
@reserve_stdout
@expand_groups
def eval_run(  # noqa: PLR0913 - options of a command
    file: Annotated[
        Path, typer.Argument(help="A Python file with module-level tasks, a YAML task, or the folder of one.")
    ],
    routes: Annotated[str, typer.Option(help="Routes to compare, separated by commas: provider/model.")],
    output: RunOutput,
    data: DataOptions,
    name: Annotated[str | None, typer.Option(help="Name of the run; repeat it to resume the run.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Repeats of every sample.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N samples.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Largest number of samples in progress at once.")
    ] = None,
    workers: Annotated[
        str | None,
        typer.Option(
            metavar="W",
            help="Who calls the samples: a number of processes on this machine, dask://host:8786 or dask-local:4. "
            "--concurrency then applies to each.",
        ),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 to 2, on top of the task's parameters; default the provider's.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of sampling, where the provider has one; grows by one from epoch to epoch.")
    ] = None,
    is_cold: Annotated[
        bool, typer.Option("--no-warm-up", help="Do not call each model on your own machines once before its samples.")
    ] = False,
    is_quiet: Annotated[
        bool, typer.Option("--no-answers", help="Do not show the latest answers below the progress bar.")
    ] = False,
    policies: Annotated[
        Path | None,
        typer.Option(help="A YAML or Python file of policies, for routes written policy:NAME."),
    ] = None,
    stop_when: Annotated[
        str | None,
        typer.Option(
            metavar="RULE",
            help="Stop once the comparison of two routes is decided: METRIC, or 'METRIC: margin 0.02'.",
        ),
    ] = None,
    max_tokens: MaxTokens = None,
    max_cost_usd: MaxCostUsd = None,
    max_time_s: MaxTimeS = None,
) -> None:
    """Run every task of FILE over the routes, resume what was interrupted, and print the comparison.

    Finished samples are not called again; failed samples are. Exit code 1 if samples failed or a budget stopped the
    run: repeat the command with a larger budget to continue.
    """
    from llmkit.evals import Budget, Decided, load_policies, load_tasks
    from llmkit.notebook.evaluation import check_routes
    from llmkit.session import Session

    output.require_writable()
    tasks = [data.apply(task) for task in load_tasks(file)]
    require_one_page(output.html, len(tasks))
    labels = split_routes(routes)
    options: dict[str, Any] = {"epochs": epochs, "limit": limit, "budget": Budget(max_tokens, max_cost_usd, max_time_s)}
    if policies is not None:
        options["policies"] = load_policies(policies)
    if stop_when is not None:
        options["stop_when"] = Decided.parse(stop_when)
    if is_cold:
        options["warm_up"] = False
    if is_quiet or output.as_json:
        options["show_answers"] = False
    given = {"temperature": temperature, "seed": seed}
    options["parameters"] = {name: value for name, value in given.items() if value is not None}
    if concurrency is not None:
        options["concurrency"] = concurrency
    if workers is not None:
        options["workers"] = int(workers) if workers.removeprefix("-").isdecimal() else workers
    # Without this, the limit over all requests (8 by default) would still apply.
    settings: dict[str, Any] = {"warm_up": False} | ({} if concurrency is None else {"concurrency_limit": concurrency})
    generated = _make_name(tasks[0].name if len(tasks) == 1 else file.stem) if name is None else None
    prefix = name or generated
    names = [prefix if len(tasks) == 1 else f"{prefix}-{task.name}" for task in tasks]
    with Session(output.workspace, **settings) as session:
        if generated is not None:
            for task in tasks:
                check_routes(session._core, task, labels, options)  # noqa: SLF001 - part of the same package
            # Needed to resume the run after an interrupt; before the check it would name a run that never was.
            typer.echo(f"To resume this run after an interrupt, pass --name {generated}", err=True)
        reports = [session.evaluate(task, labels, name=run, **options) for task, run in zip(tasks, names, strict=True)]
        write_reports(reports, output)
    print_reports(reports, output)
    raise typer.Exit(EXIT_FAILED if any(report.has_failures for report in reports) else EXIT_OK)


def _make_name(stem: str) -> str:
    return f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"  # noqa: DTZ005 - people read it, so local time
