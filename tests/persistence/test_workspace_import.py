"""A workspace moves between databases: what arrives is what left, to the byte, and what is no export is refused."""

from __future__ import annotations

import asyncio
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
from tests.support.run_values import a_start, a_success

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmkit.ports import RunStart

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


@pytest.mark.slow
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
    return _exported_of(home, "lab")


def _exported_of(home: JournalHome, workspace: str) -> list[str]:
    file = io.StringIO()
    export_workspace(home.journal.engine, home.journal.address, workspace, file)
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
        (_edited(epoch=2**70), "file, lines 1 to 2: .* cannot store a value of llm_runs"),
        (_edited(input_tokens=-1), "file, line 2: -1 is no count"),
        (_edited(cost_usd=float("inf")), "file, line 2: inf is no count, cost"),
        (_edited(latency_ms=float("nan")), "file, line 2: nan is no count, cost or time"),
        (_edited(response_model="a\ud800"), "file, line 2: 'a.*' has half of a surrogate pair"),
        (_edited(workspace_id="other"), "file, lines 1 to 2: a row of llm_runs is of workspace 'other', not of 'lab'"),
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
        import_workspace(*where, [other], "file", may_exist=True)
    assert store_stats(*where).rows["llm_runs"] == 1


@pytest.fixture
def victim(home: JournalHome) -> RunStart:
    """A run with an attempt in a workspace of somebody else."""
    start = a_start(workspace_id="victim", idempotency_key="k")

    async def answered() -> None:
        await home.repo.create_started(start)
        assert await home.repo.mark_succeeded(a_success(start.id))

    asyncio.run(answered())
    return start


def _refused(home: JournalHome, lines: list[str], message: str, **options: Any) -> None:
    where = home.journal.engine, home.journal.address
    before = store_stats(*where).rows
    with pytest.raises(LLMBadRequest, match=f"{message}.*Nothing was imported"):
        import_workspace(*where, lines, "file", **options)
    assert store_stats(*where).rows == before


def test_no_answer_is_planted_in_a_workspace_that_exists(home: JournalHome, victim: RunStart) -> None:
    home.start(idempotency_key="planted")
    planted = _edited(workspace_id="victim", id=str(a_start().id))(_exported(home)[0])
    _refused(home, [planted], "the file is of workspace 'victim', which exists")
    _refused(home, [planted], "is of workspace 'victim', not of 'lab'", workspace_id="lab")


def test_no_attempt_is_added_to_a_run_of_another_workspace(home: JournalHome, victim: RunStart) -> None:
    lines = _exported_of(home, "victim")
    run, attempt = lines
    edit = _edited(workspace_id="lab", number=2, input_tokens=10**9)
    mine = _edited(workspace_id="lab", id=str(a_start().id), idempotency_key=None)(run)
    _refused(home, [mine, edit(attempt)], "the run_id of a row of llm_attempts is that of another workspace")
    _refused(home, [edit(attempt)], "the run_id of a row of llm_attempts is that of another workspace")


@pytest.mark.parametrize("column", ["id", "source_run_id"])
def test_no_run_refers_to_one_of_another_workspace(home: JournalHome, victim: RunStart, column: str) -> None:
    home.start()
    crafted = _edited(**{"id": str(a_start().id), column: str(victim.id)})(_exported(home)[0])
    _refused(home, [crafted], f"the {column} of a row of llm_runs is that of another workspace", may_exist=True)


def test_a_workspace_that_exists_takes_rows_when_it_is_named_or_confirmed(home: JournalHome) -> None:
    home.start()
    where = home.journal.engine, home.journal.address
    for options in ({"workspace_id": "lab"}, {"may_exist": True}):
        new = _edited(id=str(a_start().id))(_exported(home)[0])
        added, _ = import_workspace(*where, [new], "file", **options)
        assert added["llm_runs"] == 1


def test_the_command_asks_for_a_confirmation_of_a_workspace_that_exists(sqlite_url: str, tmp_path: Path) -> None:
    with JournalHome(sqlite_url) as home:
        home.start()
        (line,) = _exported(home)
    Path("more.jsonl").write_text(_edited(id=str(a_start().id))(line), "utf-8")
    refused = llmkit("db", "import", "more.jsonl", LLM_DATABASE_URL=sqlite_url)
    assert refused.returncode == 2
    assert "--workspace lab" in refused.stderr
    assert "Added 1 llm_runs" in _move(("import", "more.jsonl", "--workspace", "lab"), sqlite_url)
    assert "Already there: 1 llm_runs" in _move(("import", "more.jsonl"), sqlite_url)


def test_a_file_that_is_not_there_makes_no_database(tmp_path: Path) -> None:
    done = llmkit("db", "import", "none.jsonl")
    assert done.returncode == 2
    assert "There is no file none.jsonl" in done.stderr
    assert list(tmp_path.glob("*.db")) == []
