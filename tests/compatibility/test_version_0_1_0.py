"""A store, a cache, a cassette and exports that version 0.1.0 wrote before its modules moved are read as before."""

from __future__ import annotations

import gzip
import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytest
from pydantic import BaseModel

from llmkit import Session
from llmkit.cli.main import app
from llmkit.errors import LLMStoreError
from llmkit.evals import Sample, Task, field_match
from llmkit.testing import OllamaServer

DATA = Path(__file__).parent / "version_0_1_0"
EXPECTED: dict[str, Any] = json.loads((DATA / "expected.json").read_text(encoding="utf-8"))
ROUTES = ["ollama/llama3.2", "ollama/qwen3"]


class Sentiment(BaseModel):
    label: Literal["positive", "negative"]


def sentiment_task() -> Task[Any]:
    samples = [
        Sample(id=f"s{number}", input=f"Text {number}", target={"label": "positive"}, group=f"g{number % 3}")
        for number in range(12)
    ]
    return Task(
        name="sentiment",
        dataset=samples,
        prompt="Text: {input}\nSentiment:",
        output_type=Sentiment,
        scorers=[field_match("label")],
    )


@pytest.fixture
def store(tmp_path: Path) -> str:
    path = tmp_path / "store.db"
    path.write_bytes(gzip.decompress((DATA / "store.db.gz").read_bytes()))
    return f"sqlite:///{path}"


@pytest.fixture
def server():
    """An Ollama with the same two models, whose requests are counted."""
    with OllamaServer(models=["llama3.2", "qwen3"]) as server:
        yield server


def summary_of(report: Any) -> list[dict[str, Any]]:
    rows = []
    for row in report.to_json()["summary"]:
        renamed = {"route": row.get("variant", row.get("route"))} | row
        rows.append({name: renamed[name] for name in EXPECTED["summary"][0]})
    return rows


def test_runs_and_their_tokens_are_read(store: str) -> None:
    with Session("before", database_url=store) as session:
        runs = session.runs(limit=10_000)
    figures = (len(runs), int(runs.input_tokens.sum()), int(runs.output_tokens.sum()))
    assert figures == (EXPECTED["runs"], EXPECTED["input_tokens"], EXPECTED["output_tokens"])


def test_a_key_replays_without_a_request(store: str, server: OllamaServer) -> None:
    with Session("before", database_url=store, ollama_api_base=server.url) as session:
        response = session.chat(
            "What is churn?", route=ROUTES[0], idempotency_key="report-7", temperature=0, seed=3, stop="END"
        )
    assert (response.text, server.call_count) == (EXPECTED["chat"], 0)


def test_the_cache_answers_without_a_request(store: str, server: OllamaServer, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    (folder / "cache.db").write_bytes(gzip.decompress((DATA / "cache.db.gz").read_bytes()))
    with closing(sqlite3.connect(folder / "cache.db")) as cache, cache:
        # The entries were written to live for 30 days, and this file must outlive them.
        cache.execute("UPDATE Cache SET expire_time = NULL")
    with Session("before", database_url=store, ollama_api_base=server.url, cache_dir=str(folder)) as session:
        response = session.chat("Cached question", route=ROUTES[0], system="Be brief")
        extracted = session.extract(Sentiment, "Great product", route=ROUTES[0])
    assert (response.text, extracted.label) == (EXPECTED["cached"], EXPECTED["extracted"])
    assert server.call_count == 0


def test_a_map_resumes_without_a_request(store: str, server: OllamaServer) -> None:
    column = pd.Series(["a", "b", "a"], name="text")
    with Session("before", database_url=store, ollama_api_base=server.url, cache_enabled=False) as session:
        mapped = session.map("Translate: {text}", column, name="words", route=ROUTES[0])
    assert (list(mapped.iloc[:, 0]), server.call_count) == (EXPECTED["map"], 0)


def test_a_report_has_the_same_figures(store: str) -> None:
    with Session("before", database_url=store) as session:
        assert_same(summary_of(session.report("first")))


def assert_same(rows: list[dict[str, Any]]) -> None:
    for row, expected in zip(rows, EXPECTED["summary"], strict=True):
        assert row == expected | {"mean": pytest.approx(expected["mean"])}


def test_an_evaluation_resumes_without_a_request(store: str, server: OllamaServer) -> None:
    with Session("before", database_url=store, ollama_api_base=server.url, cache_enabled=False) as session:
        report = session.evaluate(sentiment_task(), routes=ROUTES, name="first", epochs=2, progress=False)
    assert_same(summary_of(report))
    assert server.call_count == 0


def test_a_mended_target_of_an_old_evaluation_costs_no_request(store: str, server: OllamaServer) -> None:
    task = sentiment_task()
    first = task.load().samples[0]
    mended = replace(task, dataset=[replace(first, target={"label": "negative"}), *task.load().samples[1:]])
    with Session("before", database_url=store, ollama_api_base=server.url, cache_enabled=False) as session:
        report = session.evaluate(mended, routes=ROUTES, name="first", epochs=2, progress=False)
        again = session.evaluate(mended, routes=ROUTES, name="first", epochs=2, progress=False)
    assert server.call_count == 0
    assert report.work is not None
    assert again.work is not None
    assert (report.work.edited, report.work.rescored, again.work.rescored) == (1, 4, 0)


def test_a_cassette_replays() -> None:
    with Session("before", replay=DATA / "cassette.jsonl") as session:
        response = session.chat("What is churn?", route=ROUTES[0], temperature=0, seed=3, stop="END")
    assert response.text == EXPECTED["chat"]


def test_exports_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DATABASE_URL", f"sqlite:///{tmp_path / 'new.db'}")
    (tmp_path / "workspace.jsonl").write_bytes(gzip.decompress((DATA / "workspace.jsonl.gz").read_bytes()))
    assert not app(args=["db", "import", str(tmp_path / "workspace.jsonl")], standalone_mode=False)
    with Session("before") as session:
        assert_same(summary_of(session.report("first")))


def test_exported_results_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DATABASE_URL", f"sqlite:///{tmp_path / 'new.db'}")
    assert not app(args=["eval", "import", str(DATA / "results.jsonl"), "-w", "before"], standalone_mode=False)
    with Session("before") as session:
        means = [row["mean"] for row in summary_of(session.report("first"))]
    assert means == pytest.approx([row["mean"] for row in EXPECTED["summary"]])


def test_a_read_only_store_says_what_to_do(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = sqlite3.OperationalError("attempt to write a readonly database")
    refusal.sqlite_errorcode = sqlite3.SQLITE_READONLY

    def refuse(_cursor: object) -> None:
        raise refusal

    monkeypatch.setattr("llmkit.persistence.migrate._shape_file", refuse)
    with Session("before", database_url=store) as session, pytest.raises(LLMStoreError) as caught:
        session.runs()
    assert "set LLM_DATABASE_URL to the copy. An older llmkit wrote it (schema revision 0001)" in str(caught.value)
