"""Costs on the command line: what a price file changes, and a budget that is kept by your own price."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from llmkit import LLMEvaluationError, Session
from llmkit.cli.main import app
from llmkit.evals import Budget, Sample, Task, field_match
from llmkit.testing import OllamaServer, Reply


class Label(BaseModel):
    label: str


TASK = Task(
    name="labels",
    dataset=[Sample(f"text {i}", "x") for i in range(10)],
    prompt="{input}",
    output_type=Label,
    scorers=[field_match("label")],
    parameters={"max_output_tokens": 10},
)
PLANNED = """
from pydantic import BaseModel
from llmkit.evals import Sample, Task


class Label(BaseModel):
    label: str


task = Task(name="plan", dataset=[Sample(f"text {i}", "x") for i in range(10)], prompt="{input}", output_type=Label)
"""
OWN = "endpoint,model,input_usd,output_usd\nollama,*,1000,1000\n"


def cost(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["cost", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    monkeypatch.setenv("LLM_DATABASE_URL", f"sqlite:///{tmp_path / 's.db'}")
    (tmp_path / "own.csv").write_text(OWN)
    reply = Reply('{"label": "x"}', input_tokens=100, output_tokens=10)
    with OllamaServer(reply) as server, Session("w", ollama_api_base=server.url) as opened:
        yield opened


def test_costs_follow_a_price_file(session: Session, tmp_path: Path) -> None:
    session.chat("one", route="ollama/llama3.2", stage="a")
    session.chat("one", route="ollama/llama3.2", stage="b")
    assert json.loads(cost("price", "--json")) == {"requests": 1, "cost_usd": "0", "unknown": {}}
    listed = json.loads(cost("prices", "--import", str(tmp_path / "own.csv"), "--endpoint", "ollama", "--json"))
    assert [(row["model"], row["input_usd"], row["source"]) for row in listed] == [("*", "1000", "own.csv")]
    assert json.loads(cost("price", "--reprice", "--json"))["cost_usd"] == "0.11"
    cost("aggregate")
    days = json.loads(cost("show", "--by", "stage", "--json"))
    assert [(row["stage"], row["requests"], row["cost_usd"], row["served_calls"]) for row in days] == [
        ("a", 1, "0.11", 1),
        ("b", 0, "0", 1),
    ]
    assert session.usage()["billed_cost_usd"].to_list() == [0.11]
    assert cost("price") == "Priced 0 requests: $0.000000\n"


def test_an_aggregation_ends_the_calls_of_a_killed_process(session: Session, tmp_path: Path) -> None:
    session.chat("one", route="ollama/llama3.2")
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection, connection:
        connection.execute("UPDATE llm_runs SET status = 'STARTED', owner = 'gone|1|1'")
        connection.execute("UPDATE llm_runs SET heartbeat_at_utc = '2026-01-01 00:00:00.000000'")
    assert json.loads(cost("aggregate", "--json"))["started"] == 0
    assert session.runs()[["status", "error_code"]].to_numpy().tolist() == [["FAILED", "abandoned"]]


def test_a_budget_is_kept_by_your_own_price(session: Session, tmp_path: Path) -> None:
    session.chat("one", route="ollama/llama3.2")
    cost("prices", "--import", str(tmp_path / "own.csv"))
    options = {"budget": Budget(max_cost_usd=0.6), "progress": False, "concurrency": 1, "warm_up": False}
    report = session.evaluate(TASK, ["ollama/llama3.2"], **options)
    assert report.budget.stopped_by == "cost"
    assert 0 < report.counts["SUCCEEDED"] <= 5
    assert report.budget.cost_usd == pytest.approx(0.11 * report.counts["SUCCEEDED"])


def test_a_plan_counts_by_your_own_price(session: Session, tmp_path: Path) -> None:
    session.evaluate(TASK, ["ollama/llama3.2"], limit=1, progress=False)
    cost("prices", "--import", str(tmp_path / "own.csv"))
    (tmp_path / "t.py").write_text(PLANNED)
    done = CliRunner().invoke(
        app,
        [
            "eval",
            "plan",
            str(tmp_path / "t.py"),
            "--routes",
            "ollama/llama3.2",
            "--history",
            "labels",
            "--json",
            "-w",
            "w",
        ],
    )
    assert json.loads(done.stdout)["routes"][0]["cost_usd"] == pytest.approx(10 * 0.11)


def test_an_unknown_price_is_refused_before_anything_is_sent(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LLMEvaluationError, match="llmkit cost prices --import"):
        session.evaluate(TASK, ["gemini/unheard-of"], budget=Budget(max_cost_usd=1.0), progress=False)
    assert session.runs().empty


def test_bad_options_are_one_line(session: Session, tmp_path: Path) -> None:
    session.chat("one", route="ollama/llama3.2")
    for arguments in (["show", "--by", "colour"], ["prices", "--import", str(tmp_path / "absent.csv")]):
        assert CliRunner().invoke(app, ["cost", *arguments]).exit_code != 0
