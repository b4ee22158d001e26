"""Tables of endpoints: what is read, what is refused, and that no message shows a value."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.endpoints.tables import BadEndpointError, read_tables, read_text
from llmkit.errors import LLMConfigurationError
from llmkit.providers import KINDS, load_endpoints
from llmkit.settings import LLMSettings, load_settings
from llmkit.types import LLMProfile

LAB = {"kind": "openai", "api_base": "http://127.0.0.1:9/v1", "model": "qwen3-8b"}
CANARY = "sk-proj-tablecanary00000000001"


def write(text: str, path: Path = Path("llmkit.toml")) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def load(**fields: object) -> LLMSettings:
    return load_settings(endpoints={"lab": {**LAB, **fields}})


def test_every_field_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_KEY", f" {CANARY}\n")
    write(
        """
        [endpoints.lab]
        kind = "openai"
        api_base = "https://lab.example.org/v1?api-version=1"
        api_key_env = "LAB_KEY"
        model = "qwen3-8b"
        local = true
        profiles = ["fast", "balanced"]
        requests_per_minute = 60
        tokens_per_minute = 90000
        headers = { X-Title = "study" }
        """
    )
    lab = load_settings().endpoints["lab"]
    assert (lab.name, lab.kind, lab.model, lab.source) == ("lab", "openai", "qwen3-8b", "llmkit.toml")
    assert (lab.api_base, lab.api_key_env, lab.api_key) == (
        "https://lab.example.org/v1?api-version=1",
        "LAB_KEY",
        CANARY,
    )
    assert (lab.local, lab.profiles) == (True, {LLMProfile.FAST, LLMProfile.BALANCED})
    assert (lab.requests_per_minute, lab.tokens_per_minute, dict(lab.headers)) == (60, 90_000, {"X-Title": "study"})
    assert CANARY not in repr(lab) + repr(load_settings())


def test_the_environment_wins_over_the_folder_and_the_folder_over_the_user(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "own"))
    table = '[endpoints.{}]\nkind = "ollama"\nmodel = "{}"\n'
    write(
        table.format("a", "user") + table.format("b", "user") + table.format("c", "user"),
        tmp_path / "own/llmkit/llmkit.toml",
    )
    write(table.format("a", "folder") + table.format("b", "folder"))
    monkeypatch.setenv("LLM_ENDPOINTS", json.dumps({"a": {"kind": "ollama", "model": "environment"}}))
    found = load_settings().endpoints
    assert {name: each.model for name, each in found.items()} == {"a": "environment", "b": "folder", "c": "user"}


def test_a_key_may_be_in_the_env_file() -> None:
    Path(".env").write_text(f"LAB_KEY={CANARY}\n", encoding="utf-8")
    assert load(api_base="https://lab.example.org/v1", api_key_env="LAB_KEY").endpoints["lab"].api_key == CANARY


FILE_ERRORS = {
    "no kind": ('model = "x"', "kind: is missing"),
    "no model": ('kind = "openai"', "model: is missing; it names the model of calls that name none"),
    "empty model": ('kind = "openai"\nmodel = " "', "model: must be a string"),
    "key": (f'kind = "openai"\nmodel = "x"\napi_key = "{CANARY}"', "api_key: a key does not belong here"),
    "key as a name": (f'kind = "openai"\nmodel = "x"\napi_key_env = "{CANARY}"', "api_key_env: must be the name"),
    "key in a header": (
        f'kind = "openai"\nmodel = "x"\nheaders = {{ Authorization = "Bearer {CANARY}" }}',
        "headers.Authorization: a key does not belong here",
    ),
    "password": (
        f'kind = "openai"\nmodel = "x"\napi_base = "https://me:{CANARY}@lab/v1"',
        "api_base: contains a password, which does not belong into a file; move the table to LLM_ENDPOINTS",
    ),
    "key in a query": (
        f'kind = "openai"\nmodel = "x"\napi_base = "https://lab/v1?api-version=1&subscription-key={CANARY}"',
        "api_base: contains a key ('subscription-key'), which does not belong here",
    ),
    "plain http with a key": (
        'kind = "openai"\nmodel = "x"\napi_base = "http://lab/v1"\napi_key_env = "K"',
        "api_base: plain http would show the key to the network; use https",
    ),
    "no scheme": ('kind = "openai"\nmodel = "x"\napi_base = "lab:8000/v1"', "api_base: must begin with http://"),
    "misspelt field": ('kind = "openai"\nmodle = "x"', "modle: unknown field; did you mean model?"),
    "other tool's name": ('kind = "openai"\nbase_url = "x"', "base_url: unknown field; did you mean api_base?"),
    "misspelt profile": (
        'kind = "openai"\nmodel = "x"\nprofiles = ["fats"]',
        "unknown profile 'fats'; did you",
    ),
    "limit": (
        'kind = "openai"\nmodel = "x"\nrequests_per_minute = 0',
        "must be a whole number from 1",
    ),
    "local": ('kind = "openai"\nmodel = "x"\nlocal = "yes"', "local: must be true or false"),
    "line break in a header": (
        'kind = "openai"\nmodel = "x"\nheaders = { A = "b\\nc" }',
        "must be a string",
    ),
}


@pytest.mark.parametrize("case", FILE_ERRORS)
def test_an_error_is_one_line_that_names_file_table_and_field(case: str) -> None:
    text, message = FILE_ERRORS[case]
    write(f"[endpoints.lab]\n{text}\n")
    with pytest.raises(LLMConfigurationError) as caught:
        load_settings()
    assert str(caught.value).startswith("llmkit.toml, [endpoints.lab], ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "opnai"}, "endpoints=, [endpoints.lab], kind: unknown kind 'opnai'; did you mean openai?"),
        ({"kind": "local"}, "unknown kind 'local'; known: openai, anthropic, ollama, gemini"),
        ({"api_base": "https://x/v1/chat/completions"}, "api_base: must end before /chat/completions, mostly with /v1"),
        ({"kind": "ollama"}, "api_base: must not end with /v1: remove it, or set kind to openai"),
        ({"kind": "gemini", "api_base": "https://x/v1beta/models"}, "api_base: must end before /models"),
    ],
)
def test_a_kind_refuses_what_it_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(LLMConfigurationError) as caught:
        load_endpoints(load(**fields))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[endpoints.lab", "llmkit.toml is not valid TOML"),
        ("[endpoint.lab]", "llmkit.toml, [endpoint]: unknown table; did you mean endpoints?"),
        ('[endpoints]\nkind = "openai"', "llmkit.toml, [endpoints]: kind is not a table"),
        ('[endpoints."a b"]', "llmkit.toml, [endpoints.a b]: a name has up to 64 letters"),
        ('[endpoints.local]\nkind = "openai"\nmodel = "x"', "llmkit.toml, [endpoints.local]: local is built in"),
        ('[endpoints.gemini]\nkind = "openai"\nmodel = "x"', "llmkit.toml, [endpoints.gemini]: gemini is built in"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_error(text: str, message: str) -> None:
    write(text)
    with pytest.raises(LLMConfigurationError) as caught:
        load_endpoints(load_settings())
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '{"lab": 1}', '{"lab": {"kind": "openai"}}', "5"])
def test_a_bad_variable_is_one_line_that_names_it(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LLM_ENDPOINTS", text)
    with pytest.raises(LLMConfigurationError, match=r"^LLM_ENDPOINTS[^\n]*$"):
        load_settings()


def test_an_empty_key_variable_concerns_its_endpoint_alone() -> None:
    endpoints = load_endpoints(load(api_base="https://lab.example.org/v1", api_key_env="LAB_KEY"))
    problem = endpoints["lab"].configuration_problem(load_settings())
    assert problem == "endpoints=, [endpoints.lab], api_key_env: the variable LAB_KEY is empty; set it"


def test_a_built_in_endpoint_can_be_described_anew() -> None:
    settings = load_settings(endpoints={"ollama": {"kind": "ollama", "api_base": "http://gpu:11434", "model": "big"}})
    spec = load_endpoints(settings)["ollama"]
    assert (spec.address(settings), spec.default_model(settings)) == ("http://gpu:11434", "big")


def test_openai_is_an_endpoint_as_soon_as_it_has_a_key() -> None:
    assert "openai" not in load_endpoints(load_settings())
    assert "openai" in load_endpoints(load_settings(openai_api_key="sk-x"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.dictionaries(
    st.sampled_from([*LAB, "api_key_env", "local", "profiles", "requests_per_minute", "headers"]) | st.text(max_size=9),
    JSON | st.sampled_from(["openai", "http://x", "https://[", "https://a:b@c/d?e#f"]),
)


@given(tables=st.dictionaries(st.sampled_from(["lab", "a b", ""]) | st.text(max_size=9), FIELDS | JSON) | JSON)
def test_any_table_is_read_or_refused_in_one_line(tables: object) -> None:
    lines = []
    for read in (partial(read_tables, tables, "f"), partial(read_text, json.dumps(tables))):
        try:
            for endpoint in read(lambda _: None).values():
                KINDS.get(endpoint.kind, KINDS["openai"]).find_address_problem(endpoint.api_base)
        except BadEndpointError as error:
            lines.append(str(error))
    assert not any("\n" in line for line in lines), lines
