"""Kind `openai` over real HTTP: what is on the wire, one request for each attempt, and where keys go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.client_litellm import LiteLLMClient
from llmkit.errors import LLMConfigurationError, LLMError, LLMRateLimited
from llmkit.ports import AttemptLog
from llmkit.providers.openai import make_strict
from llmkit.settings import load_settings
from llmkit.testing import Fault, OpenAIDialect, OpenAIModel, OpenAIServer, Reply
from llmkit.types import LLMRequest, ResponseFormat, Route, ToolDefinition

PATHS = ("fast", "reference")
KEY = "sk-lab-canary-000000000001"
CITY = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "size": {"type": "integer", "default": 1}},
    "required": ["name"],
}


@pytest.fixture
def lab() -> Iterator[OpenAIServer]:
    with OpenAIServer(Reply("Hi"), models=["m", "vendor/m:free"]) as server:
        yield server


def make_client(server: OpenAIServer, path: str = "reference", **fields: Any) -> LiteLLMClient:
    table = {"kind": "openai", "api_base": server.api_base, "model": "m", **fields}
    return LiteLLMClient(load_settings(endpoints={"lab": table}, request_path=path, max_retries=0))


async def call(client: LiteLLMClient, route: str = "lab/m", log: AttemptLog | None = None, **request: Any) -> Any:
    try:
        return await client.call(Route.parse(route), LLMRequest(messages="Hi", **request), log or AttemptLog())
    finally:
        await client.close()


@pytest.mark.parametrize("path", PATHS)
async def test_every_option_reaches_the_wire_as_it_is(lab: OpenAIServer, path: str) -> None:
    tool = ToolDefinition(name="look_up", parameters={**CITY, "additionalProperties": False})
    options = {"temperature": 0.5, "max_output_tokens": 9, "seed": 7, "stop": ("\n",), "thinking": False}
    await call(make_client(lab, path), "lab/vendor/m:free", tools=(tool,), tool_choice="auto", **options)
    (sent,) = lab.calls
    assert sent.json == {
        "model": "vendor/m:free",
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 0.5,
        "max_tokens": 9,
        "seed": 7,
        "stop": ["\n"],
        "tools": [{"type": "function", "function": tool.model_dump()}],
        "tool_choice": "auto",
        "chat_template_kwargs": {"enable_thinking": False},
    }


@pytest.mark.parametrize("path", PATHS)
async def test_a_key_goes_to_its_endpoint_and_none_where_none_is_named(
    lab: OpenAIServer, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORGANIZATION", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "canary-of-openai")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("LAB_KEY", KEY)
    await call(make_client(lab, path, api_key_env="LAB_KEY", headers={"X-Title": "study"}))
    await call(make_client(lab, path))
    with_key, without = [{name.lower(): value for name, value in each.headers.items()} for each in lab.calls]
    assert (with_key["authorization"], with_key["x-title"]) == (f"Bearer {KEY}", "study")
    assert "authorization" not in without
    sent = str(with_key) + str(without)
    assert "canary-of-openai" not in sent
    assert "x-stainless" not in sent.lower()


@pytest.mark.parametrize("path", PATHS)
async def test_an_address_of_azure_has_a_query_and_its_own_header_for_the_key(
    lab: OpenAIServer, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_KEY", KEY)
    lab.api_key = KEY
    lab.dialect = OpenAIDialect(base_path="/openai/deployments/d", query={"api-version": "2024-10-21"})
    base = f"{lab.api_base}?api-version=2024-10-21"
    assert (await call(make_client(lab, path, api_base=base, api_key_env="LAB_KEY"))).text == "Hi"
    (sent,) = lab.calls
    assert sent.path == "/openai/deployments/d/chat/completions"
    assert sent.query == {"api-version": "2024-10-21"}
    assert (sent.headers["api-key"], sent.headers.get("Authorization")) == (KEY, None)


@pytest.mark.parametrize(
    ("model", "field"), [("m", "max_tokens"), ("o3", "max_completion_tokens"), ("gpt-5-mini", "max_completion_tokens")]
)
async def test_the_name_of_the_output_limit_depends_on_the_model(lab: OpenAIServer, model: str, field: str) -> None:
    lab.models = [OpenAIModel(model, output_limit=field)]  # type: ignore[arg-type]
    await call(make_client(lab), f"lab/{model}", max_output_tokens=9)
    assert {name: value for name, value in lab.calls[0].json.items() if name.startswith("max")} == {field: 9}


@pytest.mark.parametrize("path", PATHS)
async def test_openai_gets_the_strict_form_of_a_schema_and_others_the_schema(path: str) -> None:
    with OpenAIServer(api_key=KEY, models=["m"], dialect=OpenAIDialect(strict_schemas=True)) as server:
        settings = load_settings(
            openai_api_base=server.api_base, openai_api_key=KEY, max_retries=0, request_path=path,
            endpoints={"lab": {"kind": "openai", "api_base": server.api_base, "model": "m", "api_key_env": "LAB_KEY"}},
        )  # fmt: skip
        log, wanted = AttemptLog(), ResponseFormat(json_schema=CITY)
        await call(LiteLLMClient(settings), "openai/m", log, response_format=wanted)
        sent = server.calls[0].json["response_format"]["json_schema"]
    assert (sent["strict"], sent["schema"]) == (True, make_strict(CITY))
    assert log.attempts[0].schema_sha256 is not None


@pytest.mark.parametrize("path", PATHS)
async def test_counts_that_are_not_sent_are_unknown_and_the_server_behind_is_recorded(
    lab: OpenAIServer, path: str
) -> None:
    lab.dialect = OpenAIDialect(reports_usage=False, served_by="DeepInfra")
    lab.script(Reply("Hi", no_usage=True))
    log = AttemptLog()
    reply = await call(make_client(lab, path), log=log)
    assert (reply.usage.input_tokens, reply.usage.output_tokens, reply.usage.estimated) == (None, None, False)
    assert str(log.attempts[0].model_digest).startswith("DeepInfra")
    assert log.attempts[0].cost_usd is None


@pytest.mark.parametrize(
    ("form", "wait_s"), [("seconds", 7.0), ("milliseconds", 7.0), ("message", 7.0), ("reset", 7.0), ("date", None)]
)
async def test_every_form_of_a_wait_is_read(lab: OpenAIServer, form: Any, wait_s: float | None) -> None:
    lab.script(Fault.status(429, retry_after_s=7, retry_after_form=form))
    with pytest.raises(LLMRateLimited) as caught:
        await call(make_client(lab))
    assert caught.value.retry_after_s == wait_s or (wait_s is None and 0 < caught.value.retry_after_s <= 9)
    assert lab.call_count == 1


async def test_a_wrong_path_names_the_field(lab: OpenAIServer) -> None:
    place = "The API of lab is not at .*/v2: set api_base in .endpoints.lab. of endpoints= to what"
    with pytest.raises(LLMConfigurationError, match=place):
        await call(make_client(lab, api_base=f"{lab.url}/v2"))


async def test_an_error_shows_neither_key_nor_password(lab: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_KEY", KEY)
    lab.script(Fault.status(400, f"bad key {KEY} for me:secret-pass-77"))
    log = AttemptLog()
    base = lab.api_base.replace("http://", "http://me:secret-pass-77@")
    with pytest.raises(LLMError) as caught:
        await call(make_client(lab, api_base=base, api_key_env="LAB_KEY"), log=log)
    shown = str(caught.value) + repr(log.attempts)
    assert KEY not in shown
    assert "secret-pass-77" not in shown


SCHEMAS = st.recursive(
    st.sampled_from([{"type": "string"}, {"type": "integer", "minimum": 1}, {"enum": ["a", {"type": "object"}]}]),
    lambda inner: st.one_of(
        st.builds(lambda each: {"type": "array", "items": each}, inner),
        st.builds(lambda some: {"anyOf": some}, st.lists(inner, min_size=1, max_size=2)),
        st.builds(
            lambda each, required: {"type": "object", "properties": each, "required": sorted(required & each.keys())},
            st.dictionaries(st.sampled_from(["a", "default", "properties"]), inner, max_size=3),
            st.sets(st.sampled_from(["a", "default", "properties"])),
        ),
    ),
    max_leaves=6,
)


def find_objects(schema: Any) -> Iterator[dict[str, Any]]:
    if schema.get("type") == "object":
        yield schema
    below = [*schema.get("properties", {}).values(), *schema.get("anyOf", []), *filter(None, [schema.get("items")])]
    for each in below:
        yield from find_objects(each)


@given(schema=SCHEMAS)
def test_the_strict_form_lists_and_requires_every_property(schema: dict[str, Any]) -> None:
    strict = make_strict(schema)
    for found in find_objects(strict):
        assert found["additionalProperties"] is False
        assert sorted(found["required"]) == sorted(found["properties"])
    assert make_strict(strict) == strict


def test_an_object_with_free_properties_has_no_strict_form() -> None:
    with pytest.raises(ValueError, match="free properties"):
        make_strict({"type": "object", "additionalProperties": {"type": "string"}})
