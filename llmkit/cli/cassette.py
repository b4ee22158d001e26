"""`llmkit cassette`: recorded answers, for notebooks and tests without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmkit.cli.exit_codes import EXIT_FAILED, EXIT_OK
from llmkit.cli.output import AsJson, Workspace, print_json
from llmkit.errors import LLMBadRequest
from llmkit.settings import load_settings

__all__ = ["cassette_app"]


cassette_app = typer.Typer(help="Record answers from the store for Session(replay=...).", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="The cassette, a JSONL file.")]


@cassette_app.command("record")
def cassette_record(
    file: File,
    workspace: Workspace = None,
    pipeline_run_id: Annotated[str | None, typer.Option(help="Only the calls of this pipeline run.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite an existing file.")] = False,
) -> None:
    """Write every call of a workspace that a provider answered to a redacted cassette (JSON Lines)."""
    from llmkit import __version__
    from llmkit.cli.db import open_store
    from llmkit.providers import collect_secrets
    from llmkit.replay.cassette import Cassette
    from llmkit.replay.recorder import recordings

    settings = load_settings()
    name = workspace or settings.workspace_id
    with open_store(settings) as journal:
        found = recordings(
            journal.engine, journal.address, name, pipeline_run_id=pipeline_run_id, secrets=collect_secrets(settings)
        )
    if not found:
        raise LLMBadRequest(
            f"Workspace {name!r} has no call answered by a provider; `llmkit db stats` lists the workspaces"
        )
    models = sorted({f"{each.route} ({each.response_model})" for each in found if each.route is not None})
    try:
        with file.open("w" if replace else "x", encoding="utf-8") as out:
            Cassette(found).write(out, made_by=f"llmkit {__version__}", answered_by=models)
    except OSError as error:
        raise LLMBadRequest(f"Cannot write {file}: {error.strerror}; use --replace to overwrite a file") from None
    typer.echo(f"Wrote {len(found):,} calls, answered by {', '.join(models) or 'no provider'}", err=True)


@cassette_app.command("verify")
def cassette_verify(file: File, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Compare a cassette with the calls of a workspace: list unused entries and count missing ones."""
    from llmkit.cli.db import open_store
    from llmkit.replay.cassette import Cassette
    from llmkit.replay.recorder import read_asked_keys

    cassette = Cassette.read(file)
    settings = load_settings()
    with open_store(settings) as journal:
        asked = read_asked_keys(journal.engine, journal.address, workspace or settings.workspace_id)
    unasked = [number for number, each in enumerate(cassette, start=2) if each.key not in asked]
    missing = len(asked - {each.key for each in cassette})
    if as_json:
        print_json(
            {"recordings": len(cassette.recordings), "unasked_lines": unasked, "calls_without_recording": missing}
        )
    else:
        for number in unasked:
            typer.echo(f"line {number}: unused: {cassette.recordings[number - 2].prompt[:100]!r}")
        typer.echo(f"{len(cassette.recordings)} recordings, {len(unasked)} unused; {missing} calls without a recording")
    raise typer.Exit(EXIT_FAILED if unasked or missing else EXIT_OK)
