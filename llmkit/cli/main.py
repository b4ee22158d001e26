"""The command line: commands of the session, and the entry point."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from llmkit.cli.cassette import cassette_app
from llmkit.cli.cost import cost_app
from llmkit.cli.db import db_app
from llmkit.cli.endpoints import endpoints_app
from llmkit.cli.eval.run import eval_app
from llmkit.cli.exit_codes import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from llmkit.cli.init import init
from llmkit.cli.output import (
    AsJson,
    Interruption,
    Workspace,
    build_record_table,
    format_cell,
    make_table,
    print_json,
    print_rich,
    read_piped_text,
    replace_unencodable_characters,
)
from llmkit.display.terminal_text import escape_controls
from llmkit.display.terminal_writer import TerminalWriter
from llmkit.errors import LLMBadRequest, LLMConfigurationError, LLMError, LLMEvaluationError, LLMStoreError
from llmkit.settings import load_settings

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from llmkit.notebook.stream import ChatStream
    from llmkit.settings import LLMSettings
    from llmkit.types import LLMResponse, Route

__all__ = ["app", "main"]

# Length of a prompt or an answer in a list of runs, in characters.
PREVIEW_LENGTH, SHORTEST_PREVIEW = 30, 8
# Enough to find any run by its id.
MOST_RUNS = 1_000_000
_BAD_INPUT = (LLMConfigurationError, LLMBadRequest, LLMEvaluationError, LLMStoreError)

_EPILOG = "Exit codes: 0 done, 1 done with failures, 2 bad input or configuration, 130 interrupted."

app = typer.Typer(
    name="llmkit",
    help="Language models for research: chat, evaluate, and see what every call cost.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("init")(init)
app.add_typer(eval_app, name="eval")
app.add_typer(db_app, name="db")
app.add_typer(cost_app, name="cost")
app.add_typer(cassette_app, name="cassette")
app.add_typer(endpoints_app, name="endpoints")


def _unwrap_help() -> None:
    """Let the help texts flow: Typer prints the line breaks of a docstring as they are."""
    for group in (app, eval_app, db_app, cost_app, cassette_app, endpoints_app):
        for command in group.registered_commands:
            paragraphs = inspect.getdoc(command.callback) or ""
            command.help = "\n\n".join(" ".join(each.split()) for each in paragraphs.split("\n\n"))


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from llmkit import __version__

        typer.echo(f"llmkit {__version__}")
        raise typer.Exit


@app.callback()
def _accept_options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """Document `--debug`, which `main` has already removed from the arguments so that it may stand anywhere."""


@app.command()
def doctor(
    probe: Annotated[
        bool, typer.Option("--probe", help="Also try every usable route out, with up to eight small requests.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Probe routes that may bill the requests without asking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check which providers are reachable, which models and keys are there, and how to fix the rest."""
    from rich.markup import escape

    from llmkit.doctor import CheckState, examine, usable_routes

    def may_pay(route: Route) -> bool:
        # Without a terminal there is no answer to wait for.
        return yes or (
            sys.stdin.isatty() and typer.confirm(f"Probe {route}? Up to 8 small requests may be billed", err=True)
        )

    checks = examine(load_settings(), probe=probe, may_pay=may_pay)
    routes = usable_routes(checks)
    healthy = bool(routes) and not any(check.state is CheckState.FAILED for check in checks)
    if as_json:
        print_json({"healthy": healthy, "usable_routes": routes, "checks": [check.as_dict() for check in checks]})
    else:
        listing = make_table("", "state", "found", "what to do")
        for check in checks:
            listing.add_row(check.name, _STATE_MARKS[str(check.state)], escape(check.detail), escape(check.fix or ""))
        print_rich(listing)
        print_rich(f"Usable routes: {', '.join(routes)}" if routes else "No route is usable yet.")
    raise typer.Exit(EXIT_OK if healthy else EXIT_FAILED)


_STATE_MARKS = {"ok": "[green]ok[/]", "absent": "[yellow]absent[/]", "failed": "[red]failed[/]"}


@app.command()
def chat(  # noqa: PLR0913 - options of a command
    prompt: Annotated[str | None, typer.Argument(help="The prompt. Text on standard input is put before it.")] = None,
    route: Annotated[str | None, typer.Option(help="A pinned provider/model, for example ollama/llama3.2.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(help="Limit of the answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 to 2; default the provider's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling, where the provider has one.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text at which the answer ends; repeatable. \\n is a line break.")
    ] = None,
    is_continued: Annotated[
        bool, typer.Option("--continue", "-c", help="Continue the latest conversation of the workspace.")
    ] = False,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Send one prompt and print the answer. Model, tokens and time go to stderr."""
    from llmkit.notebook.conversation import find_latest_conversation
    from llmkit.notebook.options import TurnOptions
    from llmkit.session import Session

    text = _join_prompt(prompt, read_piped_text(is_required=prompt in {None, "-"}))
    options: TurnOptions = {"route": route, "temperature": temperature, "seed": seed}
    # Shells pass on the two characters \n, and the most useful text to stop at is the end of the line.
    stops = [each.replace("\\n", "\n") for each in stop or ()]
    options |= {"max_output_tokens": max_output_tokens, "stop": stops or None}
    # A file or a pipe gets the whole answer or, after a failure, nothing.
    is_streamed = sys.stdout.isatty() and not as_json
    with Session(workspace, warm_up=False) as session:
        # As a turn of a conversation, so that `-c` can continue it.
        latest = find_latest_conversation(session._core) if is_continued else None  # noqa: SLF001 - the same package
        if is_continued or session.settings.persist_runs:
            talk = session.conversation(id=latest, system=system)
            response = _print_stream(talk.stream(text, **options)) if is_streamed else talk.say(text, **options)
        elif is_streamed:
            response = _print_stream(session.stream(text, system=system, **options))
        else:
            response = session.chat(text, system=system, **options)
    if as_json:
        print_json(response.model_dump(mode="json"))
        return
    if not is_streamed:
        typer.echo(response.text, color=True)
    typer.echo(f"[{_describe_response(response, session.settings)}]", err=True)
    for warning in response.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _print_stream(stream: ChatStream) -> LLMResponse:
    writer = TerminalWriter(sys.stdout)
    try:
        for text in stream:
            writer.write(text)
    finally:
        writer.finish()  # a message about a failure begins on a line of its own
    return stream.response


def _describe_response(response: LLMResponse, settings: LLMSettings) -> str:
    from llmkit.pricing import is_free
    from llmkit.providers import load_endpoints

    tokens = f"{_format_count(response.usage.input_tokens)} + {_format_count(response.usage.output_tokens)} tokens"
    parts = [str(response.route), tokens]
    if response.first_token_ms is not None:
        parts.append(f"first token after {response.first_token_ms:.0f} ms")
    parts.append(f"{response.latency_ms:.0f} ms")
    if not response.billed:
        parts.append(f"from {response.served_from}")
    elif not is_free(response.route, load_endpoints(settings)):
        parts.append("billed")
    return ", ".join(parts)


def _join_prompt(prompt: str | None, piped: str) -> str:
    parts = [piped, "" if prompt in {None, "-"} else str(prompt)]
    text = "\n\n".join(part for part in parts if part.strip())
    if not text:
        raise LLMBadRequest("There is no prompt: give one, as in `llmkit chat 'What is churn?'`, or pipe text in")
    return text


def _format_count(tokens: int | None) -> str:
    return "?" if tokens is None else str(tokens)


@app.command()
def runs(
    limit: Annotated[int, typer.Option(min=1, help="Largest number of rows, newest first.")] = 20,
    show: Annotated[str | None, typer.Option("--show", help="Show every field of the run with this id.")] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """List the calls of the workspace, or show one of them."""
    from llmkit.session import Session

    with Session(workspace, warm_up=False) as session:
        frame = session.runs(limit=limit if show is None else MOST_RUNS)
    if show is not None:
        frame = frame[frame["id"].astype(str).str.startswith(show)]
        if len(frame) != 1:
            raise LLMBadRequest(
                f"{len(frame)} runs have an id that starts with {show!r}; `llmkit runs --json` lists ids"
            )
    if as_json:
        print_json(json.loads(frame.to_json(orient="records", date_format="iso")))
    elif show is not None:
        print_rich(build_record_table(frame.iloc[0]))
    elif frame.empty:
        typer.echo(f"Workspace {session.workspace!r} has no calls yet", err=True)
    else:
        print_rich(_build_runs_table(frame))


def _build_runs_table(frame: pd.DataFrame) -> Table:
    """Return what fits into one line of a terminal; a file or a pipe gets more columns and longer texts."""
    from rich.markup import escape

    is_terminal = sys.stdout.isatty()
    columns = _TERMINAL_COLUMNS if is_terminal else {**_TERMINAL_COLUMNS, **_FILE_COLUMNS}
    table = make_table(*columns, "prompt", "answer")
    for name, column in zip((*columns, "", ""), table.columns, strict=True):
        column.justify = "right" if name in {"in", "out", "ms"} else "left"
    if is_terminal:
        frame = frame.assign(created_at_utc=frame["created_at_utc"].dt.strftime("%m-%d %H:%M"))
    rows = [tuple(map(format_cell, row)) for row in frame[list(columns.values())].itertuples(index=False)]
    width = sum(max(map(len, (name, *cells))) + 2 for name, *cells in zip(columns, *rows, strict=True))
    room = (shutil.get_terminal_size().columns - width - 2) // 2 if is_terminal else PREVIEW_LENGTH
    answers = frame["response_preview"].fillna(frame["error_code"])
    for row, prompt, answer in zip(rows, frame["request_preview"], answers, strict=True):
        table.add_row(*(escape(cell) for cell in (*row, _cut_text(prompt, room), _cut_text(answer, room))))
    return table


def _cut_text(text: Any, length: int) -> str:
    """Return a preview in one line of at least a few characters."""
    line = " ".join(text.split()).removeprefix("user: ") if isinstance(text, str) else ""
    return line if len(line) <= length else f"{line[: max(length, SHORTEST_PREVIEW) - 1]}…"


# By the heading of the column. A terminal of 80 columns has no room for more.
_TERMINAL_COLUMNS = {
    "created": "created_at_utc",
    "status": "status",
    "model": "response_model",
    "in": "input_tokens",
    "out": "output_tokens",
    "ms": "latency_ms",
}
_FILE_COLUMNS = {
    "error": "error_code",
    "served_from": "served_from",
    "provider": "provider",
    "stage": "stage",
    "attempts": "attempts",
    "id": "id",
}


def main() -> NoReturn:
    """Run the command line in this process and exit."""
    with warnings.catch_warnings():
        warnings.showwarning = _print_warning
        sys.exit(run_command(sys.argv[1:]))


def _print_warning(message: Warning | str, *_origin: object, **_options: object) -> None:
    # The line of code that Python would add is one of Typer's.
    typer.echo(f"warning: {escape_controls(str(message))}", err=True)


def run_command(arguments: list[str]) -> int:
    """Run one command and return its exit code. Every error becomes one message."""
    replace_unencodable_characters()
    _unwrap_help()
    debug = "--debug" in arguments
    try:
        outcome = app(args=[each for each in arguments if each != "--debug"], standalone_mode=False)
    except KeyboardInterrupt:
        return _report_interruption()
    except Interruption as interruption:
        return _report_interruption(str(interruption))
    except typer.Abort:
        typer.echo("Nothing was done.", err=True)
        return EXIT_BAD_INPUT
    except BrokenPipeError:
        return EXIT_OK
    except Exception as error:  # noqa: BLE001 - the outermost handler
        if debug:
            traceback.print_exc()
        return _report_error(error)
    # Typer swallows KeyboardInterrupt in standalone_mode=False and returns its exit code instead.
    if outcome == EXIT_INTERRUPTED:
        return _report_interruption()
    return outcome if isinstance(outcome, int) else EXIT_OK


def _report_interruption(text: str = "Finished work is kept; run the same command again to continue.") -> int:
    typer.echo(f"\nInterrupted. {text}", err=True)
    return EXIT_INTERRUPTED


def _report_error(error: Exception) -> int:
    if isinstance(error, LLMError):
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        return EXIT_BAD_INPUT if isinstance(error, _BAD_INPUT) else EXIT_FAILED
    show, code = getattr(error, "show", None), getattr(error, "exit_code", None)
    if callable(show) and isinstance(code, int):  # a usage error of the command line itself
        show()
        return code
    typer.echo(f"llmkit: unexpected {type(error).__name__}; run again with --debug and report what it prints", err=True)
    return EXIT_FAILED
