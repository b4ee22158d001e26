"""`llmkit db`: the store of runs."""

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

from llmkit.cli.output import AsJson, abandon_stdout, interruptible, print_json, print_rich, table
from llmkit.errors import LLMBadRequest, LLMStoreError
from llmkit.settings import LLMSettings, load_settings

if TYPE_CHECKING:
    from llmkit.persistence.journal import Journal

__all__ = ["db_app", "open_store"]

db_app = typer.Typer(help="The store of runs: bring it up to date, look at its size, clean it.", no_args_is_help=True)

PRIVATE_FILE = os.O_CREAT | os.O_EXCL | os.O_WRONLY
ERASE_AGAIN = "The same command does the rest."
PRUNE_INTERRUPTED = (
    "What is deleted until now stays deleted; the same command deletes the rest and gives its space back."
)

Named = Annotated[str, typer.Option("--workspace", "-w", help="Whose rows.")]


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Bring the database to the newest schema; sessions do it by themselves when they open."""
    from llmkit.persistence.addresses import DatabaseAddress
    from llmkit.persistence.migrate import upgrade

    settings = load_settings()
    found = upgrade(settings.database_url)
    before = "new" if found.revision is None else found.revision
    change = f"was at {before}, is at {found.head}" if found.revision != found.head else f"is at {found.head} already"
    typer.echo(f"{DatabaseAddress.parse(settings.database_url).label} {change}", err=True)


@db_app.command("stats")
def db_stats(as_json: AsJson = False) -> None:
    """Say how large the store is and what is in it, by workspace and status."""
    from llmkit.persistence.stats import store_stats

    journal = _journal(load_settings())
    stats = store_stats(journal.engine, journal.address)
    journal.close()
    if as_json:
        print_json(asdict(stats))
        return
    shown = table("workspace", "status", "runs")
    for workspace, statuses in stats.runs.items():
        for status, number in statuses.items():
            shown.add_row(workspace, status, f"{number:,}")
    print_rich(shown)
    rows = ", ".join(f"{number:,} {name}" for name, number in stats.rows.items())
    print_rich(f"{stats.bytes_on_disk / 1e6:,.1f} MB on disk; {rows}; runs from {stats.oldest_at_utc or '-'}")


@db_app.command("prune")
def db_prune(
    before: Annotated[datetime, typer.Option(formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"], help="A moment in UTC.")],
    workspace: Annotated[str | None, typer.Option("--workspace", "-w", help="Only this one; default all.")] = None,
    evaluations: Annotated[bool, typer.Option(help="Also whole evaluations that were finished before.")] = False,
) -> None:
    """Delete the runs that were created before a moment, with their attempts. What is under way stays."""
    from llmkit.persistence import retention

    moment = before.replace(tzinfo=UTC)
    with interruptible(PRUNE_INTERRUPTED), open_store(load_settings()) as journal:
        where = journal.engine, journal.address
        gone = retention.prune(*where, moment, workspace_id=workspace, evaluations=evaluations)
        typer.echo(_told("Deleted", gone), err=True)
        _give_back_space(journal)


@db_app.command("export")
def db_export(
    workspace: Named,
    output: Annotated[
        Path | None, typer.Option(help="A file that does not exist yet; default standard output.")
    ] = None,
) -> None:
    """Write every row of a workspace, one JSON object a line; a file that only its owner can read, as the database."""
    if output is not None and output.exists():
        raise LLMBadRequest(f"Cannot write {output}: File exists; name a new file in a folder of yours")
    interrupted = "What came out is not whole." if output is None else f"{output} is not written."
    with interruptible(interrupted), open_store(load_settings()) as journal:
        counts = _export_to_stdout(journal, workspace) if output is None else _export_to(output, journal, workspace)
    typer.echo(_told("Wrote", counts), err=True)


def _export_to_stdout(journal: Journal, workspace: str) -> dict[str, int]:
    from llmkit.persistence.workspace_export import export_workspace

    try:
        counts = export_workspace(journal.engine, journal.address, workspace, sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has read enough
        raise
    except OSError as error:
        abandon_stdout()
        raise LLMBadRequest(f"Cannot write to standard output: {error.strerror}; what came out is not whole") from None
    return counts


def _export_to(output: Path, journal: Journal, workspace: str) -> dict[str, int]:
    """Under the file's own name only when it is whole and on disk: an erasure may follow."""
    from llmkit.persistence.workspace_export import export_workspace

    partial = output.with_name(f"{output.name}.partial")
    try:
        try:
            # As private as the database, whatever an earlier export that was killed has left there.
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
def db_import(file: Annotated[Path, typer.Argument(help="What `llmkit db export` wrote.")]) -> None:
    """Read a workspace from a file into the database, such as one on PostgreSQL. The same file again adds nothing."""
    from llmkit.persistence.workspace_import import import_workspace

    if not file.is_file():
        raise LLMBadRequest(f"There is no file {file}; `llmkit db export` writes one")
    interrupted = "Nothing is imported, or in the last moment all of it. The same command does the rest."
    with interruptible(interrupted), closing(_brought_to_head(load_settings())) as journal:
        added, there = import_workspace(journal.engine, journal.address, _lines_of(file), file.name)
    typer.echo(_told("Added", added), err=True)
    if any(there.values()):
        typer.echo(_told("Already there:", there), err=True)


def _lines_of(file: Path) -> Iterator[str]:
    try:
        with file.open(encoding="utf-8") as lines:
            yield from lines
    except UnicodeDecodeError:
        raise LLMBadRequest(f"{file} is not UTF-8 text. Nothing was imported.") from None
    except OSError as error:
        raise LLMBadRequest(f"{file} cannot be read: {error.strerror}. Nothing was imported.") from None


@db_app.command("erase")
def db_erase(
    workspace: Named,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete every row and every cached answer of a workspace, for good."""
    from llmkit.persistence import retention

    if not yes:
        typer.confirm(f"Delete everything of workspace {workspace!r} for good?", abort=True)
    settings = load_settings()
    with interruptible(f"Nothing is deleted. {ERASE_AGAIN}") as now, open_store(settings) as journal:
        # The word of a database about its last commit can be lost on the way.
        now.said = f"Nothing is deleted, or in the last moment all rows. {ERASE_AGAIN}"
        gone = retention.erase_workspace(journal.engine, journal.address, workspace)
        now.said = f"All rows are deleted, cached answers perhaps not. {ERASE_AGAIN}"
        typer.echo(_told("Deleted", gone), err=True)
        typer.echo(f"Deleted {_erase_cache(settings, workspace):,} cached answers", err=True)
        now.said = f"All rows and cached answers are deleted, but the database file may still hold them. {ERASE_AGAIN}"
        _give_back_space(journal)


def _give_back_space(journal: Journal) -> None:
    from llmkit.persistence import retention

    try:
        retention.compact(journal.engine, journal.address)
    except LLMStoreError as error:
        raise LLMStoreError(
            f"These rows are deleted, but their space is not given back yet. {error} "
            "The same command then does the rest."
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
    """The store as it is, closed afterwards; raises as `llmkit db stats` when there is none."""
    with closing(_journal(settings)) as journal:
        yield journal


def _journal(settings: LLMSettings) -> Journal:
    """The store as it is; a new one is not made for somebody who only wants to look."""
    from llmkit.persistence.addresses import DatabaseAddress

    address = DatabaseAddress.parse(settings.database_url)
    if address.path is not None and not address.path.exists():
        raise LLMStoreError(f"There is no database {address.label} yet; the first call of a session makes it")
    return _brought_to_head(settings)


def _brought_to_head(settings: LLMSettings) -> Journal:
    """The store, made where there is none."""
    from llmkit.persistence.journal import Journal
    from llmkit.persistence.migrate import upgrade

    upgrade(settings.database_url)
    return Journal(settings.database_url)


def _told(verb: str, counts: dict[str, int]) -> str:
    return f"{verb} " + ", ".join(f"{number:,} {name}" for name, number in counts.items())
