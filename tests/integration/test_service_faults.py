"""Databases that fail under a session, and clocks that are set: a clear error or a recovery, and no hang."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from llmkit import LLMError, LLMInProgress, LLMStoreError, Session
from llmkit.calls.request_hash import prompt_sha256
from llmkit.persistence import journal
from llmkit.persistence.sqlite_driver import open_sqlite
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.settings import load_settings
from llmkit.testing import Fault, OllamaServer, Reply
from llmkit.testing.request_log import RecordedRequest
from llmkit.testing.scripted_client import ScriptedClient
from llmkit.testing.server_load import Load
from llmkit.types import LLMProfile, utc_now
from tests.support.databases import PostgresServer
from tests.support.gated_client import GatedClient
from tests.support.repositories import JournalHome
from tests.support.run_values import a_start
from tests.support.workers import HERE, Worker, ask

OLLAMA = "ollama/llama3.2"


@pytest.fixture
def ollama() -> Iterator[OllamaServer]:
    with OllamaServer("the answer") as server:
        yield server


def _session(url: str, server: OllamaServer, **settings: object) -> Session:
    return Session("lab", database_url=url, ollama_api_base=server.url, max_retries=0, **settings)


def _path(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


def test_a_database_deleted_between_two_calls_is_said_and_nothing_is_sent(
    sqlite_url: str, ollama: OllamaServer
) -> None:
    session = _session(sqlite_url, ollama)
    session.chat("one", route=OLLAMA)
    _path(sqlite_url).unlink()
    with pytest.raises(LLMStoreError, match="deleted or replaced"):
        session.chat("two", route=OLLAMA, idempotency_key="k")
    assert ollama.call_count == 1
    session.close()
    assert session.chat("two", route=OLLAMA, idempotency_key="k").billed
    session.close()


def test_an_answer_that_was_paid_when_the_database_went_is_in_the_error(sqlite_url: str) -> None:
    def delete_and_answer(_request: RecordedRequest) -> str:
        _path(sqlite_url).unlink()
        return "paid for"

    with OllamaServer(delete_and_answer) as server, _session(sqlite_url, server) as session:
        with pytest.raises(LLMStoreError, match="deleted or replaced") as caught:
            session.chat("q", route=OLLAMA)
        assert caught.value.response.text == "paid for"
        assert caught.value.run_id == caught.value.response.run_id
        assert [attempt.status for attempt in caught.value.attempts] == ["SUCCEEDED"]


def test_an_answer_paid_while_the_database_was_away_is_recorded_when_it_is_back(sqlite_url: str) -> None:
    path = _path(sqlite_url)
    aside = path.with_name("aside")

    def hide_and_answer(_request: RecordedRequest) -> str:
        path.rename(aside)
        return "paid for"

    with OllamaServer(hide_and_answer) as server, _session(sqlite_url, server, cache_enabled=False) as session:
        with pytest.raises(LLMStoreError):
            session.chat("q", route=OLLAMA, idempotency_key="k")
        aside.rename(path)
        again = session.chat("q", route=OLLAMA, idempotency_key="k")
        assert (again.text, again.served_from, server.call_count) == ("paid for", "replay", 1)
        assert list(session.runs()["status"]) == ["SUCCEEDED", "SUCCEEDED"]


def test_a_read_only_database_is_said_before_anything_is_sent(sqlite_url: str, ollama: OllamaServer) -> None:
    with _path(sqlite_url).open("r+b") as file:
        # https://sqlite.org/fileformat.html: a write version that is not known makes the file read-only, for root too.
        file.seek(18)
        file.write(b"\x03")
    with _session(sqlite_url, ollama) as session, pytest.raises(LLMStoreError, match="cannot be written"):
        session.chat("q", route=OLLAMA)
    assert ollama.call_count == 0


async def test_a_store_that_takes_no_writes_any_more_is_said_with_the_answer(postgres_url: str) -> None:
    """What a standby does that a client was moved to."""
    settings = load_settings(cache_enabled=False)
    client = GatedClient()
    with JournalHome(postgres_url) as home:
        service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=home.repo)
        call = asyncio.create_task(service.chat(ask("q", idempotency_key="k"), HERE))
        await client.arrived.wait()
        with home.journal.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            name = connection.exec_driver_sql("SELECT current_database()").scalar_one()
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        client.gate.set()
        with pytest.raises(LLMStoreError, match="read-only") as caught:
            await asyncio.wait_for(call, 60)
        assert caught.value.response.text == "ok"
        with pytest.raises(LLMStoreError, match="read-only"):
            await service.chat(ask("another"), HERE)
        assert len(client.calls) == 1


def test_a_restart_of_postgresql_in_the_middle_of_a_batch_loses_and_repeats_nothing(
    own_postgres: PostgresServer,
) -> None:
    calls, width = 60, 8
    with (
        OllamaServer("the answer", load=Load(latency_s=0.05)) as server,
        _session(own_postgres.url, server, concurrency_limit=width, cache_enabled=False) as session,
        ThreadPoolExecutor(width) as pool,
    ):
        session.chat("warm up", route=OLLAMA)
        answers = [pool.submit(session.chat, f"q{n}", route=OLLAMA, idempotency_key=f"k{n}") for n in range(calls)]
        while server.call_count < calls // 3:
            time.sleep(0.005)
        own_postgres.stop()
        assert not all(answer.done() for answer in answers)
        own_postgres.start()
        assert {answer.result(60).text for answer in answers} == {"the answer"}
        assert server.call_count == calls + 1
        assert set(session.runs()["status"]) == {"SUCCEEDED"}


def test_a_call_that_begins_while_postgresql_is_down_waits_for_it(own_postgres: PostgresServer) -> None:
    """Its first step is a look at its key, which is as patient as a write."""
    with (
        OllamaServer("the answer") as server,
        _session(own_postgres.url, server) as session,
        ThreadPoolExecutor(1) as pool,
    ):
        session.chat("warm up", route=OLLAMA)
        own_postgres.stop()
        answer = pool.submit(session.chat, "q", route=OLLAMA, idempotency_key="k")
        done, _ = wait([answer], timeout=0.5)
        assert not done
        own_postgres.start()
        assert answer.result(60).billed


# --- clocks ---------------------------------------------------------------------------------------------------------


class Clock:
    """The wall clock of this process, as far as llmkit asks for it; it can be set."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.offset = timedelta()
        for module in ("calls.recorder", "calls.call", "persistence.journal"):
            patch.setattr(f"llmkit.{module}.utc_now", lambda: utc_now() + self.offset)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize("hours", [-1, 1])
async def test_a_clock_that_is_set_during_a_call_changes_nothing(database_url: str, clock: Clock, hours: int) -> None:
    settings = load_settings(cache_enabled=False, abandoned_after_s=10.0)
    client = GatedClient()
    with JournalHome(database_url) as home:
        service = LLMService(router=LLMRouter(settings, client), settings=settings, runs=home.repo)
        call = asyncio.create_task(service.chat(ask("q", idempotency_key="k"), HERE))
        await client.arrived.wait()
        clock.offset = timedelta(hours=hours)
        with pytest.raises(LLMInProgress) as caught:
            await service.chat(ask("q", idempotency_key="k"), HERE)
        assert caught.value.age_s >= 0
        client.gate.set()
        answer = await asyncio.wait_for(call, 60)
        assert 0 <= answer.latency_ms < 60_000
        replay = await service.chat(ask("q", idempotency_key="k"), HERE)
        assert (replay.served_from, replay.source_run_id) == ("replay", answer.run_id)
        await home.journal.flush()
        assert [run["status"] for run in home.runs()] == ["SUCCEEDED", "SUCCEEDED"]


async def test_a_dead_process_from_before_the_clock_was_set_back_is_found_dead(database_url: str, clock: Clock) -> None:
    with OllamaServer(Fault.hang()) as server, JournalHome(database_url) as home:
        with Worker("batch", database=database_url, url=server.url, keys=["k"], concurrency=1) as worker:
            worker.go()
            assert server.wait_until_in_flight(1, 100)
        clock.offset = timedelta(hours=-1)
        settings = load_settings(cache_enabled=False)
        service = LLMService(router=LLMRouter(settings, ScriptedClient()), settings=settings, runs=home.repo)
        assert (await service.chat(ask("k", idempotency_key="k"), HERE)).billed
        assert {(run["status"], run["error_code"]) for run in home.runs()} == {
            ("FAILED", "abandoned"),
            ("SUCCEEDED", None),
        }


async def test_a_run_that_cannot_be_declared_dead_is_an_error_and_no_endless_loop(sqlite_url: str) -> None:
    """Its heartbeat was written by other hands, in a form that is read but never found again."""
    with JournalHome(sqlite_url) as home:
        asked = prompt_sha256(ask("q"), LLMProfile.BALANCED)
        await home.repo.create_started(a_start(idempotency_key="k", prompt_sha256=asked))
        with home.journal.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE llm_runs SET heartbeat_at_utc = '2020-01-01 00:00:00'")
        settings = load_settings(cache_enabled=False)
        service = LLMService(router=LLMRouter(settings, ScriptedClient()), settings=settings, runs=home.repo)
        with pytest.raises(LLMStoreError, match="try again"):
            await asyncio.wait_for(service.chat(ask("q", idempotency_key="k"), HERE), 10)


# --- sessions that are closed ---------------------------------------------------------------------------------------


def test_a_session_closed_under_a_call_leaves_no_key_blocked(database_url: str) -> None:
    with OllamaServer([Reply("warm"), Fault.hang(), Reply("again")]) as server:
        session = Session("lab", database_url=database_url, ollama_api_base=server.url)
        session.chat("warm up", route=OLLAMA)
        ended: list[BaseException] = []

        def call() -> None:
            try:
                session.chat("q", route=OLLAMA, idempotency_key="k")
            except BaseException as error:  # noqa: BLE001
                ended.append(error)

        caller = threading.Thread(target=call)
        caller.start()
        assert server.wait_until_in_flight(1, 100)
        session.close()
        caller.join(20)
        assert [type(error) for error in ended] == [LLMError]
        with _session(database_url, server) as later:
            assert later.chat("q", route=OLLAMA, idempotency_key="k").text == "again"
            runs = later.runs()
        assert list(runs["status"]) == ["SUCCEEDED", "FAILED", "SUCCEEDED"]


def test_a_cache_folder_that_is_deleted_costs_no_call(sqlite_url: str, ollama: OllamaServer) -> None:
    with _session(sqlite_url, ollama, cache_dir="the-cache") as session:
        assert session.chat("one", route=OLLAMA).billed
        shutil.rmtree("the-cache")
        assert session.chat("two", route=OLLAMA).text == "the answer"
        assert session.chat("two", route=OLLAMA).text == "the answer"


def test_an_unusable_cache_folder_stops_no_call_and_no_history(
    sqlite_url: str, ollama: OllamaServer, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with _session(sqlite_url, ollama, cache_dir=str(tmp_path / "cache")) as session:
        with pytest.warns(UserWarning, match=r"cache folder .* LLM_CACHE_DIR to another folder"):
            assert session.chat("one", route=OLLAMA).billed
        assert len(session.runs()) == 1
        assert int(session.usage()["calls"].sum()) == 1


def test_history_of_a_file_that_can_only_be_read_is_shown_with_a_warning(
    sqlite_url: str, ollama: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _session(sqlite_url, ollama) as session:
        session.chat("one", route=OLLAMA, idempotency_key="k")

    def open_for_reading(*arguments: Any) -> sqlite3.Connection:
        connection = open_sqlite(*arguments)
        connection.execute("PRAGMA query_only=ON")
        return connection

    monkeypatch.setattr(journal, "open_sqlite", open_for_reading)
    with _session(sqlite_url, ollama) as session:
        assert len(session.runs()) == 1
        assert session.chat("one", route=OLLAMA, idempotency_key="k").served_from == "replay"
        with pytest.warns(
            UserWarning, match=r"1 answers that cost nothing could not be recorded\. .* cannot be written"
        ):
            assert len(session.runs()) == 1
        assert int(session.usage()["calls"].sum()) == 1
