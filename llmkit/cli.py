"""The command line: the session's calls, printed."""

from __future__ import annotations

import json
import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from llmkit.errors import LLMBadRequest, LLMConfigurationError, LLMError, LLMEvaluationError, LLMStoreError
from llmkit.settings import LLMSettings, load_settings

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

__all__ = ["app", "main"]

PIPE_WIDTH = 200
EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
_BAD_INPUT = (LLMConfigurationError, LLMBadRequest, LLMEvaluationError, LLMStoreError)

_EPILOG = "Exit codes: 0 done, 1 done with failures, 2 bad input or configuration, 130 interrupted."

app = typer.Typer(
    name="llmkit",
    help="Language models for research: chat, evaluate, and see what every call cost.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
eval_app = typer.Typer(help="Run tasks over several routes and compare them.", no_args_is_help=True)
db_app = typer.Typer(help="The store of runs: bring it up to date, look at its size, clean it.", no_args_is_help=True)
app.add_typer(eval_app, name="eval")
app.add_typer(db_app, name="db")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; progress goes to stderr.")]
Workspace = Annotated[
    str | None,
    typer.Option("--workspace", "-w", help="Whose runs these are; default LLM_WORKSPACE_ID, else 'default'."),
]


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """Options of every command; `main` has read them already."""


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Say what is reachable, which model is there, which key is set (never its value), and what mends the rest."""
    from llmkit.doctor import CheckState, examine, usable_routes

    checks = examine(load_settings())
    routes = usable_routes(checks)
    healthy = bool(routes) and not any(check.state is CheckState.FAILED for check in checks)
    if as_json:
        _print_json({"healthy": healthy, "usable_routes": routes, "checks": [check.as_dict() for check in checks]})
    else:
        table = _table("", "state", "found", "what to do")
        for check in checks:
            table.add_row(check.name, _STATE_MARKS[str(check.state)], check.detail, check.fix or "")
        _print(table)
        _print(f"Usable routes: {', '.join(routes)}" if routes else "No route is usable yet.")
    raise typer.Exit(EXIT_OK if healthy else EXIT_FAILED)


_STATE_MARKS = {"ok": "[green]ok[/]", "absent": "[yellow]absent[/]", "failed": "[red]failed[/]"}


@app.command()
def chat(
    prompt: Annotated[str, typer.Argument(help="What to ask; - reads it from standard input.")],
    route: Annotated[str | None, typer.Option(help="A pinned provider/model, for example ollama/llama3.2.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message to put in front.")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(help="Limit of the answer, in tokens.")] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Ask one question and print the answer; model, tokens and time go to stderr."""
    from llmkit.session import Session

    text = sys.stdin.read() if prompt == "-" else prompt
    with Session(workspace) as session:
        response = session.chat(text, route=route, system=system, max_output_tokens=max_output_tokens)
    if as_json:
        _print_json(response.model_dump(mode="json"))
        return
    typer.echo(response.text)
    typer.echo(
        f"[{response.route}, {_count(response.usage.input_tokens)} + {_count(response.usage.output_tokens)} tokens, "
        f"{response.latency_ms:.0f} ms, {'billed' if response.billed else f'from {response.served_from}'}]",
        err=True,
    )
    for warning in response.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _count(tokens: int | None) -> str:
    return "?" if tokens is None else str(tokens)


@app.command()
def runs(
    limit: Annotated[int, typer.Option(min=1, help="Most rows, newest first.")] = 20,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """List the calls of the workspace."""
    from llmkit.session import Session

    with Session(workspace) as session:
        frame = session.runs(limit=limit)
    if as_json:
        _print_json(json.loads(frame.to_json(orient="records", date_format="iso")))
    else:
        _print(_frame_table(frame[[column for column in _RUN_COLUMNS if column in frame.columns]]))


_RUN_COLUMNS = (
    "created_at_utc",
    "status",
    "served_from",
    "provider",
    "response_model",
    "stage",
    "input_tokens",
    "output_tokens",
    "latency_ms",
    "attempts",
    "error_code",
)


@eval_app.command("run")
def eval_run(
    file: Annotated[Path, typer.Argument(help="A Python file with one or more module-level tasks.")],
    routes: Annotated[str, typer.Option(help="Routes to compare, separated by commas: provider/model.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the run; the same name again finishes what is missing.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Repeats of every sample.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N samples.")] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Most samples under way at once.")] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Run every task of FILE over the routes, resume what was interrupted, and print the comparison.

    Finished samples are not called again; failed ones are tried again. Exit code 1 when samples failed.
    """
    from llmkit.evals import load_tasks
    from llmkit.session import Session

    tasks = load_tasks(file)
    labels = [route.strip() for route in routes.split(",") if route.strip()]
    options: dict[str, Any] = {"epochs": epochs, "limit": limit}
    if concurrency is not None:
        options["concurrency"] = concurrency
    with Session(workspace) as session:
        reports = [
            session.evaluate(task, labels, name=_run_name(name, task.name, len(tasks)), **options) for task in tasks
        ]
    if as_json:
        documents = [report.to_json() for report in reports]
        _print_json(documents[0] if len(documents) == 1 else documents)
    else:
        for report in reports:
            _print(report.table())
    raise typer.Exit(EXIT_FAILED if any(report.has_failures for report in reports) else EXIT_OK)


def _run_name(name: str | None, task_name: str, tasks: int) -> str:
    if name is None:
        return f"{task_name}-{datetime.now():%Y%m%d-%H%M%S}"  # noqa: DTZ005 - a person's own clock
    return name if tasks == 1 else f"{name}-{task_name}"


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Bring the database to the newest schema; sessions do it by themselves when they open."""
    from llmkit.persistence.migrate import upgrade

    settings = load_settings()
    state = upgrade(settings.database_url)
    typer.echo(f"{_address(settings)} is at {state.revision}", err=True)


def _address(settings: LLMSettings) -> str:
    from llmkit.telemetry import redact

    return redact(settings.database_url)


def main() -> NoReturn:
    """Run the command line; every error is one message and an exit code."""
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    try:
        outcome = app(args=arguments, standalone_mode=False)
    except KeyboardInterrupt:
        typer.echo("Interrupted. What is finished is kept; the same command continues.", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_OK
    except Exception as error:  # noqa: BLE001 - the last door
        if debug:
            traceback.print_exc()
        return _report(error)
    return outcome if isinstance(outcome, int) else EXIT_OK


def _report(error: Exception) -> int:
    if isinstance(error, LLMError):
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        return EXIT_BAD_INPUT if isinstance(error, _BAD_INPUT) else EXIT_FAILED
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if callable(show) and isinstance(code, int):  # a usage error of the command line itself
        show()
        return code
    typer.echo(f"llmkit: unexpected {type(error).__name__}; run again with --debug and report what it prints", err=True)
    return EXIT_FAILED


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, default=str))


def _print(renderable: Any) -> None:
    from rich.console import Console

    # Where nobody's window limits it (a pipe, a log), a table is written whole.
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(renderable)


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _frame_table(frame: pd.DataFrame) -> Table:
    from rich.markup import escape

    table = _table(*frame.columns)
    for row in frame.itertuples(index=False):
        table.add_row(*(escape(_cell(value)) for value in row))
    return table


def _cell(value: Any) -> str:
    import pandas as pd

    if value is None or value is pd.NA or value is pd.NaT or value != value:
        return ""
    if isinstance(value, pd.Timestamp):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return f"{value:.0f}" if isinstance(value, float) else str(value)
