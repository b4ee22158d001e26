"""A workspace moves between databases: what arrives is what left, to the byte, and what is no export is refused."""

from __future__ import annotations

import hashlib
import io
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmkit import Session
from llmkit.errors import LLMBadRequest, LLMError
from llmkit.evals import field_match
from llmkit.persistence import workspace_import as arrival
from llmkit.persistence.retention import TABLES, erase_workspace
from llmkit.persistence.stats import store_stats
from llmkit.persistence.workspace_export import export_workspace
from llmkit.persistence.workspace_import import import_workspace
from llmkit.testing import Fault, OllamaServer, Reply
from tests.cli.test_cli import run as llmkit
from tests.support.eval_fakes import sentiment_task
from tests.support.repositories import JournalHome
from tests.support.run_values import a_start

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUTE = "ollama/llama3.2"


@pytest.fixture
def lived_in(sqlite_url: str) -> Path:
    """A database with calls, failures, repairs, odd texts and an evaluation of one workspace, and a call of another."""
    replies: list[Reply | Fault] = [
        Reply('{"label": "positive"}'),
        Reply("no json"),
        Fault.status(400),
    ]
    with OllamaServer(Reply("ü 'quoted' \u2028 \U0001f600")) as server:
        options: dict[str, Any] = {"ollama_api_base": server.url, "database_url": sqlite_url, "max_retries": 0}
        with Session("lab", **options) as session:
            session.chat("plain", idempotency_key="k", metadata={"note": "NUL \0 and ü"})
            session.chat("plain")
            session.chat("NUL \0 in a prompt")
            server.script(replies)
            report = session.evaluate(sentiment_task(scorers=[field_match("label")]), [ROUTE], progress=False)
            assert report.has_failures
            with pytest.raises(LLMError):
                session.chat("refused", route="ollama/unknown", max_output_tokens=-1)
        with Session("other lab", **options) as session:
            server.script([Reply("x")])
            session.chat("plain")
    return Path(sqlite_url.removeprefix("sqlite:///"))


def _raw(path: Path) -> dict[str, str]:
    """A checksum of all rows of each table, with their storage types."""
    found = {}
    with closing(sqlite3.connect(path)) as database:
        for table in TABLES:
            kinds = ", ".join(f"{column.name}, typeof({column.name})" for column in table.columns)
            rows = sorted(map(repr, database.execute(f"SELECT {kinds} FROM {table.name}")))
            found[table.name] = hashlib.sha256("\n".join(rows).encode()).hexdigest()
    return found


def _move(command: tuple[str, ...], url: str) -> str:
    done = llmkit("db", *command, LLM_DATABASE_URL=url)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_workspace_goes_to_postgresql_and_back_to_the_byte(
    lived_in: Path, sqlite_url: str, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrival, "BATCH", 3)
    back = f"sqlite:///{tmp_path / 'back.db'}"
    for workspace in ("lab", "other lab"):
        names = [f"{workspace} {number}.jsonl" for number in range(3)]
        _move(("export", "-w", workspace, "--output", names[0]), sqlite_url)
        _move(("import", names[0]), postgres_url)
        _move(("export", "-w", workspace, "--output", names[1]), postgres_url)
        _move(("import", names[1]), back)
        _move(("export", "-w", workspace, "--output", names[2]), back)
        first, second, third = (sorted(Path(name).read_text("utf-8").splitlines()) for name in names)
        assert first == second == third
    assert _raw(tmp_path / "back.db") == _raw(lived_in)
    with Session("lab", database_url=postgres_url, cache_enabled=False) as session:
        assert session.chat("plain", idempotency_key="k", metadata={"note": "NUL \0 and ü"}).served_from == "replay"
        assert session.report("sentiment").counts["FAILED"] > 0


def test_the_same_file_again_adds_nothing(lived_in: Path, sqlite_url: str) -> None:
    _move(("export", "-w", "lab", "--output", "lab.jsonl"), sqlite_url)
    before = _raw(lived_in)
    told = _move(("import", "lab.jsonl"), sqlite_url)
    assert "Added 0 llm_runs, 0 llm_attempts, 0 eval_runs, 0 eval_results" in told
    assert "Already there: " in told
    assert _raw(lived_in) == before


@pytest.fixture
def home(database_url: str) -> Iterator[JournalHome]:
    with JournalHome(database_url) as opened:
        yield opened


def _exported(home: JournalHome) -> list[str]:
    file = io.StringIO()
    export_workspace(home.journal.engine, home.journal.address, "lab", file)
    return file.getvalue().splitlines()


def _edited(**changes: object) -> Any:
    return lambda line: json.dumps({**json.loads(line), **changes})


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda line: line[:-9], "file, line 2: not JSON"),
        (lambda line: "[]", "file, line 2: a row is a JSON object"),
        (_edited(table="users"), "file, line 2: this is no row of `llmkit db export`"),
        (_edited(colour="red"), "file, line 2: llm_runs has no column 'colour'"),
        (_edited(owner=None), "file, line 2: llm_runs needs a value of 'owner'"),
        (_edited(epoch="one"), "file, line 2: 'one' is no int"),
        (_edited(id="x"), "file, line 2: 'x'"),
        (_edited(created_at_utc="2026-01-01T00:00:00"), "file, line 2: .*a moment needs a time zone"),
        (_edited(status="LOST"), "file, lines 1 to 2: a row of llm_runs does not fit"),
        (_edited(epoch=2**70), "file, lines 1 to 2: .* cannot hold a value of llm_runs"),
    ],
)
def test_what_is_no_export_is_refused_by_its_line_and_nothing_of_it_is_kept(
    home: JournalHome, edit: Any, told: str
) -> None:
    for _ in range(2):
        home.start()
    first, second = _exported(home)
    where = home.journal.engine, home.journal.address
    erase_workspace(*where, "lab")
    with pytest.raises(LLMBadRequest, match=f"^{told}.*Nothing was imported"):
        import_workspace(*where, [first, edit(second)], "file")
    assert set(store_stats(*where).rows.values()) == {0}


def test_a_key_that_another_run_holds_is_refused(home: JournalHome) -> None:
    home.start(idempotency_key="k")
    (line,) = _exported(home)
    other = _edited(id=str(a_start().id))(line)
    where = home.journal.engine, home.journal.address
    with pytest.raises(LLMBadRequest, match="a key or a name of it is taken there"):
        import_workspace(*where, [other], "file")
    assert store_stats(*where).rows["llm_runs"] == 1


def test_a_file_that_is_not_there_makes_no_database(tmp_path: Path) -> None:
    done = llmkit("db", "import", "none.jsonl")
    assert done.returncode == 2
    assert "There is no file none.jsonl" in done.stderr
    assert list(tmp_path.glob("*.db")) == []
