"""Several endpoints of one kind in a session: nothing of one is taken for the other's; removed ones stay readable."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from llmkit import LLMConstraints, LLMProfile, LLMProvider, LLMRequest, Route, Session
from llmkit.bootstrap import list_routes
from llmkit.cli.main import run_command
from llmkit.errors import LLMBadRequest, LLMConfigurationError, LLMEvaluationError, LLMUnavailable
from llmkit.evals import Sample, Task, field_match
from llmkit.pricing import is_free, list_price
from llmkit.providers import load_endpoints
from llmkit.router import LLMRouter
from llmkit.settings import load_settings
from llmkit.testing import OllamaModel, OllamaServer, OpenAIServer, Reply, get_refused_url
from llmkit.testing.scripted_client import ScriptedClient

MODEL = "llama3.2"
HERE, THERE = f"ollama/{MODEL}", f"ollama2/{MODEL}"


class Label(BaseModel):
    label: str


TASK = Task(
    name="side-by-side",
    dataset=[Sample(input=f"text {n}", target={"label": "here"}) for n in range(3)],
    prompt="Text: {input}",
    output_type=Label,
    scorers=[field_match("label")],
)


@pytest.fixture
def ollamas() -> Iterator[tuple[OllamaServer, OllamaServer]]:
    here = OllamaServer(Reply('{"label": "here"}'), models=[OllamaModel(MODEL, digest="a" * 64)])
    there = OllamaServer(Reply('{"label": "there"}'), models=[OllamaModel(MODEL, digest="b" * 64)])
    with here, there:
        yield here, there


@pytest.fixture
def lab() -> Iterator[OpenAIServer]:
    with OpenAIServer(Reply("from the lab"), models=["m"]) as server:
        yield server


def settings_of(ollamas: tuple[OllamaServer, OllamaServer]) -> dict[str, Any]:
    here, there = ollamas
    ollama2 = {"kind": "ollama", "api_base": there.url, "model": MODEL}
    return {"ollama_api_base": here.url, "endpoints": {"ollama2": ollama2}, "max_retries": 0}


def lab_of(server: OpenAIServer, **fields: Any) -> dict[str, Any]:
    return {"endpoints": {"lab": {"kind": "openai", "api_base": server.api_base, "model": "m", **fields}}}


def test_two_ollama_servers_in_one_evaluation(ollamas: tuple[OllamaServer, OllamaServer]) -> None:
    with Session(**settings_of(ollamas)) as session:
        report = session.evaluate(TASK, routes=[HERE, THERE], name="both", progress=False)
        scores = {(each.route, each.scores["field_match"]) for each in report.results}
        assert scores == {(HERE, 1.0), (THERE, 0.0)}
        assert [server.call_count for server in ollamas] == [3, 3]
        attempts = session.attempts()
        assert set(session.usage()["route"]) == {HERE, THERE}
        digests = {tuple(pair) for pair in attempts[["provider", "model_digest"]].itertuples(index=False)}
        assert digests == {("ollama", "a" * 64), ("ollama2", "b" * 64)}
        assert session.facts(THERE).digest.value == "b" * 64
        # The same request again is answered from the cache, from its own endpoint's part of it.
        for _ in range(2):
            answers = [session.chat("x", route=route).text for route in (HERE, THERE)]
            assert answers == ['{"label": "here"}', '{"label": "there"}']
        assert [server.call_count for server in ollamas] == [4, 4]


def test_limits_are_kept_for_each_endpoint(lab: OpenAIServer) -> None:
    table = lab_of(lab)["endpoints"]["lab"]
    endpoints = {"lab": table, "slow": {**table, "requests_per_minute": 3}}
    settings = load_settings(endpoints=endpoints)
    specs = load_endpoints(settings)
    assert (specs["slow"].per_minute(settings), specs["lab"].per_minute(settings)) == ((3, None), (None, None))


def test_the_circuit_of_one_endpoint_does_not_concern_another(lab: OpenAIServer) -> None:
    dead = {"kind": "openai", "api_base": f"{get_refused_url()}/v1", "model": "m"}
    endpoints = {**lab_of(lab)["endpoints"], "dead": dead}
    with Session(endpoints=endpoints, max_retries=0, cooldown_after_failures=1) as session:
        with pytest.raises(LLMUnavailable, match=r"dead does not answer at http.*start its server"):
            session.chat("x", route="dead/m")
        with pytest.raises(LLMUnavailable, match="dead/m failed several times in a row"):
            session.chat("x", route="dead/m")
        assert session.chat("x", route="lab/m").text == "from the lab"


@pytest.mark.parametrize(
    ("local", "constraints", "reason"),
    [
        (None, {"allowed_providers": {"lab"}}, None),
        (None, {"allowed_providers": {"gemini"}}, "allowed_providers leaves lab out"),
        (None, {"local_only": True}, "local_only, and lab answers at http://lab.example.org:8000/v1"),
        (True, {"local_only": True}, None),
    ],
)
def test_constraints_know_endpoints(local: bool | None, constraints: dict[str, Any], reason: str | None) -> None:
    table = {"kind": "openai", "api_base": "http://lab.example.org:8000/v1", "model": "m"}
    settings = load_settings(endpoints={"lab": table | ({} if local is None else {"local": local})})
    router = LLMRouter(settings, ScriptedClient(), load_endpoints(settings))
    request = LLMRequest(messages="x", constraints=LLMConstraints(**constraints))
    entry = next(each for each in router.explain(request).entries if each.route.provider == "lab")
    assert entry.excluded_because == reason


def test_a_profile_prefers_the_endpoint_that_names_it() -> None:
    table = {"kind": "openai", "api_base": "http://127.0.0.1:9/v1", "model": "m", "profiles": ["quality"]}
    settings = load_settings(endpoints={"lab": table}, gemini_api_key="k")
    router = LLMRouter(settings, ScriptedClient(), load_endpoints(settings))
    plan = router.explain(LLMRequest(messages="x", profile=LLMProfile.QUALITY))
    assert [str(route.provider) for route in plan.candidates] == ["gemini", "lab", "ollama", "local"]


def test_prices_are_those_of_the_endpoint(lab: OpenAIServer) -> None:
    free, unknown = (load_endpoints(load_settings(**lab_of(lab, local=local))) for local in (True, False))
    route = Route.parse("lab/gpt-4o-mini")
    assert (is_free(route, free), is_free(route, unknown), is_free(route)) == (True, False, False)
    # The price of OpenAI's model of this name is no price of the lab's.
    assert list_price(route, unknown) is None


def test_a_removed_endpoint_leaves_everything_readable(lab: OpenAIServer, capsys: pytest.CaptureFixture[str]) -> None:
    lab.script([Reply('{"label": "here"}')] * 3 + [Reply("Rome")])
    with Session(**lab_of(lab)) as session:
        session.evaluate(TASK, routes=["lab/m"], name="run", progress=False)
        session.chat("Capital of Italy?", route="lab/m", idempotency_key="capital")
    assert run_command(["cassette", "record", "c.jsonl"]) == 0
    with Session() as session:
        assert set(session.runs()["provider"]) == set(session.attempts()["provider"]) == {"lab"}
        report = session.report("run")
        assert [each.served_route for each in report.results] == ["lab/m"] * 3
        report.to_html("report.html")
        assert "lab/m" in Path("report.html").read_text(encoding="utf-8")
        # What is finished is not asked again, so the run can be continued.
        assert len(session.evaluate(TASK, routes=["lab/m"], name="run", progress=False).results) == 3
        with pytest.raises(LLMEvaluationError, match="unknown endpoint 'lab'"):
            session.evaluate(TASK, routes=["lab/m"], name="new", progress=False)
        assert session.chat("Capital of Italy?", route="lab/m", idempotency_key="capital").text == "Rome"
        with pytest.raises(LLMBadRequest, match="unknown endpoint 'lab'"):
            session.chat("Another question", route="lab/m")
    with Session(replay="c.jsonl") as session:
        assert session.chat("Capital of Italy?", route="lab/m").text == "Rome"
        replayed = session.evaluate(TASK, routes=["lab/m"], name="replayed", progress=False)
        assert [each.status for each in replayed.results] == ["SUCCEEDED"] * 3
    assert lab.call_count == 4


def test_the_configured_model_of_every_endpoint_is_a_route(ollamas: tuple[OllamaServer, OllamaServer]) -> None:
    routes = asyncio.run(list_routes(load_settings(**settings_of(ollamas))))
    assert routes[:2] == (HERE, THERE)
    assert "gemini/gemini-2.5-flash" in routes


def test_a_key_that_was_set_too_late_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = {"kind": "openai", "api_base": "https://lab.example.org/v1", "model": "m", "api_key_env": "LAB_KEY"}
    monkeypatch.setenv("LLM_ENDPOINTS", json.dumps({"lab": lab}))
    with Session() as session:
        monkeypatch.setenv("LAB_KEY", "sk-x")
        with pytest.raises(LLMConfigurationError, match=r"LAB_KEY is empty; set it.*LAB_KEY is set now.*a new session"):
            session.chat("x", route="lab/m")
    with Session() as session:
        with pytest.raises(LLMConfigurationError, match=r"OpenAI cannot be called: no key: set LLM_OPENAI_API_KEY$"):
            session.chat("x", route="openai/gpt")
        monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
        with pytest.raises(
            LLMConfigurationError, match=r"OPENAI_API_KEY is set in the environment.*open a new session"
        ):
            session.chat("x", route="openai/gpt")


def test_the_name_of_an_endpoint_is_a_provider_like_those_built_in() -> None:
    lab = LLMProvider("lab")
    assert lab is LLMProvider("lab") is Route.parse("lab/m").provider
    assert Route.model_validate_json(Route.parse("lab/m").model_dump_json()) == Route(provider=lab, model="m")
    assert (str(lab), lab.value, {lab: 1}["lab"], copy.deepcopy(lab) is lab) == ("lab", "lab", 1, True)
    assert lab not in list(LLMProvider)
    with pytest.raises(ValueError, match="not a valid LLMProvider"):
        LLMProvider("a b")


def test_no_package_is_searched_for_a_kind_that_llmkit_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading every package's entry points takes longer than the rest of a first call may."""

    def search(**_filters: str) -> None:
        raise AssertionError

    monkeypatch.setattr("importlib.metadata.entry_points", search)
    table = {"kind": "openai", "api_base": "http://127.0.0.1:9/v1", "model": "m"}
    assert "lab" in load_endpoints(load_settings(endpoints={"lab": table}))
