"""Slips of the fingers: each is one line that says what to write, before anything is sent."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from datetime import date, datetime
from typing import Any

import pandas as pd
import pytest
from pydantic import BaseModel

from llmkit import LLMBadRequest, LLMConfigurationError, LLMError, LLMEvaluationError, Session
from llmkit.evals import Sample, Task
from llmkit.evals.run.plan import EvaluateOptions
from llmkit.notebook.options import CHAT_NAMES
from llmkit.testing import OllamaServer


class City(BaseModel):
    name: str


ROME = City(name="Rome")
FRAME = pd.DataFrame({"a": ["x", "y"]})
TASK = Task(name="t", dataset=[Sample(input="x", target={"name": "a"})], prompt="{input}", output_type=City)
ROUTES = ["ollama/llama3.2"]


@pytest.fixture
def ollama() -> Iterator[OllamaServer]:
    with OllamaServer() as server:
        yield server


@pytest.fixture
def session(ollama: OllamaServer) -> Iterator[Session]:
    with Session("study", ollama_api_base=ollama.url, max_retries=0) as opened:
        yield opened


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: s.chat(None), "The prompt is a text.*got NoneType"),
        (lambda s: s.chat(5), "The prompt is a text.*got int"),
        (lambda s: s.chat(" \n"), "empty"),
        (lambda s: s.chat([]), "empty"),
        (lambda s: s.chat("\ud800"), "half of a character"),
        (lambda s: s.chat("x", system="\ud800"), "half of a character"),
        (lambda s: s.extract(City, " \n"), "nothing to read"),
        (lambda s: s.extract(BaseModel, "x"), "BaseModel itself has no fields"),
        (lambda s: s.chat(["a", "b"]), "list of messages.*got list of something else"),
        (lambda s: s.chat({"role": "user", "content": "x"}), "list of messages.*got dict"),
        (lambda s: s.chat(b"x"), "got bytes"),
        (lambda s: s.chat(FRAME), "got DataFrame"),
        (lambda s: s.chat("x", temprature=0), "temprature: unknown name; did you mean temperature?"),
        (lambda s: s.chat("x", max_tokens=5), "did you mean max_output_tokens?"),
        (lambda s: s.chat("x", model="llama3.2"), "did you mean route?"),
        (lambda s: s.chat("x", messages="y"), "messages: unknown name"),
        (lambda s: s.chat("x", route=5), "provider/model.*got int"),
        (lambda s: s.chat("x", system=5), "system must be a text; got int"),
        (lambda s: s.explain(None), "The prompt is a text"),
        (lambda s: s.extract(ROME, "x"), "output type comes first.*of the type City"),
        (lambda s: s.extract("x", City), "output type comes first.*of the type str"),
        (lambda s: s.extract(City, "x", retries=-1), "retries must be at least 0; got -1"),
        (lambda s: s.extract(City, "x", retries="2"), "retries must be a whole number; got str"),
        (lambda s: s.extract(City, "x", sytem="y"), "did you mean system?"),
        (lambda s: s.map(FRAME["a"], City), "output type comes first.*of the type Series"),
        (lambda s: s.map(ROME, FRAME), "of the type City"),
        (lambda s: s.map("", FRAME), "empty"),
        (lambda s: s.map(City, FRAME, template=5), "template must be a text"),
        (lambda s: s.map(City, FRAME, name=5), "name must be a text"),
        (lambda s: s.map(City, FRAME, concurrency="4"), "concurrency must be a whole number; got str"),
        (lambda s: s.map(City, FRAME, templat="{a}"), "did you mean template?"),
        (lambda s: s.map(City, FRAME, retries=0.5), "retries must be a whole number; got float"),
        (lambda s: FRAME["a"].llm.chat("x", session="s"), "llmkit.Session; got str"),
        (lambda s: s.conversation(system=5), "system must be a text"),
        (lambda s: s.conversation(id=5), "id must be a text"),
        (lambda s: s.conversation(temprature=1), "did you mean temperature?"),
        (lambda s: s.conversation(idempotency_key="k"), "sets by itself"),
        (lambda s: s.conversation().say("x", system="y"), "sets by itself"),
        (lambda s: s.conversation().say("x", pipeline_run_id="y"), "sets by itself"),
        (lambda s: s.conversation().say("x", metadata=5), "metadata must be a dictionary"),
        (lambda s: s.runs(since="yesterday"), "a datetime with a time zone.*got str"),
        (lambda s: s.attempts(since=datetime(2026, 1, 1)), "got one without a time zone"),  # noqa: DTZ001
        (lambda s: s.usage(since=date(2026, 1, 1)), "got date"),
        (lambda s: s.runs(limit=-1), "limit must be at least 1; got -1"),
        (lambda s: s.attempts(limit="5"), "limit must be a whole number; got str"),
        (lambda s: s.runs(status="DONE"), "DONE: unknown status; there are: FAILED, STARTED, SUCCEEDED"),
        (lambda s: s.facts(None), "provider/model"),
        (lambda s: s.model(5), "provider/model"),
        (lambda s: s.model(ROUTES[0], temperature=1), "temperature: unknown name; there are: .*parameters"),
    ],
)
def test_a_slip_is_one_line_and_nothing_is_sent(
    session: Session, ollama: OllamaServer, call: Callable[[Session], Any], said: str
) -> None:
    from llmkit.notebook import pandas_accessor

    pandas_accessor.register()
    with pytest.raises(LLMBadRequest, match=said) as caught:
        call(session)
    assert "\n" not in str(caught.value)
    assert "Rome" not in str(caught.value)
    assert not ollama.requests


@pytest.mark.parametrize(
    ("task", "routes", "options", "said"),
    [
        ("task.py", ROUTES, {}, "takes a Task first.*got str.*load_tasks"),
        (ROUTES, TASK, {}, "takes a Task first.*got list"),
        (TASK, None, {}, "routes are a list.*got NoneType"),
        (TASK, [5], {}, "routes are a list.*got int"),
        (TASK, ROUTES, {"epoch": 2}, "epoch: unknown option; did you mean epochs?"),
        (TASK, ROUTES, {"concurrency": "4"}, "concurrency must be a whole number"),
        (TASK, ROUTES, {"limit": -1}, "limit must be at least 1; got -1"),
        (TASK, ROUTES, {"name": 5}, "name must be a text"),
    ],
)
async def test_a_slip_in_an_evaluation_is_one_line_too(
    session: Session, ollama: OllamaServer, task: Any, routes: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(LLMEvaluationError, match=said):
        session.evaluate(task, routes, **options)
    with pytest.raises(LLMEvaluationError, match=said):
        await session.aevaluate(task, routes, **options)
    assert not ollama.requests


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"workspace": ""}, "workspace_id"),
        ({"workspace": " churn"}, "workspace_id: must be one line, without white space at its beginning or end$"),
        ({"settings": {"llm_lane": "fast"}}, "settings must be LLMSettings.*got dict"),
        ({"replay": 5}, "path of a cassette; got int"),
    ],
)
def test_a_session_says_what_it_cannot_be_made_of(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(LLMConfigurationError, match=said):
        Session(**arguments)


def test_none_is_as_good_as_left_out(session: Session, ollama: OllamaServer) -> None:
    assert session.chat("x", max_output_tokens=None, constraints=None, use_cache=None, metadata=None).billed
    assert not session.chat("x").billed
    session.map("Say {text}", ["x"], name="n", progress=False)
    session.map("Say {text}", ["x"], name="n", temperature=None, template=None, progress=False)
    assert len(ollama.calls) == 2
    assert session.conversation(metadata=None).say("y").text
    assert session.extract(City, "x", retries=None, examples=None, instructions=None, stage=None)
    assert session.evaluate(TASK, ROUTES, epochs=None, policies=None, progress=False).counts["SUCCEEDED"] == 1


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("chat", "temperature"),
        ("achat", "timeout_s"),
        ("extract", "retries"),
        ("aextract", "examples"),
        ("map", "system"),
        ("amap", "template"),
        ("conversation", "temperature"),
        ("evaluate", "epochs"),
        ("aevaluate", "budget"),
        ("explain", "constraints"),
        ("model", "parameters"),
    ],
)
def test_a_signature_names_every_argument_so_that_a_notebook_completes_it(name: str, told: str) -> None:
    shown = inspect.signature(getattr(Session, name)).parameters
    assert told in shown
    assert all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in shown.values())


def test_every_option_of_an_evaluation_is_shown_and_told() -> None:
    shown = set(inspect.signature(Session.evaluate).parameters) - {"self", "task", "routes", "name"}
    assert shown == set(EvaluateOptions.__annotations__)
    assert all(f"`{name}`" in (Session.evaluate.__doc__ or "") for name in shown)


def test_every_argument_of_a_call_is_shown_and_told() -> None:
    shown = set(inspect.signature(Session.chat).parameters) - {"self", "prompt"}
    assert CHAT_NAMES - shown == {"tools", "tool_choice", "response_format", "epoch"}  # of agents and evaluations
    assert all(f"`{name}`" in (Session.chat.__doc__ or "") for name in shown)


def test_what_people_mean_is_understood(session: Session, ollama: OllamaServer) -> None:
    session.chat([{"role": "user", "content": "x"}], stop="END")
    assert ollama.calls[-1].json["options"]["stop"] == ["END"]
    assert isinstance(session.evaluate(TASK, ROUTES[0], progress=False).counts["SUCCEEDED"], int)


def test_a_system_message_goes_in_front_of_an_extraction_and_of_every_row(
    session: Session, ollama: OllamaServer
) -> None:
    session.extract(City, "x", system="Be exact.")
    frame = session.map(City, ["y"], system="Be exact.", progress=False)
    assert frame["status"].tolist() == ["SUCCEEDED"]
    for call in ollama.calls:
        said = [(message["role"], message["content"]) for message in call.json["messages"]]
        assert said[0] == ("system", "Be exact.")
        assert "City" in said[1][1]


def test_a_session_that_is_gone_does_not_hide_the_one_that_is_there(session: Session, ollama: OllamaServer) -> None:
    from llmkit.notebook import pandas_accessor

    pandas_accessor.register()
    Session("thrown away")
    assert pd.Series(["x"]).llm.chat("Say {text}", progress=False)["status"].tolist() == ["SUCCEEDED"]


def test_no_slip_shows_another_librarys_error(session: Session) -> None:
    with pytest.raises(LLMError) as caught:
        session.chat("x", constraints={"local_onl": True})
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
