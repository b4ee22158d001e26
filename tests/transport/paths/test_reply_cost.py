"""Prices by the token are LiteLLM's whole calculation, to the last digit, whatever is counted."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmkit.transport.paths.library import Internals, load_internals
from llmkit.transport.paths.reply_cost import Prices
from llmkit.transport.paths.translation import translations

MODELS = ("gemini-2.5-flash", "gemini-2.5-pro", "gemini-2.0-flash", "gemini-3-pro-preview", "gemini-2.5-flash-lite")


@pytest.fixture(scope="module")
def internals() -> Internals:
    return load_internals()


@pytest.fixture
def prices(internals) -> Prices:
    return translations(internals)["gemini"].prices


def reply_of(model: str, prompt: int, text: int, reasoning: int, **more: Any) -> dict[str, Any]:
    counts = {"promptTokenCount": prompt, "candidatesTokenCount": text, "totalTokenCount": prompt + text + reasoning}
    counts |= {"thoughtsTokenCount": reasoning} if reasoning else {}
    said = {"content": {"parts": [{"text": "x"}]}, "finishReason": "STOP"}
    return {"candidates": [said], "usageMetadata": {**counts, **more}, "modelVersion": model}


def both(
    prices: Prices, model: str, reply: dict[str, Any], headers: dict[str, str] | None = None
) -> list[float | None]:
    completion = prices.read(model, copy.deepcopy(reply))
    return [prices.cost_usd(completion, model, reply, headers or {}), prices.calculate(completion, model)]


COUNTS = st.integers(0, 5000) | st.integers(0, 400_000)


@pytest.mark.slow
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(model=st.sampled_from(MODELS), prompt=COUNTS, text=COUNTS, reasoning=st.just(0) | COUNTS)
def test_a_price_by_the_token_is_the_whole_calculation(prices, model, prompt, text, reasoning):
    details = [{"modality": "TEXT", "tokenCount": prompt}]
    quick, whole = both(prices, model, reply_of(model, prompt, text, reasoning, promptTokensDetails=details))
    assert quick == whole


def test_every_listed_model_of_gemini_has_a_price_by_the_token(prices, internals):
    """Were it otherwise, nothing would be wrong, only slow."""
    chat = [name for name, entry in internals.model_cost.items()
            if name.startswith("gemini/") and entry.get("mode") == "chat"]  # fmt: skip
    without = [name for name in chat if prices._units(name[7:], name[7:]).usd is None]
    assert len(chat) > 20
    assert without == []


@pytest.mark.parametrize(
    "more",
    [
        {"cachedContentTokenCount": 400},
        {"trafficType": "ON_DEMAND_PRIORITY"},
        {"promptTokensDetails": [{"modality": "TEXT", "tokenCount": 600}, {"modality": "AUDIO", "tokenCount": 400}]},
    ],
)
def test_what_is_no_plain_text_is_left_to_litellm(prices, more):
    model = "gemini-2.5-flash"
    quick, whole = both(prices, model, reply_of(model, 1000, 10, 0, **more))
    assert quick == whole != both(prices, model, reply_of(model, 1000, 10, 0))[0]


def test_a_service_tier_is_left_to_litellm(prices):
    reply = reply_of("gemini-2.5-flash", 1000, 10, 0)
    completion = prices.read("gemini-2.5-flash", copy.deepcopy(reply))
    completion.service_tier = "priority"
    told = prices.cost_usd(completion, "gemini-2.5-flash", reply, {"x-gemini-service-tier": "priority"})
    assert told == prices.calculate(completion, "gemini-2.5-flash")


def test_a_model_without_a_price_has_none(prices):
    assert both(prices, "no-such-model", reply_of("no-such-model", 5, 5, 0)) == [None, None]


def test_a_price_that_changes_is_the_new_one(prices, internals, monkeypatch):
    from litellm.utils import _invalidate_model_cost_lowercase_map as forget_cached_prices

    model, reply = "gemini-2.5-flash", reply_of("gemini-2.5-flash", 1000, 10, 0)
    before = both(prices, model, reply)[0]
    with monkeypatch.context() as patched:
        patched.setitem(internals.model_cost[f"gemini/{model}"], "input_cost_per_token", 0.5)
        forget_cached_prices()
        after, whole = both(prices, model, reply)
    forget_cached_prices()
    assert after == whole != before
