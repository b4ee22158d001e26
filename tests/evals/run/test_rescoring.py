"""Stored outputs that are scored again, when a scorer was added, are what they were when the model gave them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel, model_serializer

from llmkit import Session
from llmkit.evals import EvalReport, Sample, Task
from llmkit.evals.answer_type import AnswerType
from llmkit.evals.run.rescoring import _read_output
from llmkit.pydanticai.written_form import write_json
from llmkit.testing import OllamaServer, Reply
from tests.support.awkward_types import CASES, Alias, Case, Private, Secrets
from tests.support.run_values import an_eval_result

ROUTE = "ollama/llama3.2"


class Recorder:
    """Scorers that keep a picture of the outputs they get: the representation may hide secrets, the JSON may not."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def first(self, output: Any, _sample: Sample) -> float:
        self.seen.append((repr(output), write_json(output)))
        return 0.25

    def second(self, _output: Any, _sample: Sample) -> float:
        return 0.5


@pytest.fixture(scope="module")
def server() -> Iterator[OllamaServer]:
    with OllamaServer() as running:
        yield running


@pytest.fixture(scope="module")
def session(server: OllamaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("rescoring")
    settings = {"database_url": f"sqlite:///{folder}/llm.db", "cache_dir": f"{folder}/cache"}
    with Session("w", ollama_api_base=server.url, **settings) as opened:
        yield opened


def evaluate(session: Session, kind: Any, scorers: list[Any], name: str) -> EvalReport:
    task = Task(name="t", dataset=[Sample("a")], prompt="{input}", output_type=kind, scorers=scorers)
    return session.evaluate(task, [ROUTE], name=name, progress=False, warm_up=False)


def score_twice(session: Session, server: OllamaServer, kind: Any, answer: str, name: str) -> tuple[Recorder, Any]:
    """Score an answer, add a scorer and score it again; return what the first scorer saw and the sample's row."""
    recorder = Recorder()
    server.script([Reply(answer)])
    before = len(server.calls)
    evaluate(session, kind, [recorder.first], name)
    report = evaluate(session, kind, [recorder.first, recorder.second], name)
    assert len(server.calls) == before + 1
    assert len(recorder.seen) == 2
    return recorder, report.samples().iloc[0]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_an_output_is_scored_again_as_it_was(session: Session, server: OllamaServer, case: Case) -> None:
    recorder, row = score_twice(session, server, case.kind, case.answer, case.kind.__name__)
    assert (row["status"], row["score_first"], row["score_second"]) == ("SUCCEEDED", 0.25, 0.5)
    assert recorder.seen[0] == recorder.seen[1]


def test_an_answer_that_was_repaired_is_scored_again_as_it_was(session: Session, server: OllamaServer) -> None:
    fenced = '```json\n{"measurement_units": "m",}\n```'
    recorder, row = score_twice(session, server, Alias, fenced, "repaired")
    assert (row["outcome"], row["status"], recorder.seen[0]) == ("repaired", "SUCCEEDED", recorder.seen[1])


def test_reports_show_the_serialised_form_of_a_secret(session: Session, server: OllamaServer) -> None:
    _, row = score_twice(session, server, Secrets, CASES["Secrets"].answer, "masked")
    assert row["output"] == '{"password":"**********","key":"**********"}'


@pytest.mark.parametrize(
    ("kind", "answer", "stored"),
    [(Private, '{"a": 1}', None), (Alias, '{"measurement_units": "m"}', '{"measurement_units": "m"}')],
)
def test_an_answer_is_stored_where_it_differs_from_its_output(
    session: Session, server: OllamaServer, kind: Any, answer: str, stored: str | None
) -> None:
    server.script([Reply(answer)])
    report = evaluate(session, kind, [Recorder().first], f"stored {kind.__name__}")
    assert [result.answer_json for result in report.results] == [stored]


class Broken(BaseModel):
    a: int

    @model_serializer
    def shown(self) -> str:
        raise RuntimeError("no form")


def test_a_serialiser_that_fails_does_not_end_a_paid_evaluation(session: Session, server: OllamaServer) -> None:
    _, row = score_twice(session, server, Broken, '{"a": 1}', "broken")
    assert (row["status"], row["output"]) == ("SUCCEEDED", '{"a": 1}')


def test_a_result_of_version_0_1_0_is_read_by_its_field_names() -> None:
    # That version stored fields under their own names, whatever an answer calls them.
    old = an_eval_result(uuid4(), output_json='{"units":"m"}')
    assert _read_output(AnswerType.of(Alias), old) == Alias(measurement_units="m")


def test_without_payloads_no_answer_is_stored(server: OllamaServer) -> None:
    server.script([Reply(CASES["Secrets"].answer)])
    with Session("w", ollama_api_base=server.url, store_payloads=False) as session:
        report = evaluate(session, Secrets, [Recorder().first], "private")
    assert [(result.output_json, result.answer_json) for result in report.results] == [(None, None)]
