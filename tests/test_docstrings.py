"""The examples in docstrings of the public classes run, and every public method has one."""

from __future__ import annotations

import asyncio
import doctest
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from llmkit import LLMRequest, Message, RequestContext, Session, load_settings
from llmkit.evals import Sample, Scorer, Task, field_match
from llmkit.evals.scorers import lower_is_better
from llmkit.router import LLMRouter
from llmkit.service import LLMService
from llmkit.testing import OllamaServer, RecordedRequest, Reply
from llmkit.testing.in_memory import InMemoryLLMRunRepo
from llmkit.testing.scripted_client import ScriptedClient, reply


class City(BaseModel):
    name: str
    people: int


class Sentiment(BaseModel):
    label: str


TASK = Task(
    name="sentiment",
    dataset=[Sample("I like it.", "positive")],
    prompt="{input}",
    output_type=Sentiment,
    scorers=[field_match("label")],
)
CITIES = Task(
    name="cities",
    dataset=[Sample("Rome: 2.8 million", {"name": "Rome", "people": 2_800_000})],
    prompt="{input}",
    output_type=City,
    scorers=[field_match("people")],
)
FINDER = doctest.DocTestFinder()


def _find_examples(*objects: Any) -> list[Any]:
    found = [example for each in objects for example in FINDER.find(each, each.__name__) if example.examples]
    return [pytest.param(example, id=example.name) for example in found]


def _run_example(example: doctest.DocTest, names: dict[str, Any]) -> None:
    example.globs = {**example.globs, "__name__": "example", **names}
    report: list[str] = []
    results = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append)
    assert results.failed == 0, "".join(report)


def _answer_example(request: RecordedRequest) -> Reply:
    is_extraction = "format" in request.json
    text = '{"name": "Rome", "people": 2800000}' if is_extraction else "Customers who leave."
    return Reply(text, input_tokens=9, output_tokens=3)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    with OllamaServer(_answer_example) as ollama:
        monkeypatch.setenv("LLM_OLLAMA_API_BASE", ollama.url)
        with Session("study") as session:
            yield session


@pytest.mark.parametrize("example", _find_examples(Session))
def test_session_examples(example: doctest.DocTest, session: Session) -> None:
    if "s.report(" in example.docstring:  # it needs a stored evaluation
        session.evaluate(CITIES, ["ollama/llama3.2"], progress=False)
    if "study.jsonl" in example.docstring:  # it needs a cassette
        session.chat("What is churn?")
        _record_cassette(session, Path("study.jsonl"))
    _run_example(example, {"s": session, "City": City})


def _record_cassette(session: Session, file: Path) -> None:
    from typer.testing import CliRunner

    from llmkit.cli.main import app

    assert CliRunner().invoke(app, ["cassette", "record", str(file), "--workspace", session.workspace]).exit_code == 0


@pytest.mark.parametrize("example", _find_examples(LLMService))
def test_service_examples(example: doctest.DocTest) -> None:
    settings = load_settings(cache_enabled=False)
    router = LLMRouter(settings, ScriptedClient([reply("Rome")]))
    service = LLMService(router=router, settings=settings, runs=InMemoryLLMRunRepo())
    request = LLMRequest(messages=[Message(role="user", content="Capital of Italy?")])
    context = RequestContext(workspace_id="study")
    _run_example(example, {"asyncio": asyncio, "service": service, "request": request, "context": context})


@pytest.mark.parametrize("example", _find_examples(Task, Scorer, lower_is_better))
def test_evaluation_examples(example: doctest.DocTest) -> None:
    _run_example(example, {"task": TASK})


@pytest.mark.parametrize("owner", [Session, Task, LLMService], ids=lambda owner: owner.__name__)
def test_public_methods_have_examples(owner: type) -> None:
    """An async twin is documented by its sync method."""
    with_example = {example.name for example in FINDER.find(owner, owner.__name__) if example.examples}
    methods = {name for name, each in vars(owner).items() if inspect.isfunction(each) and not name.startswith("_")}
    twins = {name for name in methods if name.startswith("a") and name[1:] in methods}
    assert {f"{owner.__name__}.{name}" for name in methods - twins} | {owner.__name__} <= with_example
