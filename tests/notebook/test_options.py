"""Arguments and options: each mistake is one line that states the fix, before anything is sent."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from datetime import date, datetime
from typing import Any

import pandas as pd
import pytest
from pydantic import BaseModel

from llmkit import LLMBadRequest, LLMConfigurationError, LLMError, LLMEvaluationError, LLMRequest, Session, evals
from llmkit.evals import Sample, Task
from llmkit.notebook import options as options_module
from llmkit.notebook.options import ChatOptions, list_option_names, read_option_docs
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
    ("call", "message"),
    [
        (lambda s: s.chat(None), "The prompt must be a string.*got NoneType"),
        (lambda s: s.chat(5), "The prompt must be a string.*got int"),
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
        (lambda s: s.chat("x", system=5), "system must be a string; got int"),
        (lambda s: s.explain(None), "The prompt must be a string"),
        (lambda s: s.extract(ROME, "x"), "output type comes first.*of the type City"),
        (lambda s: s.extract("x", City), "output type comes first.*of the type str"),
        (lambda s: s.extract(City, "x", reasks=-1), "reasks must be at least 0; got -1"),
        (lambda s: s.extract(City, "x", reasks="2"), "reasks must be a whole number; got str"),
        (lambda s: s.extract(City, "x", sytem="y"), "did you mean system?"),
        (lambda s: s.map(FRAME["a"], City), "output type comes first.*of the type Series"),
        (lambda s: s.map(ROME, FRAME), "of the type City"),
        (lambda s: s.map("", FRAME), "empty"),
        (lambda s: s.map(City, FRAME, template=5), "template must be a string"),
        (lambda s: s.map(City, FRAME, name=5), "name must be a string"),
        (lambda s: s.map(City, FRAME, concurrency="4"), "concurrency must be a whole number; got str"),
        (lambda s: s.map(City, FRAME, templat="{a}"), "did you mean template?"),
        (lambda s: s.map(City, FRAME, reasks=0.5), "reasks must be a whole number; got float"),
        (lambda s: FRAME["a"].llm.chat("x", session="s"), "llmkit.Session; got str"),
        (lambda s: s.conversation(system=5), "system must be a string"),
        (lambda s: s.conversation(id=5), "id must be a string"),
        (lambda s: s.conversation(temprature=1), "did you mean temperature?"),
        (lambda s: s.conversation(idempotency_key="k"), "conversation sets"),
        (lambda s: s.conversation().say("x", system="y"), "conversation sets"),
        (lambda s: s.conversation().say("x", pipeline_run_id="y"), "conversation sets"),
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
def test_a_mistake_is_one_line_and_nothing_is_sent(
    session: Session, ollama: OllamaServer, call: Callable[[Session], Any], message: str
) -> None:
    from llmkit.notebook import pandas_accessor

    pandas_accessor.register()
    with pytest.raises(LLMBadRequest, match=message) as caught:
        call(session)
    assert "\n" not in str(caught.value)
    assert "Rome" not in str(caught.value)
    assert not ollama.requests


@pytest.mark.parametrize(
    ("task", "routes", "options", "message"),
    [
        ("task.py", ROUTES, {}, "takes a Task first.*got str.*load_tasks"),
        (ROUTES, TASK, {}, "takes a Task first.*got list"),
        (TASK, None, {}, "routes are a list.*got NoneType"),
        (TASK, [5], {}, "routes are a list.*got int"),
        (TASK, ROUTES, {"epoch": 2}, "epoch: unknown option; did you mean epochs?"),
        (TASK, ROUTES, {"extract": "prompted"}, "extract must be a function like llmkit.pydanticai.extract"),
        (TASK, ROUTES, {"concurrency": "4"}, "concurrency must be a whole number"),
        (TASK, ROUTES, {"limit": -1}, "limit must be at least 1; got -1"),
        (TASK, ROUTES, {"name": 5}, "name must be a string"),
    ],
)
async def test_a_mistake_in_an_evaluation_is_one_line(
    session: Session, ollama: OllamaServer, task: Any, routes: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(LLMEvaluationError, match=message):
        session.evaluate(task, routes, **options)
    with pytest.raises(LLMEvaluationError, match=message):
        await session.aevaluate(task, routes, **options)
    assert not ollama.requests


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workspace": ""}, "workspace_id"),
        ({"workspace": " churn"}, "workspace_id: must be one line, without white space at its beginning or end$"),
        ({"settings": {"llm_request_path": "fast"}}, "settings must be LLMSettings.*got dict"),
        ({"replay": 5}, "path of a cassette; got int"),
    ],
)
def test_bad_arguments_of_a_session_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LLMConfigurationError, match=message):
        Session(**arguments)


def test_none_is_the_same_as_leaving_an_option_out(session: Session, ollama: OllamaServer) -> None:
    assert session.chat("x", max_output_tokens=None, constraints=None, use_cache=None, metadata=None).billed
    assert not session.chat("x").billed
    session.map("Say {text}", ["x"], name="n", progress=False)
    session.map("Say {text}", ["x"], name="n", temperature=None, template=None, progress=False)
    assert len(ollama.calls) == 2
    assert session.conversation(metadata=None).say("y").text
    assert session.extract(City, "x", reasks=None, examples=None, instructions=None, stage=None)
    assert session.evaluate(TASK, ROUTES, epochs=None, policies=None, progress=False).counts["SUCCEEDED"] == 1


TAKING_OPTIONS = [
    *(
        "chat",
        "achat",
        "explain",
        "extract",
        "aextract",
        "map",
        "amap",
        "conversation",
        "model",
        "evaluate",
        "aevaluate",
    ),
]


@pytest.mark.parametrize("name", TAKING_OPTIONS)
def test_signature_and_docstring_show_every_option(name: str) -> None:
    method = getattr(Session, name)
    options = get_type_hints_of_options(method)
    signature = inspect.signature(method)
    assert list_option_names(options) <= signature.parameters.keys()
    assert all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in signature.parameters.values())
    for option, text in read_option_docs(options).items():
        assert f"    {option}: {text}" in method.__doc__


def get_type_hints_of_options(method: Any) -> Any:
    """Return the class in `**options: Unpack[...]`."""
    name = method.__annotations__["options"].removeprefix("Unpack[").removesuffix("]")
    return getattr(evals, name, None) or getattr(options_module, name)


def test_a_signature_shows_types_and_defaults() -> None:
    shown = inspect.signature(Session.chat).parameters
    assert str(shown["temperature"]) == "temperature: float | None = None"
    assert str(shown["use_cache"]) == "use_cache: bool | None = True"
    assert str(inspect.signature(Session.evaluate).parameters["scorer_timeout_s"]).endswith(" = 60")


def test_the_options_of_a_call_are_the_fields_of_a_request() -> None:
    extra = {"system", "images", "files", "stage", "pipeline_run_id"}
    assert list_option_names(ChatOptions) == LLMRequest.model_fields.keys() - {"messages"} | extra


# These have no async form: they send nothing, or return something with async methods of its own.
SYNC_ONLY = {"close", "conversation", "explain", "model", "recordings", "policy"}


def test_every_sync_method_has_an_async_twin_with_the_same_signature() -> None:
    methods = {name for name, each in vars(Session).items() if inspect.isfunction(each) and not name.startswith("_")}
    twins = {name for name in methods if name.startswith("a") and name[1:] in methods}
    assert methods - twins - {name[1:] for name in twins} == SYNC_ONLY
    for name in twins:
        assert inspect.signature(getattr(Session, name)) == inspect.signature(getattr(Session, name[1:]))
        # A stream is awaited itself.
        assert inspect.iscoroutinefunction(getattr(Session, name)) or name == "astream"
        assert f"see `{name[1:]}`" in inspect.cleandoc(getattr(Session, name).__doc__)


def test_single_values_and_dictionaries_are_accepted(session: Session, ollama: OllamaServer) -> None:
    session.chat([{"role": "user", "content": "x"}], stop="END")
    assert ollama.calls[-1].json["options"]["stop"] == ["END"]
    assert isinstance(session.evaluate(TASK, ROUTES[0], progress=False).counts["SUCCEEDED"], int)


def test_a_system_message_precedes_extractions_and_rows(session: Session, ollama: OllamaServer) -> None:
    session.extract(City, "x", system="Be exact.")
    frame = session.map(City, ["y"], system="Be exact.", progress=False)
    assert frame["status"].tolist() == ["SUCCEEDED"]
    for call in ollama.calls:
        messages = [(message["role"], message["content"]) for message in call.json["messages"]]
        assert messages[0] == ("system", "Be exact.")
        assert "City" in messages[1][1]


def test_a_deleted_session_does_not_hide_an_existing_one(session: Session, ollama: OllamaServer) -> None:
    from llmkit.notebook import pandas_accessor

    pandas_accessor.register()
    Session("thrown away")
    assert pd.Series(["x"]).llm.chat("Say {text}", progress=False)["status"].tolist() == ["SUCCEEDED"]


def test_a_mistake_shows_no_error_of_another_library(session: Session) -> None:
    with pytest.raises(LLMError) as caught:
        session.chat("x", constraints={"local_onl": True})
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_half_of_a_character_is_refused_where_it_is_looked_up(session: Session) -> None:
    for look_up in (
        lambda text: session.runs(pipeline_run_id=text),
        lambda text: session.attempts(pipeline_run_id=text),
        lambda text: session.conversation(id=text),
        session.report,
    ):
        with pytest.raises(LLMBadRequest, match="half of a character"):
            look_up("a\ud800")
