"""Databases brought to head, once, by anybody; taken down and up again with their data; and refused when too new."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, create_engine, inspect, text

from llmkit.errors import LLMConfigurationError, LLMStoreError
from llmkit.persistence import migrate
from llmkit.persistence.addresses import DatabaseAddress, create_database_file
from llmkit.persistence.engines import make_engine, writing
from llmkit.persistence.eval_store import SqlEvalStore
from llmkit.persistence.migrate import SchemaStatus, current_state, downgrade, upgrade
from llmkit.persistence.models import METADATA
from tests.support.forked import FORKED
from tests.support.repositories import JournalHome
from tests.support.run_values import a_failure, a_start, a_success, an_eval_result, an_eval_run

if TYPE_CHECKING:
    from collections.abc import Callable

CHECKOUT = Path(__file__).parents[2]


async def fill(url: str) -> None:
    """Rows in every table, of every kind."""
    with JournalHome(url) as home:
        for number in range(20):
            start = a_start(idempotency_key=f"k{number}", request_preview=f"ünï {number}")
            await home.repo.create_started(start)
            if number % 3 == 0:
                await home.repo.mark_succeeded(a_success(start.id))
            elif number % 3 == 1:
                await home.repo.mark_failed(a_failure(start.id))
        store = SqlEvalStore(home.journal)
        run = await store.open_run(an_eval_run())
        for number in range(5):
            await store.save_result(an_eval_result(run.id, sample_id=f"s{number}"))


def in_database(url: str, work: Callable[[Connection], Any]) -> Any:
    address = DatabaseAddress.parse(url)
    engine = make_engine(address)
    try:
        with writing(engine, address) as connection:
            return work(connection)
    finally:
        engine.dispose()


def checksums(url: str) -> dict[str, str]:
    """One hash per table over all rows and columns."""

    def compute(connection: Connection) -> dict[str, str]:
        found = {}
        for table in METADATA.sorted_tables:
            rows = connection.execute(table.select().order_by(*table.primary_key.columns)).all()
            found[table.name] = hashlib.sha256(repr(rows).encode()).hexdigest()
        return found

    return in_database(url, compute)


def schema(url: str) -> dict[str, Any]:
    engine = create_engine(DatabaseAddress.parse(url).url)
    found = inspect(engine)
    described = {
        table: (
            [(column["name"], str(column["type"]), column["nullable"]) for column in found.get_columns(table)],
            sorted(index["name"] for index in found.get_indexes(table)),
        )
        for table in sorted(found.get_table_names())
    }
    engine.dispose()
    return described


def test_a_new_database_is_brought_to_head(new_database_url: str) -> None:
    before = upgrade(new_database_url)
    assert (before.revision, before.status) == (None, SchemaStatus.EMPTY)
    again = upgrade(new_database_url)
    assert (again.revision, again.status) == (again.head, SchemaStatus.CURRENT)
    assert current_state(new_database_url) == again


async def test_an_upgrade_at_head_changes_nothing(database_url: str) -> None:
    await fill(database_url)
    before = checksums(database_url)
    upgrade(database_url)
    assert checksums(database_url) == before


async def test_down_and_up_with_data_in_the_tables(database_url: str) -> None:
    """There is one revision so far, so down is to nothing; the loop takes in each later one."""
    await fill(database_url)
    final = schema(database_url)
    for revision in reversed(migrate._revisions()[:-1]):
        before = checksums(database_url)
        downgrade(database_url, revision)
        upgrade(database_url)
        assert checksums(database_url) == before
    downgrade(database_url, "base")
    assert set(schema(database_url)) == {"alembic_version"}
    upgrade(database_url)
    assert schema(database_url) == final
    await fill(database_url)


async def test_rows_survive_a_table_that_is_built_anew(database_url: str) -> None:
    """How SQLite alters a table: a copy, with the old one dropped. Its attempts must not go with it."""
    from alembic.migration import MigrationContext
    from alembic.operations import Operations

    await fill(database_url)
    before = checksums(database_url)
    with migrate.migration_connection(DatabaseAddress.parse(database_url)) as connection:
        operations = Operations(MigrationContext.configure(connection))
        with operations.batch_alter_table("llm_runs", recreate="auto") as batch:
            batch.alter_column("stage", new_column_name="step")
        with operations.batch_alter_table("llm_runs", recreate="auto") as batch:
            batch.alter_column("step", new_column_name="stage")
    assert checksums(database_url) == before


def test_no_drift_between_models_and_migrations(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from alembic import command

    with migrate.migration_connection(DatabaseAddress.parse(database_url)) as connection:
        config = migrate._alembic_config(DatabaseAddress.parse(database_url))
        config.attributes["connection"] = connection
        config.stdout = StringIO()  # alembic's own is the one that stood when it was first imported
        command.check(config)


def test_drift_would_be_noticed(database_url: str) -> None:
    from alembic import command
    from alembic.util.exc import AutogenerateDiffsDetected

    in_database(database_url, lambda connection: connection.execute(text("DROP INDEX uq_llm_runs_flight_key")))
    with migrate.migration_connection(DatabaseAddress.parse(database_url)) as connection:
        config = migrate._alembic_config(DatabaseAddress.parse(database_url))
        config.attributes["connection"] = connection
        with pytest.raises(AutogenerateDiffsDetected, match="uq_llm_runs_flight_key"):
            command.check(config)


@pytest.mark.slow
def test_the_alembic_command_works_from_the_checkout(new_database_url: str) -> None:
    environment = os.environ | {"LLM_DATABASE_URL": new_database_url}

    def alembic(*arguments: str) -> str:
        command = [sys.executable, "-m", "alembic", *arguments]
        return subprocess.run(command, cwd=CHECKOUT, env=environment, check=True, capture_output=True, text=True).stdout

    upgrade(new_database_url)
    assert "No new upgrade operations detected" in alembic("check")
    assert "(head)" in alembic("current")
    assert "CREATE TABLE llm_runs" in alembic("upgrade", "head", "--sql")


def test_the_head_is_the_highest_number() -> None:
    """`upgrade` knows it without loading Alembic."""
    from alembic.script import ScriptDirectory

    config = migrate._alembic_config(DatabaseAddress.parse("sqlite:///x.db"))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [migrate._revisions()[-1]]
    assert sorted(script.revision for script in scripts.walk_revisions()) == list(migrate._revisions())


def test_a_database_at_head_costs_no_alembic(sqlite_url: str) -> None:
    code = (
        "import sys; from llmkit.persistence.migrate import upgrade, current_state;"
        f"upgrade({sqlite_url!r}); current_state({sqlite_url!r});"
        "sys.exit('alembic' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_newer_database_is_refused_and_left_alone(database_url: str) -> None:
    in_database(
        database_url, lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    )
    assert current_state(database_url).status is SchemaStatus.UNKNOWN
    for change in (upgrade, lambda url: downgrade(url, "base")):
        with pytest.raises(LLMStoreError, match=r"schema revision 9999.*written by a newer llmkit.*Upgrade llmkit"):
            change(database_url)
    assert current_state(database_url).revision == "9999"
    assert "llm_runs" in schema(database_url)


def test_a_database_of_another_program_is_not_called_newer(database_url: str) -> None:
    in_database(
        database_url, lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = '3f2a9c'"))
    )
    with pytest.raises(LLMStoreError, match=r"schema revision 3f2a9c, .* belongs to another program\."):
        upgrade(database_url)


def test_a_database_without_its_revision_is_named(database_url: str) -> None:
    in_database(database_url, lambda connection: connection.execute(text("DELETE FROM alembic_version")))
    with pytest.raises(LLMStoreError, match="its schema revision was removed"):
        upgrade(database_url)


@pytest.mark.parametrize("with_log", [False, True])
def test_a_file_without_its_end_is_damaged_and_not_newer(sqlite_url: str, tmp_path: Path, with_log: bool) -> None:
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    with JournalHome(sqlite_url) as home:
        for _ in range(5):
            home.start()
        content, log = path.read_bytes(), path.with_name(f"{path.name}-wal").read_bytes()
    messages = set()
    for size in range(4096, len(content), 4096):
        cut = tmp_path / f"cut {size}.db"
        cut.write_bytes(content[:size])
        if with_log:
            cut.with_name(f"{cut.name}-wal").write_bytes(log)
        try:
            upgrade(f"sqlite:///{cut}")
        except LLMStoreError as error:
            messages.add(str(error).replace(str(cut), "CUT").partition(". ")[0])
    assert messages == {"The database CUT is damaged"}


def test_an_unknown_revision_cannot_be_asked_for(sqlite_url: str) -> None:
    with pytest.raises(LLMStoreError, match="no revision '7777'"):
        downgrade(sqlite_url, "7777")


def test_looking_creates_nothing(new_sqlite_url: str) -> None:
    assert current_state(new_sqlite_url).status is SchemaStatus.EMPTY
    assert not Path(new_sqlite_url.removeprefix("sqlite:///")).exists()


def test_a_database_of_somebody_else_keeps_its_tables(new_database_url: str) -> None:
    address = DatabaseAddress.parse(new_database_url)
    if address.path is not None:
        create_database_file(address.path)
    in_database(new_database_url, lambda connection: connection.execute(text("CREATE TABLE mine (x INTEGER)")))
    upgrade(new_database_url)
    assert {"mine", "llm_runs"} <= set(schema(new_database_url))


def test_missing_migrations_are_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(migrate, "PACKAGE", tmp_path / "llmkit")
    with pytest.raises(LLMConfigurationError, match="install it again"):
        migrate.migrations_folder()


def test_an_installed_package_carries_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inside = tmp_path / "llmkit" / "migrations"
    shutil.copytree(CHECKOUT / "migrations", inside, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(migrate, "PACKAGE", tmp_path / "llmkit")
    assert migrate.migrations_folder() == inside
    upgrade(f"sqlite:///{tmp_path / 'x.db'}")


def failing_upgrade(*_arguments: object) -> None:
    raise RuntimeError("a bug in a migration")


def test_a_migration_that_fails_leaves_nothing_half_done(
    new_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic import op

    with monkeypatch.context() as patch:
        # The last of the first revision's tables exist by then.
        patch.setattr(op, "f", failing_upgrade)
        patch.setattr(migrate, "_create_schema", lambda *_arguments: False)
        with pytest.raises(RuntimeError, match="a bug in a migration"):
            upgrade(new_database_url)
    assert schema(new_database_url) == {}
    upgrade(new_database_url)
    assert current_state(new_database_url).status is SchemaStatus.CURRENT


DYING_MIGRATION = """
import os
from alembic import op
create = op.create_index
op.create_index = lambda name, *rest, **named: os._exit(9) if "flight" in name else create(name, *rest, **named)
from llmkit.persistence import migrate
migrate._create_schema = lambda *_: False
migrate.upgrade({url!r})
"""
DYING_CREATION = """
import os
from llmkit.persistence import migrate
from llmkit.persistence import sqlite_driver as sqlite_files

class Connection(sqlite_files.sqlite3.Connection):
    def execute(self, sql, *rest):
        return os._exit(9) if "flight_key ON" in sql else super().execute(sql, *rest)

connect = sqlite_files.sqlite3.connect
sqlite_files.sqlite3.connect = lambda *given, **named: connect(*given, factory=Connection, **named)
migrate.upgrade({url!r})
"""


@pytest.mark.slow
def test_a_process_that_dies_in_the_middle_of_a_migration_leaves_nothing_half_done(new_database_url: str) -> None:
    die_and_go_on(DYING_MIGRATION, new_database_url)


@pytest.mark.slow
def test_a_process_that_dies_while_it_makes_a_new_file_leaves_nothing_half_done(new_sqlite_url: str) -> None:
    die_and_go_on(DYING_CREATION, new_sqlite_url)


def die_and_go_on(code: str, url: str) -> None:
    assert subprocess.run([sys.executable, "-c", code.format(url=url)], check=False).returncode == 9
    assert schema(url) == {}
    upgrade(url)
    assert current_state(url).status is SchemaStatus.CURRENT


def open_together(url: str, barrier: Any, outcomes: Any) -> None:
    try:
        barrier.wait(60)
        before = upgrade(url)
        with JournalHome(url) as home:
            home.start()
        outcomes.put(before.status.value)
    except Exception as error:  # noqa: BLE001 it is the outcome
        outcomes.put(f"{type(error).__name__}: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "existing"])
def test_sixteen_processes_that_open_a_database_at_once(new_database_url: str, is_new: bool) -> None:
    """None fails, whether the tables are missing or behind, and one of them migrates."""
    if not is_new:
        upgrade(new_database_url)
        downgrade(new_database_url, "0006")
    barrier, outcomes = FORKED.Barrier(16), FORKED.Queue()
    processes = [FORKED.Process(target=open_together, args=(new_database_url, barrier, outcomes)) for _ in range(16)]
    for process in processes:
        process.start()
    found = [outcomes.get(timeout=250) for _ in processes]
    for process in processes:
        process.join()
    assert set(found) <= {"empty" if is_new else "behind", "current"}, found
    with JournalHome(new_database_url) as home:
        assert len(home.runs()) == 16
    versions = in_database(
        new_database_url, lambda connection: connection.execute(text("SELECT version_num FROM alembic_version")).all()
    )
    assert len(versions) == 1


def test_a_migration_waits_for_a_reader(new_sqlite_url: str) -> None:
    """The switch to WAL wants the file alone for a moment, and SQLite's own busy timeout does not cover it."""
    import threading

    path = new_sqlite_url.removeprefix("sqlite:///")
    create_database_file(Path(path))
    with closing(sqlite3.connect(path, check_same_thread=False, isolation_level=None)) as reader:
        reader.execute("CREATE TABLE mine (x)")
        reader.execute("INSERT INTO mine VALUES (1)")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM mine").fetchall()
        release = threading.Timer(0.3, lambda: reader.execute("COMMIT"))
        release.start()
        upgrade(new_sqlite_url)
        release.join()
