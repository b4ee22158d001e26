"""The command line: commands of the session, and the entry point."""

from __future__ import annotations

import json
import sys
import traceback
from typing import Annotated, NoReturn

import typer

from llmkit.cli.cassette import cassette_app
from llmkit.cli.db import db_app
from llmkit.cli.eval.run import eval_app
from llmkit.cli.exit_codes import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from llmkit.cli.output import (
    AsJson,
    Interruption,
    Workspace,
    build_frame_table,
    build_record_table,
    make_table,
    print_json,
    print_rich,
    read_piped_text,
    replace_unencodable_characters,
)
from llmkit.display.terminal_text import escape_controls
from llmkit.errors import LLMBadRequest, LLMConfigurationError, LLMError, LLMEvaluationError, LLMStoreError
from llmkit.settings import load_settings

__all__ = ["app", "main"]

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
app.add_typer(eval_app, name="eval")
app.add_typer(db_app, name="db")
app.add_typer(cassette_app, name="cassette")


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
        bool, typer.Option("--probe", help="Also send one small billed request on every usable route.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check which providers are reachable, which models and keys are there, and how to fix the rest."""
    from rich.markup import escape

    from llmkit.doctor import CheckState, examine, usable_routes

    checks = examine(load_settings(), probe=probe)
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
    stop: Annotated[list[str] | None, typer.Option(help="Text at which the answer ends; repeatable.")] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Send one prompt and print the answer. Model, tokens and time go to stderr."""
    from llmkit.notebook.options import ChatOptions
    from llmkit.session import Session

    text = _join_prompt(prompt, read_piped_text(is_required=prompt in {None, "-"}))
    options: ChatOptions = {"route": route, "system": system, "temperature": temperature, "seed": seed}
    options |= {"max_output_tokens": max_output_tokens, "stop": stop or None}
    with Session(workspace) as session:
        response = session.chat(text, **options)
    if as_json:
        print_json(response.model_dump(mode="json"))
        return
    # A terminal would execute control sequences in the text; a file or a pipe gets the text unchanged.
    typer.echo(escape_controls(response.text) if sys.stdout.isatty() else response.text, color=True)
    typer.echo(
        f"[{response.route}, {_format_count(response.usage.input_tokens)} + "
        f"{_format_count(response.usage.output_tokens)} tokens, {response.latency_ms:.0f} ms, "
        f"{'billed' if response.billed else f'from {response.served_from}'}]",
        err=True,
    )
    for warning in response.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _join_prompt(prompt: str | None, piped: str) -> str:
    parts = [piped, "" if prompt in {None, "-"} else str(prompt)]
    text = "\n\n".join(part for part in parts if part.strip())
    if not text:
        raise LLMBadRequest("There is no prompt: give one, as in `llmkit chat 'What is churn?'`, or pipe a text in")
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

    with Session(workspace) as session:
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
        names = _RUN_COLUMNS if sys.stdout.isatty() else (*_RUN_COLUMNS, *_MORE_RUN_COLUMNS)
        print_rich(build_frame_table(frame[[name for name in names if name in frame.columns]]))


_RUN_COLUMNS = (
    "created_at_utc",
    "status",
    "response_model",
    "input_tokens",
    "output_tokens",
    "latency_ms",
    "error_code",
)
# A terminal of 80 columns has no room for these.
_MORE_RUN_COLUMNS = ("served_from", "provider", "stage", "attempts", "id")


def main() -> NoReturn:
    """Run the command line. Every error becomes one message and an exit code."""
    replace_unencodable_characters()
    sys.exit(_run(sys.argv[1:]))


def _run(arguments: list[str]) -> int:
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
