"""Providers translate: settings and request in, call arguments out, and nothing else happens."""

from __future__ import annotations

import importlib.util
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.errors import LLMConfigurationError
from llmkit.ports import Endpoint
from llmkit.providers import (
    PROVIDERS,
    answers_on_this_machine,
    collect_secrets,
    compute_min_prompt_tokens,
    estimate_prompt_tokens,
    gemini,
    local,
    ollama,
)
from llmkit.providers.base import build_openai_arguments, find_url_passwords, strip_credentials
from llmkit.providers.ollama import choose_context_window
from llmkit.providers.prompt_tokens import estimate_text_tokens
from llmkit.settings import RouterPolicy, load_settings
from llmkit.types import (
    LLMProvider,
    LLMRequest,
    Message,
    NamedToolChoice,
    ResponseFormat,
    Route,
    ToolCall,
    ToolDefinition,
)

OLLAMA = Route.parse("ollama/llama3.2")
GEMINI = Route.parse("gemini/gemini-2.5-flash")
LOCAL = Route.parse("local/gemma-3-270m")
HI = LLMRequest(messages="Hi")


def test_what_is_left_open_is_left_out():
    assert build_openai_arguments(HI) == {"messages": [{"role": "user", "content": "Hi"}]}


def test_every_field_has_its_place():
    request = LLMRequest(
        messages=(
            Message(role="assistant", tool_calls=(ToolCall(id="c1", name="f", arguments='{"a":1}'),)),
            Message(role="tool", content="2", tool_call_id="c1", tool_name="f"),
        ),
        temperature=0.0,
        max_output_tokens=9,
        seed=0,
        stop=("A", "B"),
        tools=(ToolDefinition(name="f", description="d"),),
        tool_choice=NamedToolChoice(name="f"),
        response_format=ResponseFormat(name="n", json_schema={"type": "object"}),
    )
    assert build_openai_arguments(request) == {
        "messages": [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
            },
            {"role": "tool", "content": "2", "tool_call_id": "c1", "name": "f"},
        ],
        "temperature": 0.0,
        "max_tokens": 9,
        "seed": 0,
        "stop": ["A", "B"],
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    }


def test_json_without_a_schema():
    request = LLMRequest(messages="Hi", response_format=ResponseFormat())
    assert build_openai_arguments(request)["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("text", "limit", "window"),
    [
        ("Hi", None, 4096),
        ("Water boils. " * 500, None, 4096),  # 2,000 tokens in 6.5 kB of prose
        ("Water boils. " * 500, 2_000, 8192),
        ("Water boils. " * 900, None, 8192),
        ("12345 " * 900, None, 8192),  # 5,400 tokens in 5.4 kB of numbers
        ("0f9e" * 2_000, None, 16_384),
        ("😀" * 2_000, None, 16_384),
        ("x9" * 4_500_000, None, 131_072),
    ],
)
def test_ollamas_window_fits_prompt_and_answer(text, limit, window):
    request = LLMRequest(messages=text, max_output_tokens=limit)
    assert choose_context_window(request) == window
    arguments = ollama.SPEC.call_arguments(load_settings(), OLLAMA, request, None)
    assert arguments.context_tokens == arguments.kwargs["num_ctx"] == window


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        ("The cat sat on the mat.", 7),
        ("internationalization", 6),
        ("2024-05-01", 13),
        ("HELLO", 3),
        ("naïve", 3),
        ("日本", 4),
        ("😀", 4),
        ("ACGT" * 10, 41),
        ("\n\n\n\n", 2),
    ],
)
def test_estimated_tokens_of_a_text(text, tokens):
    assert estimate_text_tokens(text) == tokens


@given(st.text(max_size=300))
def test_an_estimate_is_no_more_than_two_tokens_a_byte(text):
    assert estimate_text_tokens(text) <= 2 * len(text.encode(errors="replace")) + 1


@given(st.text(max_size=3000), st.none() | st.integers(1, 50_000))
def test_a_window_is_never_smaller_than_what_it_has_to_hold(text, limit):
    request = LLMRequest(messages=text + "x", max_output_tokens=limit)
    window = choose_context_window(request)
    assert window & (window - 1) == 0
    assert 4096 <= window <= 131_072
    assert window >= estimate_prompt_tokens(request) + (limit or 0)
    assert compute_min_prompt_tokens(request) <= estimate_prompt_tokens(request)


def test_tools_and_their_history_count_as_prompt():
    bare = estimate_prompt_tokens(HI)
    tool = ToolDefinition(name="f", description="d" * 300)
    assert estimate_prompt_tokens(LLMRequest(messages="Hi", tools=(tool,))) > bare + 100
    called = Message(role="assistant", tool_calls=(ToolCall(id="1", name="f", arguments="9" * 300),))
    assert estimate_prompt_tokens(LLMRequest(messages=(called,))) > 100


def test_gemini_takes_key_and_address_from_the_settings():
    settings = load_settings(gemini_api_key="k", gemini_api_base="http://127.0.0.1:8000")
    arguments = gemini.SPEC.call_arguments(settings, GEMINI, HI, None)
    assert arguments.kwargs["api_key"] == "k"
    assert arguments.kwargs["api_base"] == arguments.address == "http://127.0.0.1:8000/v1beta"
    assert "k'" not in repr(arguments)
    assert gemini.SPEC.secrets(settings) == ("k",)


@pytest.mark.parametrize(
    ("base", "address"),
    [
        (None, "https://generativelanguage.googleapis.com/v1beta"),
        ("https://proxy.example.org", "https://proxy.example.org/v1beta"),
        ("https://proxy.example.org/google/v1beta/", "https://proxy.example.org/google/v1beta"),
        ("https://me:pass@proxy.example.org", "https://proxy.example.org/v1beta"),
    ],
)
def test_geminis_address_has_its_version_and_no_credentials(base, address):
    assert gemini.SPEC.address(load_settings(gemini_api_key="k", gemini_api_base=base)) == address


def test_local_is_called_where_its_server_listens():
    endpoint = Endpoint("http://127.0.0.1:9999/v1", "secret")
    arguments = local.SPEC.call_arguments(load_settings(), LOCAL, HI, endpoint)
    own = {"model": "hosted_vllm/gemma-3-270m", "api_base": "http://127.0.0.1:9999/v1", "api_key": "secret"}
    assert own.items() <= arguments.kwargs.items()
    assert arguments.send_key
    assert not local.SPEC.call_arguments(load_settings(), LOCAL, HI, Endpoint("http://127.0.0.1:1/v1")).send_key
    with pytest.raises(LLMConfigurationError):
        local.SPEC.call_arguments(load_settings(), LOCAL, HI, None)


def test_a_missing_extra_names_the_command(monkeypatch):
    assert local.SPEC.configuration_problem(load_settings()) is None
    found = importlib.util.find_spec
    monkeypatch.setattr(local, "find_spec", lambda name: None if name == "xllamacpp" else found(name))
    assert local.SPEC.configuration_problem(load_settings()) == "not installed: pip install 'llmkit-research[local]'"


@pytest.mark.parametrize("key", [None, "  "])
def test_a_missing_key_names_the_variable(key):
    assert gemini.SPEC.configuration_problem(load_settings(gemini_api_key=key)) == "no key: set LLM_GEMINI_API_KEY"


@pytest.mark.parametrize(
    ("provider", "base", "here"),
    [
        ("ollama", "http://localhost:11434", True),
        ("ollama", "http://127.0.0.1:1", True),
        ("ollama", "http://gpu:11434", False),
        ("ollama", "http://localhost@evil.example.org", False),
        ("gemini", "http://127.0.0.1:1", False),
        ("local", None, True),
    ],
)
def test_what_answers_on_this_machine(provider, base, here):
    settings = load_settings(**({f"{provider}_api_base": base} if base else {}))
    assert answers_on_this_machine(PROVIDERS[LLMProvider(provider)], settings) is here


def test_credentials_of_an_address():
    assert strip_credentials("http://a:b@h:1/x/") == "http://h:1/x"
    assert find_url_passwords("http://a:b@h:1/x/") == ("b",)
    assert find_url_passwords("http://h") == ()


@pytest.mark.parametrize(
    ("reply", "blocked", "ended_by", "unreadable"),
    [
        ({"promptFeedback": {"blockReason": "OTHER"}}, "OTHER", None, "the reply contains no candidate"),
        (
            {"promptFeedback": {"blockReason": "SAFETY"}},
            "SAFETY: a safety filter",
            None,
            "the reply contains no candidate",
        ),
        ({"candidates": [{"finishReason": "SPII"}]}, "SPII: it contains personal data", None, None),
        ({"candidates": [{"finishReason": "STOP"}]}, None, None, None),
        ({"candidates": []}, None, None, "the reply contains no candidate"),
        ({"candidates": [{"finishReason": "OTHER"}]}, None, "it gives no reason (OTHER)", None),
        (
            {"candidates": [{"finishReason": "UNEXPECTED_TOOL_CALL"}]},
            None,
            "the model called a tool that it was not given",
            None,
        ),
    ],
)
def test_facts_that_gemini_reports_in_a_reply(reply, blocked, ended_by, unreadable):
    facts = gemini.SPEC.reply_facts(reply)
    assert (facts.blocked, facts.ended_by, facts.unreadable) == (blocked, ended_by, unreadable)
    assert not facts.counts_reported


@pytest.mark.parametrize("spec", PROVIDERS.values(), ids=lambda spec: str(spec.provider))
@pytest.mark.parametrize(
    "reply",
    [
        {},
        {"error": None},
        {"candidates": "x", "usage": 1, "usageMetadata": [], "error": "e"},
        {
            "candidates": [
                {"content": {"parts": 5}},
                {"content": 5},
                {"content": {"parts": [5, {"functionCall": 5}]}},
                5,
            ]
        },
        {"message": {"tool_calls": [5, {"function": 5}], "thinking": 5}, "prompt_eval_count": "x"},
        {"message": {"tool_calls": 5, "content": 5}},
    ],
)
def test_facts_of_a_foreign_reply_are_no_crash(spec, reply):
    spec.reply_facts(reply)
    spec.sent_schema(reply)
    spec.mend_reply(reply)


@pytest.mark.parametrize("spec", PROVIDERS.values(), ids=lambda spec: str(spec.provider))
def test_every_provider_has_every_hint(spec):
    wanted = {"set_up", "start", "key", "permission", "model", "limit", "address", "cut", "logprobs", "path"}
    assert set(spec.hints) == wanted
    assert spec.caps.supports_json


def test_the_secrets_of_every_provider_are_masked():
    settings = load_settings(gemini_api_key="AIza-key", ollama_api_base="http://me:pass%21word@127.0.0.1:1")
    assert set(collect_secrets(settings)) == {"AIza-key", "pass%21word", "pass!word"}


def test_every_policy_ranks_every_provider_once():
    for policy in get_args(RouterPolicy):
        assert sorted(spec.policy_ranks[policy] for spec in PROVIDERS.values()) == list(range(len(PROVIDERS)))


@pytest.mark.parametrize("count", [0, -1, True, None, "7", 1.5])
def test_a_prompt_count_that_is_no_count_is_unknown(count):
    reply = {"message": {"content": "fine"}, "prompt_eval_count": count, "eval_count": 3}
    facts = ollama.SPEC.reply_facts(reply)
    assert (facts.prompt_tokens, facts.counts_reported) == (None, False)
    assert "prompt_eval_count" not in ollama.SPEC.mend_reply(reply)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "", "thinking": ' {"a": 1}\n'}, '{"a": 1}'),
        ({"content": "", "thinking": "I wonder."}, ""),
        ({"content": "", "thinking": '{"a": 1'}, ""),
        ({"content": "fine", "thinking": '{"a": 1}'}, "fine"),
        ({"content": "", "thinking": '{"a": 1}', "tool_calls": [{}]}, ""),
    ],
)
def test_a_json_object_in_thinking_is_the_answer_when_there_is_no_other(message, text):
    assert ollama.SPEC.mend_reply({"message": message})["message"]["content"] == text


def test_a_reply_of_hidden_reasoning_alone_is_named_as_such():
    facts = ollama.SPEC.reply_facts({"message": {"content": "", "thinking": "I wonder."}})
    assert "hidden reasoning" in facts.unreadable
