"""What a session finds out about models, when it asks, and what it does with the answer: over real HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from llmkit import LLMBadRequest, LLMContextOverflow, LLMPromptTruncated, LLMUnavailable, LLMUnsupported, Session
from llmkit.discovery.probe import EXPECTED, MOST_CALLS, follows_schema
from llmkit.discovery.probe_cache import ProbeFile, StoredProbe
from llmkit.providers.model_facts import ModelFacts
from llmkit.settings import load_settings
from llmkit.testing import (
    Fault,
    GeminiServer,
    OllamaModel,
    OllamaServer,
    OpenAIDialect,
    OpenAIModel,
    OpenAIServer,
    RecordedRequest,
    Reply,
    ToolCall,
)
from llmkit.types import Attempt, AttemptStatus, LLMResponse, Route, ToolDefinition, utc_now

ROUTE = "ollama/llama3.2"
TOOLS = (ToolDefinition(name="look_up"),)


class City(BaseModel):
    name: str


@pytest.fixture
def ollama() -> Iterator[OllamaServer]:
    with OllamaServer() as server:
        yield server


def session(server: OllamaServer, **settings: object) -> Session:
    return Session("study", ollama_api_base=server.url, max_retries=0, **settings)


def schema_fact(facts: ModelFacts) -> tuple[object, str]:
    assert facts.json_schema is not None
    return facts.json_schema.value, facts.json_schema.source


# -- when it asks ----------------------------------------------------------------------------------


def test_the_first_call_asks_the_server_about_its_model_and_further_ones_do_not(ollama: OllamaServer) -> None:
    with session(ollama) as opened:
        opened.chat("a", route=ROUTE)
        assert sorted(request.path for request in ollama.requests) == ["/api/chat", "/api/show", "/api/tags"]
        for prompt in "bcd":
            opened.chat(prompt, route=ROUTE)
        assert (ollama.request_count, ollama.call_count) == (6, 4)


def test_a_cached_answer_asks_nothing(ollama: OllamaServer) -> None:
    with session(ollama) as opened:
        opened.chat("a", route=ROUTE)
    ollama.clear()
    with session(ollama) as later:
        assert later.chat("a", route=ROUTE).served_from == "cache"
    assert ollama.request_count == 0


def test_a_server_that_says_nothing_of_its_models_answers_all_the_same(ollama: OllamaServer) -> None:
    ollama.script(Fault.status(500), endpoint="/api/show")
    ollama.script(Fault.malformed(), endpoint="/api/tags")
    with session(ollama) as opened:
        assert opened.chat("a", route=ROUTE).billed
        assert dict(opened.facts(ROUTE))["json_schema"].source == "declared"
        assert opened.attempts().model_digest.isna().all()


def test_facts_of_a_session_name_their_source(ollama: OllamaServer) -> None:
    with session(ollama) as opened:
        found = opened.facts(ROUTE).as_dict()
    assert {name: fact["source"] for name, fact in found.items()} == {
        "tools": "reported",
        "json_schema": "declared",
        "images": "reported",
        "context_tokens": "reported",
        "digest": "reported",
    }
    assert ollama.call_count == 0


# -- what it does with the answer ------------------------------------------------------------------


def test_tools_need_no_pinned_route_once_the_model_is_known_to_take_them(ollama: OllamaServer) -> None:
    with session(ollama) as opened:
        assert str(opened.chat("a", tools=TOOLS).route) == ROUTE


def test_tools_on_a_model_without_them_never_reach_the_server(ollama: OllamaServer) -> None:
    ollama.models = [OllamaModel("llama3.2", capabilities=("completion",))]
    with session(ollama) as opened, pytest.raises(LLMUnsupported, match=r"cannot call tools \(reported\)"):
        opened.chat("a", tools=TOOLS, route=ROUTE)
    assert ollama.call_count == 0


def test_a_prompt_is_answered_flagged_or_refused(ollama: OllamaServer) -> None:
    """Whole, as cut (by a server that ignores `truncate`), or by the model's own window."""
    ollama.version = "0.6.5"
    ollama.models = [OllamaModel("llama3.2", context_length=1500)]  # no multiple of anything
    with session(ollama) as opened:
        assert opened.chat("word " * 1000, route=ROUTE).usage.input_tokens >= 1000
        with pytest.raises(LLMPromptTruncated, match="1500 tokens"):
            opened.chat("word " * 2000, route=ROUTE)
        assert [call.json["options"]["num_ctx"] for call in ollama.calls] == [1500, 1500]
        with pytest.raises(LLMContextOverflow, match="nothing was sent"):
            opened.chat("word " * 3000, route=ROUTE)
    assert ollama.call_count == 2


def test_the_digest_is_kept_with_every_attempt_and_a_model_made_anew_shows(ollama: OllamaServer) -> None:
    ollama.models = [OllamaModel("llama3.2", digest="a" * 64)]
    with session(ollama, facts_ttl_s=0.001) as opened:
        opened.chat("a", route=ROUTE)
        ollama.models = [OllamaModel("llama3.2", digest="b" * 64)]
        opened.chat("b", route=ROUTE)
        assert set(opened.attempts().model_digest) == {"a" * 64, "b" * 64}


def test_for_gemini_the_version_that_answered_is_kept() -> None:
    with GeminiServer([Reply("x", model="gemini-2.5-flash-002")], api_key="k") as gemini:
        settings = {"gemini_api_base": f"{gemini.url}/v1beta", "gemini_api_key": "k"}
        with Session("study", **settings) as opened:
            opened.chat("a", route="gemini/gemini-2.5-flash")
            assert list(opened.attempts().model_digest) == ["gemini-2.5-flash-002"]


# -- the trial -------------------------------------------------------------------------------------


def test_a_server_that_holds_to_schemas_is_told_from_one_that_ignores_them(ollama: OllamaServer) -> None:
    with session(ollama) as opened:
        assert schema_fact(opened.probe(ROUTE)) == (True, "probed")
        ollama.ignores_schema = True
        assert schema_fact(opened.probe(ROUTE)) == (False, "probed")
        runs = opened.runs()
        assert set(runs.stage) == {"probe"}
    assert ollama.call_count <= 16


def test_prose_without_an_end_is_no_answer_that_was_held_to_a_schema(ollama: OllamaServer) -> None:
    ollama.script("waves and " * 2000)
    with session(ollama) as opened:
        assert schema_fact(opened.probe(ROUTE)) == (False, "probed")


def test_a_server_that_refuses_the_schema_does_not_hold_to_it(ollama: OllamaServer) -> None:
    ollama.script(Fault.status(400, "json: cannot unmarshal object into Go struct field ChatRequest.format"))
    with session(ollama) as opened:
        assert schema_fact(opened.probe(ROUTE)) == (False, "probed")


def test_nothing_is_concluded_from_a_trial_that_failed(ollama: OllamaServer) -> None:
    with session(ollama) as opened:
        opened.probe(ROUTE)
        ollama.script(Fault.status(503))
        with pytest.raises(LLMUnavailable):
            opened.probe(ROUTE)
        assert schema_fact(opened.facts(ROUTE)) == (True, "probed")


def test_extraction_asks_in_a_weaker_way_where_schemas_are_ignored(
    ollama: OllamaServer,
) -> None:
    """Also in a later session."""
    ollama.ignores_schema = True
    ollama.models = [OllamaModel("llama3.2", capabilities=("completion",))]
    with session(ollama) as opened:
        opened.probe(ROUTE)
    ollama.script('{"name": "Rome"}')
    with session(ollama) as later:
        assert later.extract(City, "Rome", route=ROUTE) == City(name="Rome")
        assert "format" not in ollama.calls[-1].json
        with pytest.raises(LLMUnsupported, match=r"constrained to a schema \(probed\)"):
            later.chat("x", route=ROUTE, response_format={"json_schema": City.model_json_schema()})


def test_a_trial_is_over_when_the_model_is_another(ollama: OllamaServer) -> None:
    ollama.ignores_schema = True
    with session(ollama) as opened:
        opened.probe(ROUTE)
    ollama.models = [OllamaModel("llama3.2", digest="c" * 64)]
    with session(ollama) as later:
        assert schema_fact(later.facts(ROUTE)) == (True, "declared")


def answer(text: str, schema_sha256: str | None = "s") -> LLMResponse:
    attempt = Attempt(
        route=ROUTE,
        number=1,
        status=AttemptStatus.SUCCEEDED,
        started_at_utc=utc_now(),
        latency_ms=1.0,
        schema_sha256=schema_sha256,
    )
    return LLMResponse(text=text, route=ROUTE, attempts=(attempt,))


@given(st.text() | st.sampled_from(["{}", "null", '{"llmkit_probe": "sea"}', '```json\n{"llmkit_probe": "held"}\n```']))
def test_only_the_one_object_that_fits_counts_as_held(text: str) -> None:
    assert not follows_schema(answer(text))
    assert follows_schema(answer(f" {json.dumps(EXPECTED)}\n"))
    assert not follows_schema(answer(json.dumps(EXPECTED), schema_sha256=None))  # only told in words


# -- the file --------------------------------------------------------------------------------------


def stored(address: str = "http://a", *, days_ago: int = 0, holds: bool = True) -> StoredProbe:
    at = utc_now() - timedelta(days=days_ago)
    return StoredProbe(route=Route.parse(ROUTE), address=address, digest="d", json_schema=holds, at_utc=at)


def test_the_last_trial_of_a_model_at_an_address_is_kept_for_thirty_days(tmp_path: Path) -> None:
    file = ProbeFile(tmp_path / "cache")
    assert file.load() == ()
    for probe in (stored(), stored("http://b", days_ago=31), stored("http://c"), stored(holds=False)):
        file.keep(probe)
    assert {probe.address: probe.json_schema for probe in file.load()} == {"http://c": True, "http://a": False}
    assert (tmp_path / "cache" / "probes.json").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["probes.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"form": "other"}', b"\xff\x00", b'{"probes": [{}]}'])
def test_a_damaged_file_is_an_empty_one_and_is_replaced(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "probes.json").write_bytes(content)
    file = ProbeFile(tmp_path)
    assert file.load() == ()
    file.keep(stored())
    assert len(file.load()) == 1


def test_a_folder_that_cannot_be_written_costs_only_the_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    file = ProbeFile(tmp_path / "file")
    file.keep(stored())
    assert file.load() == ()


def test_nothing_is_written_when_the_cache_is_off(ollama: OllamaServer) -> None:
    with session(ollama, cache_enabled=False) as opened:
        opened.probe(ROUTE)
    assert not load_settings().cache_dir.exists()


# -- the other trials ------------------------------------------------------------------------------

SHOWN = ("json_schema", "json_object", "tools", "tools_with_schema", "seed", "images", "usage")


def answer_honestly(request: RecordedRequest) -> Reply:
    """Do what each trial asks for, as a model can that does everything."""
    body = request.json
    text = json.dumps(body["messages"])
    if "image_url" in text:
        return Reply("Yellow.")
    if body.get("tools"):
        return Reply(tool_calls=[ToolCall("report_number", {"number": 7})])
    return Reply(f"words of {body['seed']}") if "seed" in body else Reply()


def lab(server: OpenAIServer, **settings: object) -> Session:
    endpoints = json.dumps({"lab": {"kind": "openai", "api_base": server.api_base, "model": "m", "local": True}})
    return Session("study", endpoints=endpoints, max_retries=0, **settings)


def probed(facts: ModelFacts) -> dict[str, object]:
    return {name: fact.value for name, fact in facts if fact.source == "probed"}


def test_a_model_that_does_everything_is_seen_to_in_eight_calls() -> None:
    with OpenAIServer(answer_honestly, models=["m"]) as server, lab(server) as opened:
        found = opened.probe("lab/m")
        assert probed(found) == dict.fromkeys(SHOWN, True)
        assert server.call_count == MOST_CALLS == 8
        assert all(fact.at_utc is not None for name, fact in found if name in SHOWN)
        with lab(server) as later:
            assert probed(later.facts("lab/m")) == dict.fromkeys(SHOWN, True)


def test_what_a_server_refuses_or_ignores_is_seen_and_planned_for() -> None:
    poor = OpenAIModel("m", capabilities=("json_schema",))
    quiet = OpenAIDialect(reports_usage=False)
    with OpenAIServer(models=[poor], dialect=quiet) as server, lab(server) as opened:
        # The stand-in says the same whatever the seed is, which shows nothing.
        shown = {"json_schema": True, "json_object": False, "tools": False, "images": False, "usage": False}
        assert probed(opened.probe("lab/m")) == shown
        sent = server.call_count
        with pytest.raises(LLMUnsupported, match=r"cannot call tools \(probed\)"):
            opened.chat("Hi", tools=TOOLS, route="lab/m")
        assert server.call_count == sent
        answer = opened.chat("Hi", response_format={}, route="lab/m")
        assert "response_format" not in server.calls[-1].json
        assert answer.warnings == ("lab was not asked for JSON, only the prompt asks for it.",)


def test_retries_count_as_requests_of_the_probe() -> None:
    """The schema and all that follows: an empty answer is asked for once more."""

    def answer_few(request: RecordedRequest) -> Reply:
        shape = request.json.get("response_format", {}).get("type")
        return Reply() if shape == "json_schema" or "seed" in request.json else Reply("")

    with OpenAIServer(answer_few, models=["m"]) as server:
        endpoints = json.dumps({"lab": {"kind": "openai", "api_base": server.api_base, "model": "m", "local": True}})
        with Session("study", endpoints=endpoints, retry_max_wait_s=0.001) as opened:
            assert probed(opened.probe("lab/m"))["json_schema"] is True
        assert server.call_count == 8


def test_answers_that_differ_with_one_seed_are_seen() -> None:
    counter = iter(range(99))
    with OpenAIServer(lambda _request: Reply(f"word {next(counter)}"), models=["m"]) as server, lab(server) as opened:
        assert opened.probe("lab/m").as_dict()["seed"]["value"] is False


def test_a_model_of_a_third_party_is_probed_only_where_that_is_paid_for() -> None:
    with GeminiServer(api_key="k") as gemini:
        settings = {"gemini_api_base": f"{gemini.url}/v1beta", "gemini_api_key": "k", "max_retries": 0}
        with Session("study", **settings) as opened:
            with pytest.raises(LLMBadRequest, match="up to 8 small requests, which may be billed: pass paid=True"):
                opened.probe("gemini/gemini-2.5-flash")
            assert gemini.call_count == 0
            assert schema_fact(opened.probe("gemini/gemini-2.5-flash", paid=True)) == (True, "probed")
            assert 1 <= gemini.call_count <= 8


def test_a_probe_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    at = utc_now().isoformat()
    old = {
        "route": {"provider": "ollama", "model": "m"},
        "address": "a",
        "digest": None,
        "json_schema": True,
        "at_utc": at,
    }
    (tmp_path / "probes.json").write_text(json.dumps({"form": "llmkit-probes-1", "probes": [old]}))
    (kept,) = ProbeFile(tmp_path).load()
    assert probed(kept.facts) == {"json_schema": True}
