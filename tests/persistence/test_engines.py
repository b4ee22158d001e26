"""Addresses, and what a connection is told before its first statement."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from llmkit.errors import LLMConfigurationError, LLMStoreError
from llmkit.persistence.addresses import DatabaseAddress, create_database_file
from llmkit.persistence.engines import MOST_SERVER_CONNECTIONS, make_async_engine, make_engine, reading, writing
from llmkit.persistence.journal import Journal
from llmkit.persistence.migrate import upgrade

SECRET = "s3cr3t/pass word"


async def test_a_process_has_at_most_four_connections_to_a_server(postgres_url: str) -> None:
    """However many calls read and write at once: PostgreSQL allows 100 by default, for all workers together."""
    count = text(
        "SELECT count(*), pg_sleep(0.02) FROM pg_stat_activity "
        "WHERE datname = current_database() AND application_name = 'llmkit'"
    )
    with closing(Journal(postgres_url)) as journal:
        reads = [journal.read(lambda connection: connection.execute(count).scalar_one()) for _ in range(24)]
        found, _ = await asyncio.gather(asyncio.gather(*reads), journal.flush())
    assert 2 <= max(found) <= MOST_SERVER_CONNECTIONS == 4


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
def test_every_way_to_write_postgresql(scheme: str) -> None:
    address = DatabaseAddress.parse(f"{scheme}://ada:pw@db.example:5433/lab")
    assert address.url.drivername == "postgresql+psycopg"
    assert (address.path, address.label) == (None, "PostgreSQL at db.example/lab")


def test_a_relative_file_is_where_the_process_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    address = DatabaseAddress.parse("sqlite:///runs.db")
    monkeypatch.chdir("/")
    assert address.path == tmp_path / "runs.db"
    assert address.label == str(tmp_path / "runs.db")


@pytest.mark.parametrize(
    "url",
    ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "sqlite://file.db", "sqlite://host/file.db", "nonsense", "://"],
)
def test_other_urls_are_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(LLMConfigurationError, match="LLM_DATABASE_URL") as caught:
        DatabaseAddress.parse(url)
    assert "use sqlite:///llmkit.db" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["sqlite:///runs.db?mode=ro", "sqlite:///what?.db", "sqlite:////a/b.db?", "sqlite:///?x"]
)
def test_a_question_mark_in_an_sqlite_url_is_rejected_by_name(url: str) -> None:
    with pytest.raises(LLMConfigurationError, match=r"question mark: queries such as \?mode=ro are not supported"):
        DatabaseAddress.parse(url)


@pytest.mark.parametrize("password", ["s3cr@t-end", "@t-end", "a@b@t-end", "p/@t-end", "p:@t-end"])
def test_a_bare_at_sign_in_a_password_is_rejected_and_nothing_of_it_shown(password: str) -> None:
    with pytest.raises(LLMConfigurationError, match="Write an @ in the user or password as %40") as caught:
        DatabaseAddress.parse(f"postgresql://ada:{password}@db.test/lab")
    assert "t-end" not in str(caught.value)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(alphabet=st.characters(codec="ascii", categories=["L", "N", "P"]), min_size=6))
def test_no_password_in_any_name_or_message(password: str) -> None:
    from urllib.parse import quote

    url = f"postgresql://u:{quote(password + 'Zq9', safe='')}@127.0.0.1:1/x"
    address = DatabaseAddress.parse(url)
    assert "Zq9" not in repr(address) + address.label


def test_a_refused_connection_names_no_password() -> None:
    with pytest.raises(LLMStoreError, match="does not answer") as caught:
        upgrade(f"postgresql://ada:{SECRET.replace('/', '%2F').replace(' ', '%20')}@127.0.0.1:1/lab")
    assert "s3cr3t" not in str(caught.value)
    assert "PostgreSQL at 127.0.0.1/lab" in str(caught.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "psycopg", None)
    for make in (make_engine, make_async_engine):
        with pytest.raises(LLMConfigurationError, match=r"pip install 'llmkit-research\[postgres\]'"):
            make(DatabaseAddress.parse("postgresql://h/x"))


def _pragmas(connection, *names: str) -> list[object]:
    return [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names]


def test_a_new_file_is_private_and_set_up(new_sqlite_url: str) -> None:
    upgrade(new_sqlite_url)
    address = DatabaseAddress.parse(new_sqlite_url)
    engine = make_engine(address)
    with writing(engine, address) as connection:
        found = _pragmas(connection, "journal_mode", "synchronous", "foreign_keys", "page_size", "busy_timeout")
        assert found == ["wal", 2, 1, 16_384, 30_000]
        connection.exec_driver_sql("DELETE FROM llm_runs")
        assert address.path is not None
        modes = {stat.S_IMODE(path.stat().st_mode) for path in address.path.parent.glob("new.db*")}
    assert modes == {0o600}, "the log beside the file holds the same data"
    engine.dispose()


async def test_async_connections_are_set_up_too(sqlite_url: str) -> None:
    engine = make_async_engine(DatabaseAddress.parse(sqlite_url))
    async with engine.connect() as connection:
        found = await connection.run_sync(lambda each: _pragmas(each, "synchronous", "foreign_keys"))
    await engine.dispose()
    assert found == [2, 1]


def test_names_with_odd_characters(tmp_path: Path) -> None:
    path = tmp_path / "my runs #1 100%?.db"
    address = DatabaseAddress.of_file(path)
    create_database_file(path)
    engine = make_engine(address)
    with writing(engine, address) as connection:
        connection.exec_driver_sql("CREATE TABLE t (x)")
    engine.dispose()
    with closing(sqlite3.connect(path)) as found:
        assert found.execute("SELECT count(*) FROM t").fetchone() == (0,)


def test_an_engine_does_not_create_a_file(new_sqlite_url: str) -> None:
    address = DatabaseAddress.parse(new_sqlite_url)
    engine = make_engine(address)
    with pytest.raises(LLMStoreError, match="does not exist"), reading(engine, address):
        pass
    assert address.path is not None
    assert not address.path.exists()


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.db"
    path.write_text("mine")
    path.chmod(0o644)
    create_database_file(path)
    assert path.read_text() == "mine"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(LLMStoreError, match=f"the folder {tmp_path / 'no'} does not exist"):
        upgrade(f"sqlite:///{tmp_path / 'no' / 'x.db'}")


def test_a_folder_where_a_file_should_be(tmp_path: Path) -> None:
    with pytest.raises(LLMStoreError, match="it is a folder"):
        upgrade(f"sqlite:///{tmp_path}")
