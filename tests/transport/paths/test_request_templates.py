"""Shortcuts of the fast path give what LiteLLM gives: filled templates, and replies read at a glance."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.canonical_json import sha256_of
from llmkit.ports import Endpoint
from llmkit.providers import BUILT_IN, CallArguments
from llmkit.settings import load_settings
from llmkit.transport.http.exchange import Exchange
from llmkit.transport.http.http_pool import Pool
from llmkit.transport.paths.fast import FastParts, FastPath, load_parts
from llmkit.transport.paths.reply_shortcuts import as_plain
from llmkit.transport.paths.translation import PreparedRequest, RawReply, Translation
from llmkit.types import LLMProvider, LLMRequest, Message, ResponseFormat, Route
from tests.support.request_matrix import FLAT, REQUESTS, WEATHER

ROUTES = (
    "ollama/llama3.2",
    "gemini/gemini-2.5-flash",
    "gemini/gemma-3-27b-it",
    "local/gemma-3-270m",
    "openai/gpt-4o-mini",
)
SETTINGS = load_settings(gemini_api_key="AIzaSyCanary0123456789-canary_canary", gemini_api_base="http://127.0.0.1:9")
ONCE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(scope="module")
def parts() -> FastParts:
    loaded = load_parts()
    assert loaded is not None
    return loaded


def arguments(route: str, request: LLMRequest) -> CallArguments:
    asked = Route.parse(route)
    endpoint = Endpoint("http://127.0.0.1:9/v1")
    return BUILT_IN[asked.provider].call_arguments(SETTINGS, asked, request, endpoint)


def on_the_wire(prepared: PreparedRequest | None) -> Any:
    return prepared and (prepared.url, dict(prepared.headers), prepared.body, prepared.model)


@dataclass
class Counting:
    """A translation that notes how often it is asked."""

    real: Translation
    asked: list[Any] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def prepare(self, model: str, given_arguments: Any) -> PreparedRequest:
        self.asked.append([message["content"] for message in given_arguments["messages"]])
        return self.real.prepare(model, given_arguments)


@pytest.fixture
def counted(parts) -> tuple[FastPath, dict[str, Counting]]:
    translations = {name: Counting(each) for name, each in parts.translations.items()}
    return FastPath(Pool(), replace(parts, translations=translations)), translations


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    st.sampled_from(["", " ", "<think>a</think>b", "<b>", '"', "\\", "\u2028", "\x00", "llmkit-text-0-87b0c7e1",
                     '"llmkit-text-1-87b0c7e1"', "data:audio/wav;base64,AAAA", "{}", "a\n<think>b</think>"]),
)  # fmt: skip
SCHEMA = ResponseFormat(json_schema=FLAT)
SHAPES = st.lists(st.sampled_from(["system", "user", "assistant"]), min_size=1, max_size=4)
OTHERS = st.sampled_from(
    [
        {},
        {"temperature": 0, "max_output_tokens": 100},
        {"stop": ("x", "ü"), "seed": 3},
        {"response_format": SCHEMA},
        {"tools": (WEATHER,), "tool_choice": "auto"},
    ]
)


@ONCE
@given(SHAPES, st.lists(st.lists(TEXTS, min_size=4, max_size=4), min_size=3, max_size=5), OTHERS,
       st.sampled_from(ROUTES))  # fmt: skip
def test_a_filled_form_is_the_translation_of_its_texts(parts, roles, rounds, others, route):
    learning = FastPath(Pool(), parts)
    for texts in rounds:
        said = tuple(Message(role=role, content=text) for role, text in zip(roles, texts, strict=False))
        asked = LLMRequest(messages=said, **others)
        quick = learning.prepare(arguments(route, asked))
        assert on_the_wire(quick) == on_the_wire(FastPath(Pool(), parts).prepare(arguments(route, asked)))


@settings(ONCE, max_examples=40)
@given(SHAPES, st.lists(TEXTS, min_size=4, max_size=4), OTHERS, st.sampled_from(ROUTES))
def test_an_outline_has_the_hashes_of_the_body_that_is_sent(parts, roles, texts, others, route):
    path, spec = FastPath(Pool(), parts), BUILT_IN[Route.parse(route).provider]
    for said in (["a"] * 4, ["b"] * 4, texts):
        messages = tuple(Message(role=role, content=text) for role, text in zip(roles, said, strict=False))
        given_arguments = arguments(route, LLMRequest(messages=messages, **others))
        prepared = path.prepare(given_arguments)
    if prepared is None:  # for the reference path
        return
    exchange = partial(Exchange, spec=spec, arguments=given_arguments)
    known = exchange(outline=prepared.outline, texts=[each.content for each in messages])
    read = exchange()
    for each in (known, read):
        each.request_leaves("/some/ü", prepared.body)
    assert known.params_sha256 == read.params_sha256
    assert (known.sent_schema, known.schema_sha256) == (read.sent_schema, read.schema_sha256)


def test_what_never_left_has_no_hashes(parts):
    path = FastPath(Pool(), parts)
    given_arguments = arguments("ollama/llama3.2", LLMRequest(messages="Hi", response_format=SCHEMA))
    found = [path.prepare(given_arguments) for _ in range(3)]
    outlines = [each and each.outline for each in found]
    assert outlines[:2] == [None, None], "the third of a kind has one"
    spec = BUILT_IN[LLMProvider.OLLAMA]
    exchange = Exchange(spec=spec, arguments=given_arguments, outline=outlines[2], texts=["Hi"])
    assert (exchange.params_sha256, exchange.sent_schema, exchange.schema_sha256) == (None, None, None)
    exchange.request_leaves("/api/chat", found[2].body)
    assert exchange.params_sha256 is not None
    assert (exchange.sent_schema, exchange.schema_sha256) == (FLAT, sha256_of(FLAT))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", REQUESTS)
def test_the_tenth_request_of_any_kind_is_as_the_first(parts, name, route):
    asked = LLMRequest(**{"messages": "Hi", **REQUESTS[name]})
    path = FastPath(Pool(), parts)
    assert len({repr(on_the_wire(path.prepare(arguments(route, asked)))) for _ in range(4)}) == 1


@pytest.mark.parametrize("route", ROUTES)
def test_a_kind_is_translated_three_times_and_then_no_more(counted, route):
    path, translations = counted
    for number in range(5):
        path.prepare(arguments(route, LLMRequest(messages=f"text {number}")))
    (asked,) = [each.asked for each in translations.values() if each.asked]
    assert asked[:2] == [["text 0"], ["text 1"]]
    assert len(asked) == 3


def test_ever_new_kinds_are_translated_once_each(counted):
    path, translations = counted
    for seed in range(600):
        path.prepare(arguments("ollama/llama3.2", LLMRequest(messages="Hi", seed=seed)))
    assert len(translations["ollama_chat"].asked) == 600
    assert len(path._forms._forms) <= 512


def test_what_litellm_learns_of_a_model_makes_a_form_old(counted, parts, monkeypatch):
    path, translations = counted
    for number in range(3):
        path.prepare(arguments("gemini/gemini-2.5-flash", LLMRequest(messages=f"{number}")))
    monkeypatch.setitem(parts.model_cost["gemini/gemini-2.5-flash"], "supports_system_messages", "who knows")
    path.prepare(arguments("gemini/gemini-2.5-flash", LLMRequest(messages="anew")))
    assert translations["gemini"].asked[-1] == ["anew"]


def test_no_form_holds_a_prompt(parts):
    path = FastPath(Pool(), parts)
    for _ in range(3):
        path.prepare(arguments("ollama/llama3.2", LLMRequest(messages="my-private-text")))
    (form,) = path._forms._forms.values()
    assert b"my-private-text" not in b"".join(piece for piece in form.pieces if isinstance(piece, bytes))
    assert "my-private-text" not in str(form.prepared.messages)


# -- answers ---------------------------------------------------------------------------------------

COUNTS = st.integers(0, 200_000)
SOMETIMES = st.booleans()


def gemini_reply(draw: Any) -> dict[str, Any]:
    prompt, text, thoughts = draw(COUNTS), draw(COUNTS), draw(COUNTS)
    usage: dict[str, Any] = {"promptTokenCount": prompt, "totalTokenCount": draw(st.sampled_from(
        [prompt + text, prompt + text + thoughts, 7]))}  # fmt: skip
    usage |= {"candidatesTokenCount": text} if draw(SOMETIMES) else {}
    usage |= {"thoughtsTokenCount": thoughts} if draw(SOMETIMES) else {}
    usage |= draw(st.sampled_from([{}, {"promptTokensDetails": [{"modality": "TEXT", "tokenCount": prompt}]},
                                   {"cachedContentTokenCount": 3}, {"trafficType": "ON_DEMAND"}]))  # fmt: skip
    part = {"text": draw(TEXTS), **draw(st.sampled_from([{}, {"thought": True}, {"thoughtSignature": "c2ln"}]))}
    end = draw(st.sampled_from(["STOP", "MAX_TOKENS", "WEIRD", "OTHER"]))
    content = {"parts": [part] * draw(st.integers(0, 2)), "role": "model"}
    candidate = {"content": content, "finishReason": end, "index": 0}
    versions = [{}, {"modelVersion": "gemini-2.5-flash"}, {"modelVersion": "gemini-2.5-pro@2"}, {"modelVersion": ""}]
    return {"candidates": [candidate], "usageMetadata": usage, "responseId": "r", **draw(st.sampled_from(versions))}


def ollama_reply(draw: Any) -> dict[str, Any]:
    said = {"role": "assistant", "content": draw(TEXTS), **draw(st.sampled_from([{}, {"thinking": "hm"}]))}
    ends = [{}, {"done_reason": "stop"}, {"done_reason": "length"}, {"done_reason": ""}, {"done_reason": "load"}]
    return {"model": "llama3.2", "message": said, "done": True, "prompt_eval_count": draw(COUNTS),
            "eval_count": draw(COUNTS), **draw(st.sampled_from(ends))}  # fmt: skip


def openai_reply(draw: Any) -> dict[str, Any]:
    prompt, output = draw(COUNTS), draw(COUNTS)
    usage: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
    usage |= draw(st.sampled_from([
        {}, {"prompt_tokens_details": None}, {"prompt_tokens_details": {"cached_tokens": min(3, prompt)}},
        {"completion_tokens_details": {"reasoning_tokens": min(5, output), "audio_tokens": 0}},
        {"prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0}, "completion_tokens_details": {}},
        {"prompt_cache_hit_tokens": 7, "prompt_cache_miss_tokens": 2}, {"total_tokens": None}, {"cost": 0.5},
    ]))  # fmt: skip
    message = {"role": "assistant", "content": draw(TEXTS), **draw(st.sampled_from([
        {}, {"refusal": None}, {"refusal": "No."}, {"tool_calls": []}, {"tool_calls": None}, {"reasoning": "hm"},
        {"reasoning_content": "hm"}, {"role": None}, {"content": None}, {"annotations": []},
    ]))}  # fmt: skip
    end = draw(st.sampled_from(["stop", "length", "content_filter", "eos", None, "tool_calls"]))
    choice = {"index": 0, "message": message, "finish_reason": end, "logprobs": None}
    extra = draw(
        st.sampled_from(
            [
                {},
                {"model": "gpt-4o-mini-2024-07-18"},
                {"model": ""},
                {"provider": "Together"},
                {"service_tier": "flex"},
                {"service_tier": "default"},
                {"error": None},
                {"id": ""},
            ]
        )
    )
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini", "choices": [choice],
            "usage": usage, **extra}  # fmt: skip


def readings(parts: FastParts, route: str, reply: dict[str, Any]) -> tuple[Any, Any]:
    """At a glance, and LiteLLM's, with what each says that it cost."""
    name = {"ollama": "ollama_chat"}.get(route.partition("/")[0], route.partition("/")[0])
    translation = parts.translations[name]
    prepared = PreparedRequest(url="", headers={}, body=b"", model=route.partition("/")[2], messages=[], data={})
    before = copy.deepcopy(reply)
    glanced = translation.glance(prepared, reply, {})
    assert reply == before
    completion = translation.read(prepared, RawReply(200, {}, b"", copy.deepcopy(reply)))
    cost = completion._hidden_params.get("response_cost")
    return glanced, replace(
        as_plain(completion), _hidden_params={"response_cost": cost} if name != "ollama_chat" else {}
    )


@ONCE
@given(
    st.data(),
    st.sampled_from(
        [
            ("gemini/gemini-2.5-flash", gemini_reply),
            ("ollama/llama3.2", ollama_reply),
            ("openai/gpt-4o-mini", openai_reply),
        ]
    ),
)
def test_an_answer_at_a_glance_is_litellms_reading(parts, data, kind):
    route, reply = kind
    glanced, read = readings(parts, route, reply(data.draw))
    assert glanced in (None, read)


PLAINEST = {
    "gemini/gemini-2.5-flash": {
        "candidates": [{"content": {"parts": [{"text": "Yes."}], "role": "model"}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 2, "totalTokenCount": 20,
                          "thoughtsTokenCount": 9, "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 9}]},
        "modelVersion": "gemini-2.5-flash",
    },
    "ollama/llama3.2": {"message": {"role": "assistant", "content": "Yes."}, "prompt_eval_count": 9, "eval_count": 2},
    "openai/gpt-4o-mini": {
        "id": "1", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini-2024-07-18",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes.", "refusal": None},
                     "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11,
                  "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                  "completion_tokens_details": {"reasoning_tokens": 1}},
    },
}  # fmt: skip


@pytest.mark.parametrize("route", PLAINEST)
def test_the_plainest_answers_are_read_at_a_glance(parts, route):
    glanced, read = readings(parts, route, PLAINEST[route])
    assert glanced == read
    assert glanced is not None


NOT_PLAIN = {
    "gemini/gemini-2.5-flash": [
        {"candidates": None}, {"candidates": [None]}, {"candidates": "x"}, {"usageMetadata": None},
        {"usageMetadata": {"promptTokenCount": 1.5}}, {"usageMetadata": {"promptTokenCount": True}},
        {"usageMetadata": {"promptTokenCount": 1, "promptTokensDetails": [None]}},
        {"candidates": [{"content": None, "finishReason": "STOP"}]}, {"promptFeedback": {"blockReason": "SAFETY"}},
        {"candidates": [{"content": {"parts": [None]}, "finishReason": "STOP"}]},
        {"candidates": [{"content": {"parts": [{"text": 7}]}, "finishReason": ["STOP"]}]},
    ],
    "ollama/llama3.2": [
        {"message": None}, {"message": {"role": "assistant", "content": 7}}, {"done_reason": {"a": 1}},
        {"eval_count": "2"}, {"prompt_eval_count": None},
    ],
    "openai/gpt-4o-mini": [
        {"choices": None}, {"choices": [None]}, {"choices": []}, {"usage": None}, {"error": {"message": "x"}},
        {"choices": [{"message": None, "finish_reason": "stop"}]}, {"model": None}, {"usage": {"prompt_tokens": 1}},
        {"choices": [{"message": {"role": "assistant", "content": [{"text": "a"}]}, "finish_reason": "stop"}]},
        {"usage": {"prompt_tokens": True, "completion_tokens": 1, "total_tokens": 2}},
        {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2, "prompt_tokens_details": [1]}},
    ],
}  # fmt: skip


@pytest.mark.parametrize(("route", "change"), [(route, each) for route in NOT_PLAIN for each in NOT_PLAIN[route]])
def test_what_is_not_plain_is_left_to_litellm(parts, route, change):
    name = route.partition("/")[0]
    translation = parts.translations["ollama_chat" if name == "ollama" else name]
    prepared = PreparedRequest(url="", headers={}, body=b"", model="gemini-2.5-flash", messages=[], data={})
    assert translation.glance(prepared, PLAINEST[route], {}) is not None
    assert translation.glance(prepared, {**PLAINEST[route], **change}, {}) is None
