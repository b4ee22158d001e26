"""Answers of any type: requested, stored, scored, scored again, exported and shown as what they are."""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
from pydantic import Field, field_validator
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

from llmkit import LLMEvaluationError, Session
from llmkit.evals import (
    EvalReport,
    Sample,
    Task,
    date_tolerance,
    exact_match,
    field_match,
    numeric_tolerance,
    regex_match,
    set_f1,
    text_match,
)
from llmkit.testing import OllamaServer, Reply

ROUTE = "ollama/llama3.2"


@dataclass
class Ticket:
    """A plain dataclass with a part that is a dataclass."""

    number: int
    due: date
    place: Place


@dataclass
class Place:
    """The part."""

    city: str


class Line(TypedDict):
    """A TypedDict."""

    item: str
    pieces: int


class Mood(Enum):
    """An enum."""

    GOOD = "good"
    BAD = "bad"


@pydantic_dataclass
class Amount:
    """A Pydantic dataclass with an alias and a validator."""

    euros: float = Field(alias="total")

    @field_validator("euros", mode="before")
    @classmethod
    def read(cls, value: Any) -> Any:
        return value.removesuffix(" EUR") if isinstance(value, str) else value


class Case(NamedTuple):
    """A type, the answer of a model, and the target that it equals."""

    kind: Any
    answer: str
    value: Any
    target: Any
    shown: str


TICKET = {"number": 7, "due": "2026-03-01", "place": {"city": "Rome"}}
CASES = {
    "str": Case(str, "It is {red}.", "It is {red}.", "It is {red}.", "It is {red}."),
    "int": Case(int, '{"response": 72}', 72, 72, "72"),
    "float": Case(float, '{"response": 1.5}', 1.5, 1.5, "1.5"),
    "bool": Case(bool, '{"response": true}', True, True, "true"),
    "list": Case(list[str], '{"response": ["a", "b"]}', ["a", "b"], ["a", "b"], '["a","b"]'),
    "union": Case(int | str, '{"response": "many"}', "many", "many", "many"),
    "literal": Case(Literal["yes", "no"], '{"response": "yes"}', "yes", "yes", "yes"),
    "date": Case(date, '{"response": "2026-03-01"}', date(2026, 3, 1), "2026-03-01", "2026-03-01"),
    "enum": Case(Mood, '{"response": "good"}', Mood.GOOD, "good", "good"),
    "dict": Case(dict[str, int], '{"response": {"a": 1}}', {"a": 1}, {"a": 1}, '{"a":1}'),
    "dict of decimals": Case(
        dict[str, Decimal], '{"response": {"a": "1.50"}}', {"a": Decimal("1.5")}, {"a": "1.5"}, ""
    ),
    "none": Case(int | None, '{"response": null}', None, None, "null"),
    "dataclass": Case(Ticket, json.dumps(TICKET), Ticket(7, date(2026, 3, 1), Place("Rome")), TICKET, ""),
    "typed dict": Case(Line, '{"item": "nut", "pieces": 3}', {"item": "nut", "pieces": 3}, {"item": "nut"}, ""),
    "pydantic dataclass": Case(Amount, '{"total": "8 EUR"}', Amount(total=8), {"total": "8 EUR"}, '{"total":8.0}'),
}


@pytest.fixture(scope="module")
def server() -> Iterator[OllamaServer]:
    with OllamaServer() as running:
        yield running


@pytest.fixture(scope="module")
def session(server: OllamaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("answer-types")
    settings = {"database_url": f"sqlite:///{folder}/llm.db", "cache_dir": f"{folder}/cache"}
    with Session("w", ollama_api_base=server.url, **settings) as opened:
        yield opened


def evaluate(session: Session, kind: Any, target: Any, scorers: list[Any], name: str) -> EvalReport:
    task = Task(name="t", dataset=[Sample("x", target, id="a")], prompt="{input}", output_type=kind, scorers=scorers)
    return session.evaluate(task, [ROUTE], name=name, progress=False, warm_up=False)


@pytest.mark.parametrize("name", CASES)
def test_an_answer_of_any_type_is_scored_stored_and_scored_again(
    session: Session, server: OllamaServer, name: str
) -> None:
    case, seen = CASES[name], []

    def keep(output: Any, _sample: Sample) -> bool:
        seen.append(output)
        return output == case.value

    def again(_output: Any, _sample: Sample) -> bool:
        return True

    server.script([Reply(case.answer)])
    before = len(server.calls)
    evaluate(session, case.kind, case.target, [keep], name)
    compare = [] if case.target is None or name == "typed dict" else [exact_match(), field_match()]
    fields = [field_match("item", name="item")] if name == "typed dict" else []
    fields += [field_match("due", "place.city", name="parts")] if name == "dataclass" else []
    row = evaluate(session, case.kind, case.target, [keep, again, *compare, *fields], name).samples().iloc[0]
    assert len(server.calls) == before + 1
    assert seen == [case.value] * 2
    assert type(seen[0]) is type(seen[1]) is type(case.value)
    columns = [column for column in row.index if column.startswith("score_") and column != "score_details"]
    assert {column: row[column] for column in columns} == dict.fromkeys(columns, 1.0)
    assert row["output"] == (case.shown or row["output"])


def test_free_text_is_requested_without_json(session: Session, server: OllamaServer) -> None:
    server.script([Reply("Paris, I think.")])
    report = evaluate(session, str, "paris", [regex_match("paris", whole=False, ignore_case=True)], "free text")
    assert "format" not in json.loads(server.calls[-1].body)
    row = report.samples().iloc[0]
    assert (row["output"], row["output_mode"], row["score_regex_match"]) == ("Paris, I think.", "text", 1.0)


def test_an_empty_free_text_is_a_failed_sample(session: Session, server: OllamaServer) -> None:
    server.script([Reply("")])
    row = evaluate(session, str, "paris", [text_match()], "empty text").samples().iloc[0]
    assert (row["status"], row["error_code"]) == ("FAILED", "empty_reply")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_answers_without_fields_survive_export_and_import(
    session: Session, server: OllamaServer, tmp_path: Path, suffix: str
) -> None:
    server.script([Reply('{"response": ["a", "b"]}')])
    name = f"export {suffix}"
    before = evaluate(session, list[str], ["b", "a"], [set_f1()], name)
    page = before.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    found = re.search(r'id="data">([^<]+)<', page)
    assert found is not None
    (case,) = json.loads(gzip.decompress(b64decode(found[1])))["cases"]
    assert (case["target"], case["results"][0]["values"]) == (['["b", "a"]'], ['["a", "b"]'])
    before.export(tmp_path / f"run.{suffix}")
    session.import_run(tmp_path / f"run.{suffix}", name=f"{name} again")
    calls = len(server.calls)
    after = evaluate(session, list[str], ["b", "a"], [set_f1(), exact_match()], f"{name} again")
    assert len(server.calls) == calls
    assert after.samples()["score_exact_match"].tolist() == [0.0]
    assert after.samples()["output"].tolist() == before.samples()["output"].tolist()


@pytest.mark.parametrize(
    ("kind", "scorer", "remedy"),
    [
        (str, set_f1(), "use field_match or text_match"),
        (bool, numeric_tolerance(absolute=1), "use field_match or exact_match"),
        (int, date_tolerance(), "use field_match or exact_match"),
        (str, field_match("label"), "has no fields; leave 'label' out"),
        (Ticket, set_f1("number"), "'number' is not one"),
        (Ticket, field_match("town"), "its fields: number, due, place"),
        (Ticket, text_match(), "name the field"),
    ],
)
def test_a_scorer_that_cannot_compare_the_type_is_refused(kind: Any, scorer: Any, remedy: str) -> None:
    with pytest.raises(LLMEvaluationError, match=remedy):
        Task(name="t", dataset=[Sample("x")], prompt="{input}", output_type=kind, scorers=[scorer])


@pytest.mark.parametrize(
    ("kind", "target", "scorer"),
    [
        (int, "1,080", exact_match()),
        (Literal["yes", "no"], "perhaps", field_match()),
        (Mood, 3, exact_match()),
        (Ticket, {"number": "seven"}, field_match("number")),
        (date, "31.12.2024", exact_match()),
    ],
)
def test_a_target_that_the_type_cannot_hold_is_refused_before_a_call(
    session: Session, server: OllamaServer, kind: Any, target: Any, scorer: Any
) -> None:
    before = len(server.calls)
    with pytest.raises(LLMEvaluationError, match="'a' has a target that no answer can equal"):
        evaluate(session, kind, target, [scorer], f"bad target {scorer.name} {target}")
    assert len(server.calls) == before
