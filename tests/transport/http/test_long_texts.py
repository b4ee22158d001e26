"""Foreign texts of a megabyte: every function that matches in them takes time in proportion to their length."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from llmkit.providers import PROVIDERS, surely_exceeds
from llmkit.providers.prompt_tokens import estimate_text_tokens
from llmkit.settings import load_settings
from llmkit.transport.http import error_mapping
from llmkit.transport.http.error_mapping import MATCHED_CHARS, failure
from llmkit.transport.http.error_rules import RULES
from llmkit.transport.http.exchange import Exchange
from llmkit.transport.http.quotas import describe_quota
from llmkit.transport.http.replies import drop_reasoning
from llmkit.types import LLMProvider, LLMRequest, Route

pytestmark = pytest.mark.slow

MEGABYTE = 2**20
GROWTH = 32
# Linear work grows 32 times, quadratic work 1,024 times; the margin is for noise and for caches of the processor.
LINEAR_AT_MOST = 8 * GROWTH

PIECES = (
    "model ", "model not", "AbAb", "a1", "  ", "\n \n", "<think>", "</think", "</think>x", "limit: ", "per ", "😀",
    "context ", "x", "[", '"', "\\", "quota", "tokens per min ", "eyJ-", "credit ",
)  # fmt: skip


def time_s(function: Callable[[str], Any], text: str) -> float:
    """Return the shortest CPU time of several runs."""
    took = []
    for _ in range(3):
        began = time.thread_time()
        function(text)
        took.append(time.thread_time() - began)
    return min(took)


def grow(function: Callable[[str], Any], piece: str) -> float:
    """Return by how much the work grows from a part of a megabyte to a whole one."""
    long = (piece * (MEGABYTE // len(piece) + 1))[:MEGABYTE]
    # What takes no time at all is not measured: its ratio would be noise.
    return time_s(function, long) / max(time_s(function, long[: MEGABYTE // GROWTH]), 0.0005)


FUNCTIONS: dict[str, Callable[[str], Any]] = {
    "estimate_text_tokens": estimate_text_tokens,
    "drop_reasoning": drop_reasoning,
    "read_refusal": error_mapping._read_refusal,
    "surely_exceeds": lambda text: surely_exceeds(LLMRequest(messages=text), 10),
}


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_work_on_a_text_is_linear(name, piece):
    assert grow(FUNCTIONS[name], piece) < LINEAR_AT_MOST


def exchange_of(provider: LLMProvider, body: bytes, status: int) -> Exchange:
    spec, settings = PROVIDERS[provider], load_settings(gemini_api_key="key-for-tests")
    route = Route(provider=provider, model="m")
    exchange = Exchange(spec=spec, arguments=spec.call_arguments(settings, route, LLMRequest(messages="Hi"), None))
    exchange.request_leaves("/", b"{}")
    exchange.reply_arrives(status, {}, body)
    return exchange


SHAPES: dict[str, Callable[[str], Any]] = {
    "message": lambda text: {"error": {"message": text, "status": text}},
    "string": lambda text: {"error": text},
    "detail": lambda text: {"detail": text},
    "list": lambda text: [{"error": {"message": text}}],
    "quota": lambda text: {
        "error": {"message": "x", "details": [{"violations": [{"quotaId": text}]}, {"reason": text}]}
    },
}


@pytest.mark.parametrize("provider", [LLMProvider.OLLAMA, LLMProvider.GEMINI])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("status", [400, 429])
def test_rules_are_matched_in_a_short_text_whatever_the_server_sends(provider, shape, status, monkeypatch):
    seen = []
    find = error_mapping.rule_for
    monkeypatch.setattr(error_mapping, "rule_for", lambda failed: seen.append(failed.text) or find(failed))
    for piece in PIECES:
        body = json.dumps(SHAPES[shape](piece * (MEGABYTE // len(piece)))).encode()
        error = failure(exchange_of(provider, body, status), LLMRequest(messages="Hi"), ValueError(), 1.0)
        assert len(str(error)) < 1_500
    assert len(seen) == len(PIECES)
    assert max(map(len, seen)) <= MATCHED_CHARS + 3


@pytest.mark.parametrize("body", [b"model not " * 100_000, b"\xff" * MEGABYTE, b"[" * MEGABYTE, b'"' * MEGABYTE])
def test_plain_text_is_cut_too(body, monkeypatch):
    seen = []
    find = error_mapping.rule_for
    monkeypatch.setattr(error_mapping, "rule_for", lambda failed: seen.append(failed.text) or find(failed))
    failure(exchange_of(LLMProvider.OLLAMA, body, 400), LLMRequest(messages="Hi"), ValueError(), 1.0)
    assert len(seen[0]) <= MATCHED_CHARS + 3


def test_the_reason_at_the_end_of_a_long_message_still_counts():
    body = json.dumps({"error": "x" * MEGABYTE + " exceeds the context length"}).encode()
    error = failure(exchange_of(LLMProvider.OLLAMA, body, 400), LLMRequest(messages="Hi"), ValueError(), 1.0)
    assert error.code == "context_overflow"


def test_no_rule_repeats_without_a_bound():
    """Two unbounded repetitions in a row are quadratic; the table needs none at all."""
    assert [rule.pattern for rule in RULES if "*" in rule.pattern or "+" in rule.pattern] == []


@pytest.mark.parametrize("piece", ["model ", "x", "😀", "\n \n"])
def test_masking_of_the_prompt_is_linear_in_the_prompt(piece):
    body = json.dumps({"error": piece * 400}).encode()

    def fail_with(prompt: str) -> None:
        failure(exchange_of(LLMProvider.OLLAMA, body, 400), LLMRequest(messages=prompt), ValueError(), 1.0)

    assert grow(fail_with, piece) < LINEAR_AT_MOST


@pytest.mark.parametrize("count", [1, 10**5])
def test_only_the_first_quotas_of_a_list_are_read(count):
    violations = [{"quotaId": "RequestsPerMinute", "quotaValue": "5"}] * count
    assert describe_quota({"error": {"details": [{"violations": violations}]}}, "") == "requests per minute (5)"
