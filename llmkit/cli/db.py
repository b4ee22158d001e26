"""`llmkit db`: commands for the store of runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmkit.cli.output import AsJson, abandon_stdout, handle_interruption, make_table, print_json, print_rich
from llmkit.display.terminal_text import escape_controls
from llmkit.errors import LLMBadRequest, LLMStoreError
from llmkit.settings import LLMSettings, load_settings

if TYPE_CHECKING:
    from llmkit.persistence.journal import Journal

__all__ = ["db_app", "open_store"]

db_app = typer.Typer(help="Migrate, measure, export and clean the store of runs.", no_args_is_help=True)

PRIVATE_FILE = os.O_CREAT | os.O_EXCL | os.O_WRONLY
ERASE_AGAIN = "Run the same command again to finish."
PRUNE_INTERRUPTED = (
    "Rows deleted so far stay deleted; run the same command again to delete the rest and free the space."
)

WorkspaceName = Annotated[str, typer.Option("--workspace", "-w", help="Workspace to export or erase.")]


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Migrate the database to the newest schema. Sessions do this when they open."""
    from llmkit.persistence.addresses import DatabaseAddress
    from llmkit.persistence.migrate import upgrade

    settings = load_settings()
    found = upgrade(settings.database_url)
    before = "new" if found.revision is None else found.revision
    change = f"was at {before}, is at {found.head}" if found.revision != found.head else f"is already at {found.head}"
    typer.echo(f"{DatabaseAddress.parse(settings.database_url).label} {change}", err=True)


@db_app.command("stats")
def db_stats(as_json: AsJson = False) -> None:
    """Show the size of the store and its runs by workspace and status."""
    from llmkit.persistence.stats import store_stats

    journal = _open_journal(load_settings())
    stats = store_stats(journal.engine, journal.address)
    journal.close()
    if as_json:
        print_json(asdict(stats))
        return
    listing = make_table("workspace", "status", "runs")
    for workspace, statuses in stats.runs.items():
        for status, number in statuses.items():
            listing.add_row(workspace, status, f"{number:,}")
    print_rich(listing)
    rows = ", ".join(f"{number:,} {name}" for name, number in stats.rows.items())
    print_rich(f"{stats.bytes_on_disk / 1e6:,.1f} MB on disk; {rows}; runs from {stats.oldest_at_utc or '-'}")


@db_app.command("pauses")
def db_pauses(
    clear: Annotated[
        list[str] | None, typer.Option(help="End the pause of this route, endpoint/model; repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the routes that providers asked to leave alone, or end such a pause for all processes of this store."""
    from rich.markup import escape

    from llmkit.persistence.pauses import clear_pauses, list_pauses
    from llmkit.types import Route

    routes = [Route.parse(each) for each in clear or ()]
    with open_store(load_settings()) as journal:
        pauses = list_pauses(journal.engine, journal.address)
        unknown = {str(route) for route in routes} - {pause.route for pause in pauses}
        if unknown:
            raise LLMBadRequest(f"There is no pause of {', '.join(sorted(unknown))}; `llmkit db pauses` lists them")
        if routes:
            clear_pauses(journal.engine, journal.address, routes)
            pauses = list_pauses(journal.engine, journal.address)
    if as_json:
        print_json([asdict(pause) for pause in pauses])
        return
    if not pauses:
        typer.echo("No route is paused", err=True)
        return
    listing = make_table("route", "left alone for")
    for pause in pauses:
        listing.add_row(escape(escape_controls(pause.route)), f"{pause.remaining_s:,.0f} s")
    print_rich(listing)


@db_app.command("prune")
def db_prune(
    before: Annotated[
        datetime,
        typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="Delete runs created before this time (UTC)."),
    ],
    workspace: Annotated[
        str | None, typer.Option("--workspace", "-w", help="Only this workspace; default all.")
    ] = None,
    evaluations: Annotated[bool, typer.Option(help="Also delete evaluations that finished before then.")] = False,
) -> None:
    """Delete old runs with their attempts. Runs in progress are kept."""
    from llmkit.persistence import retention

    moment = before.replace(tzinfo=UTC)
    with handle_interruption(PRUNE_INTERRUPTED), open_store(load_settings()) as journal:
        where = journal.engine, journal.address
        deleted = retention.prune(*where, moment, workspace_id=workspace, evaluations=evaluations)
        typer.echo(_format_counts("Deleted", deleted), err=True)
        _free_space(journal)


@db_app.command("export")
def db_export(
    workspace: WorkspaceName,
    output: Annotated[Path | None, typer.Option(help="A new file; default standard output.")] = None,
) -> None:
    """Write every row of a workspace as JSON Lines, to a file with the same permissions as the database (0600)."""
    if output is not None and output.exists():
        raise LLMBadRequest(f"Cannot write {output}: File exists; name a new file in a folder of yours")
    interrupted = "The output is incomplete." if output is None else f"{output} is not written."
    with handle_interruption(interrupted), open_store(load_settings()) as journal:
        counts = (
            _export_to_stdout(journal, workspace) if output is None else _export_to_file(output, journal, workspace)
        )
    typer.echo(_format_counts("Wrote", counts), err=True)


def _export_to_stdout(journal: Journal, workspace: str) -> dict[str, int]:
    from llmkit.persistence.workspace_export import export_workspace

    try:
        counts = export_workspace(journal.engine, journal.address, workspace, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader closed the pipe
        raise
    except OSError as error:
        abandon_stdout()
        raise LLMBadRequest(f"Cannot write to standard output: {error.strerror}; the output is incomplete") from None
    return counts


def _export_to_file(output: Path, journal: Journal, workspace: str) -> dict[str, int]:
    """Write the export under its final name only once it is complete and on disk: an erasure may follow."""
    from llmkit.persistence.workspace_export import export_workspace

    partial = output.with_name(f"{output.name}.partial")
    try:
        try:
            # Remove what a killed export left, so that the new file gets its own private mode.
            partial.unlink(missing_ok=True)
            with os.fdopen(os.open(partial, PRIVATE_FILE, 0o600), "w", encoding="utf-8") as file:
                counts = export_workspace(journal.engine, journal.address, workspace, file)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(output)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise LLMBadRequest(f"Cannot write {output}: {error.strerror}; name a new file in a folder of yours") from None
    return counts


@db_app.command("import")
def db_import(
    file: Annotated[Path, typer.Argument(help="A file written by `llmkit db export`.")],
    workspace: Annotated[
        str | None,
        typer.Option("--workspace", "-w", help="Workspace that every row must be of; default that of the first row."),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Add to the workspace that the file names even if it exists.")
    ] = False,
) -> None:
    """Import a workspace into the database, for example on PostgreSQL. Importing the same file again adds nothing.

    Without --workspace, a file of a workspace that exists is refused unless --yes confirms it.
    """
    from llmkit.persistence.workspace_import import import_workspace

    if not file.is_file():
        raise LLMBadRequest(f"There is no file {file}; `llmkit db export` writes one")
    interrupted = "Either nothing was imported or all of it. Run the same command again to be sure."
    with handle_interruption(interrupted), closing(_open_migrated_journal(load_settings())) as journal:
        where = journal.engine, journal.address
        added, there = import_workspace(
            *where, _read_lines(file), file.name, workspace_id=workspace, may_exist=workspace is not None or yes
        )
    typer.echo(_format_counts("Added", added), err=True)
    if any(there.values()):
        typer.echo(_format_counts("Already there:", there), err=True)


def _read_lines(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as lines:
            yield from lines
    except UnicodeDecodeError:
        raise LLMBadRequest(f"{file} is not UTF-8 text. Nothing was imported.") from None
    except OSError as error:
        raise LLMBadRequest(f"{file} cannot be read: {error.strerror}. Nothing was imported.") from None


@db_app.command("erase")
def db_erase(
    workspace: WorkspaceName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
) -> None:
    """Delete every row and cached answer of a workspace."""
    from llmkit.persistence import retention

    if not yes:
        typer.confirm(f"Permanently delete all data of workspace {workspace!r}?", abort=True)
    settings = load_settings()
    with handle_interruption(f"Nothing is deleted. {ERASE_AGAIN}") as now, open_store(settings) as journal:
        # The acknowledgement of the last commit may be lost on the way, so this message must allow for both.
        now.text = f"Either no row or every row was deleted. {ERASE_AGAIN}"
        deleted = retention.erase_workspace(journal.engine, journal.address, workspace)
        now.text = f"All rows are deleted, but cached answers may remain. {ERASE_AGAIN}"
        typer.echo(_format_counts("Deleted", deleted), err=True)
        try:
            typer.echo(f"Deleted {_erase_cache(settings, workspace):,} cached answers", err=True)
        except LLMStoreError as error:
            # The file is compacted anyway: it would keep the deleted rows readable.
            _free_space(journal)
            raise LLMStoreError(
                f"The rows are deleted, but cached answers remain. {error} Then run the same command again."
            ) from None
        now.text = f"All rows and cached answers are deleted, but the database file may still hold them. {ERASE_AGAIN}"
        _free_space(journal)


def _free_space(journal: Journal) -> None:
    from llmkit.persistence import retention

    try:
        retention.compact(journal.engine, journal.address)
    except LLMStoreError as error:
        raise LLMStoreError(
            f"The rows are deleted, but their space is not freed yet. {error} Then run the same command again."
        ) from None


def _erase_cache(settings: LLMSettings, workspace: str) -> int:
    from llmkit.persistence.content_cache import DiskContentCache

    if not settings.cache_dir.exists():
        return 0
    limit = settings.cache_size_limit_mb * 1024 * 1024
    cache = DiskContentCache(settings.cache_dir, ttl_s=settings.cache_ttl_s, size_limit_bytes=limit)
    erased = cache.erase(workspace)
    cache.close()
    return erased


@contextmanager
def open_store(settings: LLMSettings) -> Iterator[Journal]:
    """Open the existing store, and close it afterwards.

    Raises:
        LLMStoreError: There is no database yet, or it cannot be opened.
    """
    with closing(_open_journal(settings)) as journal:
        yield journal


def _open_journal(settings: LLMSettings) -> Journal:
    """Open the existing store. A command that only reads must not create one."""
    from llmkit.persistence.addresses import DatabaseAddress

    address = DatabaseAddress.parse(settings.database_url)
    if address.path is not None and not address.path.exists():
        raise LLMStoreError(f"There is no database {address.label} yet; the first call of a session creates it")
    return _open_migrated_journal(settings)


def _open_migrated_journal(settings: LLMSettings) -> Journal:
    """Migrate the store to the newest schema, or create it, and open it."""
    from llmkit.persistence.journal import Journal
    from llmkit.persistence.migrate import upgrade

    upgrade(settings.database_url)
    return Journal(settings.database_url)


def _format_counts(verb: str, counts: dict[str, int]) -> str:
    return f"{verb} " + ", ".join(f"{number:,} {name}" for name, number in counts.items())
