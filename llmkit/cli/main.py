"""The command line: the session's calls, printed."""

from __future__ import annotations

import json
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from llmkit.cli.cassette import cassette_app
from llmkit.cli.db import db_app
from llmkit.cli.eval.run import eval_app
from llmkit.cli.output import AsJson, Interruption, Workspace, frame_table, print_json, print_rich, table
from llmkit.display.terminal_text import printable
from llmkit.errors import LLMBadRequest, LLMConfigurationError, LLMError, LLMEvaluationError, LLMStoreError
from llmkit.settings import load_settings

__all__ = ["app", "main"]

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
app.add_typer(eval_app, name="eval")
app.add_typer(db_app, name="db")
app.add_typer(cassette_app, name="cassette")


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """`main` has read and removed `--debug`, which may stand anywhere; here it is for `--help`."""


@app.command()
def doctor(
    probe: Annotated[
        bool, typer.Option("--probe", help="Also send one small request, billed, on every route that looks usable.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what is reachable, which model is there, which key is set (never its value), and what mends the rest."""
    from rich.markup import escape

    from llmkit.doctor import CheckState, examine, usable_routes

    checks = examine(load_settings(), probe=probe)
    routes = usable_routes(checks)
    healthy = bool(routes) and not any(check.state is CheckState.FAILED for check in checks)
    if as_json:
        print_json({"healthy": healthy, "usable_routes": routes, "checks": [check.as_dict() for check in checks]})
    else:
        shown = table("", "state", "found", "what to do")
        for check in checks:
            shown.add_row(check.name, _STATE_MARKS[str(check.state)], escape(check.detail), escape(check.fix or ""))
        print_rich(shown)
        print_rich(f"Usable routes: {', '.join(routes)}" if routes else "No route is usable yet.")
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
        print_json(response.model_dump(mode="json"))
        return
    # A terminal would obey what steers it; a file or a pipe gets the text as the model wrote it.
    typer.echo(printable(response.text) if sys.stdout.isatty() else response.text, color=True)
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
        print_json(json.loads(frame.to_json(orient="records", date_format="iso")))
    else:
        print_rich(frame_table(frame[[column for column in _RUN_COLUMNS if column in frame.columns]]))


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


def main() -> NoReturn:
    """Run the command line; every error is one message and an exit code."""
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
    debug = "--debug" in arguments
    try:
        outcome = app(args=[each for each in arguments if each != "--debug"], standalone_mode=False)
    except KeyboardInterrupt:
        return _interrupted()
    except Interruption as interruption:
        return _interrupted(str(interruption))
    except typer.Abort:
        typer.echo("Nothing was done.", err=True)
        return EXIT_BAD_INPUT
    except BrokenPipeError:
        return EXIT_OK
    except Exception as error:  # noqa: BLE001 - the last door
        if debug:
            traceback.print_exc()
        return _report(error)
    # Typer turns an interrupt into its exit code.
    if outcome == EXIT_INTERRUPTED:
        return _interrupted()
    return outcome if isinstance(outcome, int) else EXIT_OK


def _interrupted(said: str = "What is finished is kept; the same command continues.") -> int:
    typer.echo(f"\nInterrupted. {said}", err=True)
    return EXIT_INTERRUPTED


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
