"""Plain-text representations are short, and show no secret."""

from __future__ import annotations

from llmkit import LLMResponse, ModelFacts, Route, RoutePlan, TokenUsage, load_settings
from llmkit.providers.model_facts import Fact
from llmkit.types import PlanEntry

ROUTE = Route.parse("ollama/x")


def test_an_answer_shows_its_beginning_and_its_facts() -> None:
    answer = LLMResponse(text="a" * 1000, route=ROUTE, usage=TokenUsage(input_tokens=1, output_tokens=2))
    assert repr(answer) == f"LLMResponse('{'a' * 60}…', ollama/x, 1 + 2 tokens, 0 ms, billed)"


def test_a_plan_shows_its_candidates() -> None:
    entries = (PlanEntry(route=ROUTE, reason="r"), PlanEntry(route="gemini/y", reason="", excluded_because="no key"))
    assert repr(RoutePlan(policy="p", entries=entries)) == "RoutePlan(ollama/x; 1 excluded)"


def test_facts_show_known_ones_with_their_source() -> None:
    assert (
        repr(ModelFacts(context_tokens=Fact(4096, "reported"))) == "ModelFacts(context_tokens=4,096 tokens (reported))"
    )


def test_settings_show_what_differs_from_the_defaults() -> None:
    settings = load_settings(max_retries=5, gemini_api_key="secret", database_url="postgresql://u:secret@h/d")
    shown = repr(settings)
    assert "max_retries=5" in shown
    assert "secret" not in shown
    assert "cache_ttl_s" not in shown


def test_an_answer_of_this_machine_is_free_and_not_billed() -> None:
    answer = LLMResponse(text="yes", route=Route.parse("local/gemma-3-270m"))
    assert answer.facts[-1] == "free, on this machine"
    assert "billed" not in repr(answer)
