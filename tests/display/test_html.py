"""HTML for notebooks: everything escaped and small."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.lib.pretty import pretty

from llmkit import LLMResponse, Route, RoutePlan, Session, TokenUsage
from llmkit.dataframes import RUN_COLUMNS
from llmkit.dataframes.build import build_frame
from llmkit.display.html import render_card, render_chat, render_table
from llmkit.evals.report.report import EvalReport
from llmkit.notebook.conversation import Conversation, Turn
from llmkit.types import PlanEntry, ServedFrom, ToolCall
from tests.support.run_values import an_eval_result, an_eval_run

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"' style=&{0}{x}</div></td>"
MAX_BYTES = 200_000
ROUTE = Route.parse("ollama/x")


class Reader(HTMLParser):
    """Parser for the tags, and the text as a browser would show it."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.add(tag)
        # Explained numbers are reached by keyboard, and have a title.
        allowed = {"style", "class", "dir", "title", "tabindex"} if tag == "span" else {"style", "class", "dir"}
        assert {name for name, _ in attrs} <= allowed

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _read(shown: str) -> Reader:
    reader = Reader()
    reader.feed(shown)
    reader.close()
    assert not reader.open
    assert reader.tags <= {"div", "table", "thead", "tbody", "tr", "th", "td", "span", "style"}
    return reader


def _response(text: str, **fields: object) -> LLMResponse:
    usage = TokenUsage(input_tokens=1_234, output_tokens=5)
    return LLMResponse(text=text, route=ROUTE, usage=usage, latency_ms=12.3, **fields)


def test_a_response_shows_text_facts_and_warnings_escaped() -> None:
    call = ToolCall(id="1", name="look", arguments='{"a": "<b>"}')
    response = _response(EVIL, warnings=(EVIL,), tool_calls=(call,), served_from=ServedFrom.CACHE)
    text = _read(response._repr_html_()).text
    assert text.count(EVIL) == 2
    assert 'look({"a": "<b>"})' in text
    assert "ollama/x · 1,234 + 5 tokens · 12 ms · from cache, not billed" in text


def test_a_terminal_gets_plain_text() -> None:
    shown = pretty(_response("Hello", warnings=("careful",)))
    assert shown == "Hello\nwarning: careful\n[ollama/x, 1,234 + 5 tokens, 12 ms, billed]"
    talk = Conversation(None, system="s", turns=[Turn("Hi", _response("Ho"))])
    assert pretty(talk) == "system: s\nuser: Hi\nassistant: Ho"


def test_a_conversation_shows_every_turn_escaped() -> None:
    talk = Conversation(None, id=EVIL, system=EVIL, turns=[Turn(EVIL, _response(EVIL))] * 2)
    assert _read(talk._repr_html_()).text.count(EVIL) == 6


def test_a_plan_shows_candidates_and_reasons_for_exclusion() -> None:
    entries = (PlanEntry(route=ROUTE, reason=EVIL), PlanEntry(route="gemini/y", reason="", excluded_because="no key"))
    text = _read(RoutePlan(policy="by_profile", entries=entries)._repr_html_()).text
    assert EVIL in text
    assert "no key" in text
    assert text.startswith("policy by_profile")


def test_a_report_shows_its_summary_and_notes_escaped() -> None:
    run = an_eval_run(name=EVIL, spec={})
    results = [
        an_eval_result(run.id, sample_id=f"s{number}", route=EVIL, scores={EVIL: number % 2}, output_json=EVIL)
        for number in range(4)
    ]
    text = _read(EvalReport(run=run, results=tuple(results))._repr_html_()).text
    assert text.count(EVIL) >= 3
    assert "0.50 [" in text
    assert EvalReport(run=run, results=())._repr_html_()


def test_a_number_of_a_report_is_explained_on_hover_and_focus() -> None:
    run = an_eval_run(spec={})
    results = tuple(an_eval_result(run.id, sample_id=f"s{number}", scores={"m": number % 2}) for number in range(4))
    shown = EvalReport(run=run, results=results)._repr_html_()
    (mean,) = re.findall(r'<span class="llmkit-why" tabindex="0" title="([^"]*)"[^>]*>0\.50 \[', shown)
    assert "0.5 on average on 4 results" in mean
    assert "95 % interval: " in mean
    assert ".llmkit-why:focus::after{content:attr(title)" in shown


def test_large_values_stay_small() -> None:
    run = an_eval_run()
    results = tuple(an_eval_result(run.id, sample_id=f"s{number}") for number in range(10_000))
    long = "<word> " * 10_000
    shown = {
        "report": EvalReport(run=run, results=results)._repr_html_(),
        "conversation": Conversation(None, turns=[Turn(long, _response(long))] * 5_000)._repr_html_(),
        "response": _response(long * 10)._repr_html_(),
        "plan": RoutePlan(policy="p", entries=(PlanEntry(route=ROUTE, reason=long),) * 500)._repr_html_(),
    }
    sizes = {name: len(text.encode()) for name, text in shown.items()}
    assert {name: size for name, size in sizes.items() if size > MAX_BYTES} == {}
    for text in shown.values():
        _read(text)


@pytest.mark.slow
def test_a_frame_of_answers_is_escaped_and_small() -> None:
    values = {"time": "2026-01-01T00:00:00Z", "string": EVIL * 50, "uuid": "x", "boolean": True}
    row = tuple(values.get(kind, 1) for kind in RUN_COLUMNS.values())
    shown = build_frame([row] * 10_000, RUN_COLUMNS)._repr_html_()
    assert "<script>alert" not in shown
    assert "onerror=alert(2)>" not in shown
    assert len(shown.encode()) < MAX_BYTES


@settings(max_examples=60, deadline=None)
@given(st.text(), st.lists(st.text(), max_size=3))
def test_every_text_survives_rendering(text: str, others: list[str]) -> None:
    # A browser, as the parser here, reads every kind of line end as one and drops NUL.
    text, *others = (each.replace("\r", "").replace("\0", "") for each in (text, *others))
    assert text in _read(render_card(text, others, others)).text
    assert text in _read(render_chat([("user", text, others)], "id")).text
    assert text in _read(render_table(["x"], [[text]], notes=others)).text


@pytest.mark.parametrize("value", ["{{ 1 + 1 }}", "{% if x %}", "{# x #}", "{0.__class__}"])
def test_a_value_is_never_a_template(value: str) -> None:
    assert value in render_card(value, [value], [value])


def test_dollars_are_not_a_formula_and_direction_is_automatic() -> None:
    for shown in (
        render_card("from $5 to $10", ()),
        render_chat([("user", "from $5 to $10", ())], "x"),
        render_table(["x"], [["$5 $6"]]),
    ):
        assert shown.startswith('<div class="tex2jax_ignore mathjax_ignore"')
    assert 'dir="auto"' in render_card("שלום", ())


def test_docstrings_have_arguments_and_errors() -> None:
    for name in ("chat", "extract", "map", "conversation", "evaluate", "explain", "facts", "probe", "model", "report"):
        shown = getattr(Session, name).__doc__ or ""
        assert "Args:" in shown, name
        assert "Raises:" in shown, name
