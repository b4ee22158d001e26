"""Why samples failed is told once for a reason, wherever a report is read."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from uuid_utils.compat import uuid7

from llmkit import Session
from llmkit.errors import LLMTimeout
from llmkit.evals import Sample
from llmkit.evals.ci.markdown import render_run_markdown
from llmkit.evals.report.failure_reasons import (
    LONGEST_REASON,
    MAX_REASONS,
    describe_reasons,
    find_top_reasons,
    group_failures,
)
from llmkit.testing import GeminiServer, Reply, get_refused_url
from llmkit.types import utc_now
from tests.cli.test_cli import run as llmkit
from tests.support.eval_fakes import SAMPLES, FakeExtract, run, sentiment_task
from tests.support.run_values import an_eval_result

OLLAMA, GEMINI = "ollama/llama3.2", "gemini/gemini-2.5-flash"
RUN_ID = uuid7()
ROUTES = ("a/a", "b/b")
MESSAGES = st.sampled_from(
    [
        "Ollama does not answer",
        "cut at 17",
        "cut at 4",
        "no 'x' here",
        "no 'y' here",
        "",
        "a\x1b[2J b\n c",
        "long " * 99,
    ]
)


def a_result(number, route, status, message):
    return an_eval_result(
        RUN_ID,
        sample_id=f"s{number}",
        route=route,
        status=status,
        finished_at_utc=utc_now(),
        error_code="timeout" if status == "FAILED" else None,
        error_message=message if status == "FAILED" else None,
        scorer_errors={"f": message} if status == "SCORER_FAILED" else {},
    )


RESULTS = st.lists(
    st.tuples(st.sampled_from(ROUTES), st.sampled_from(["SUCCEEDED", "FAILED", "SCORER_FAILED", "NOT_RUN"]), MESSAGES),
    max_size=40,
).map(lambda rows: [a_result(number, *row) for number, row in enumerate(rows)])


@given(RESULTS, st.randoms())
@settings(max_examples=60, deadline=None)
def test_failure_counts_do_not_depend_on_order(results, random):
    """Every failure is counted in one reason."""
    reasons = group_failures(results, ROUTES)
    counted, failed = Counter(), Counter()
    for reason in reasons:
        counted[reason.variant, reason.status] += reason.results
    failed.update((each.route, each.status) for each in results if each.status in ("FAILED", "SCORER_FAILED"))
    assert counted == failed
    shuffled = list(results)
    random.shuffle(shuffled)
    assert group_failures(shuffled, ROUTES) == reasons


@given(RESULTS)
@settings(max_examples=60, deadline=None)
def test_few_short_lines_are_told_of_each_route(results):
    lines = list(describe_reasons(results, ROUTES))
    for route in ROUTES:
        own = [line for line in lines if f" on {route}" in line]
        assert len(own) <= MAX_REASONS + 1
    assert all(line.isprintable() and len(line) < LONGEST_REASON + 80 for line in lines)
    assert len(list(find_top_reasons(results, ROUTES))) <= MAX_REASONS * len(ROUTES)


def test_similar_messages_are_one_reason():
    """Messages that differ only in numbers and quotations."""
    texts = ["cut at 17: 'ab'", "cut at 4: 'c'", 'cut at 9: "d"', "refused"]
    results = [a_result(number, "a/a", "FAILED", text) for number, text in enumerate(texts)]
    assert list(describe_reasons(results, ROUTES)) == [
        "3 of 4 samples failed on a/a: cut at 17: 'ab'",
        "1 of 4 samples failed on a/a: refused",
    ]


def test_reasons_beyond_the_third_are_counted():
    words = ["red", "red", "red", "green", "green", "blue", "grey", "pink"]
    results = [a_result(number, "a/a", "FAILED", word) for number, word in enumerate(words)]
    assert list(describe_reasons(results, ROUTES)) == [
        "3 of 8 samples failed on a/a: red",
        "2 of 8 samples failed on a/a: green",
        "1 of 8 samples failed on a/a: blue",
        "2 of 8 on a/a for 2 other reasons: see samples().",
    ]


@pytest.fixture
def dead_ollama(tmp_path, monkeypatch):
    """A task of twelve samples, and no server."""
    (tmp_path / "t.yaml").write_text(
        "name: t\ndataset: t.jsonl\nprompt: '{input}'\nscorers: [exact_match]\n"
        "output_schema: {properties: {label: {type: string}}, required: [label]}\n"
    )
    lines = (json.dumps({"input": f"x{number}", "target": {"label": "a"}}) + "\n" for number in range(12))
    (tmp_path / "t.jsonl").write_text("".join(lines))
    monkeypatch.setenv("LLM_OLLAMA_API_BASE", get_refused_url())
    monkeypatch.setenv("LLM_MAX_RETRIES", "0")


def test_dead_server_is_named_with_a_remedy(dead_ollama):
    """In the terminal and in the JSON."""
    command = ("eval", "run", "t.yaml", "--routes", OLLAMA)
    done = llmkit(*command, "--name", "one")
    assert done.returncode == 1
    shown = " ".join(done.stdout.split())
    assert shown.count(" of 12 samples failed on ollama/llama3.2: Ollama does not answer at http://127.0.0.1:") == 1
    assert "start it with `ollama serve`" in shown
    document = json.loads(llmkit(*command, "--name", "two", "--json").stdout)
    (reason,) = document["failures"]
    assert (reason["variant"], reason["error_code"], reason["status"]) == (OLLAMA, "unavailable", "FAILED")
    assert reason["results"] == document["counts"]["FAILED"] > 0
    assert "start it with `ollama serve`" in reason["message"]


def test_refused_key_is_reported_once():
    """Also for the samples of a route that is no longer called."""
    with GeminiServer(Reply("{}"), api_key="right") as server:
        settings = {"gemini_api_base": f"{server.url}/v1beta", "gemini_api_key": "wrong", "max_retries": 0}
        with Session("w", **settings) as session:
            dataset = [Sample(f"good {number}", "positive", id=f"s{number}") for number in range(12)]
            report = session.evaluate(sentiment_task(dataset=dataset), [GEMINI], name="run", progress=False)
    (why,) = report.failure_summary
    assert "LLM_GEMINI_API_KEY" in why
    assert f"{GEMINI} is no longer called." in report.notes
    for text in (repr(report), report._repr_html_(), render_run_markdown([report])):
        assert text.count("samples failed on ") == 1
    assert "wrong" not in repr(report)


async def test_secrets_in_a_failure_are_not_told():
    def answer(call):
        raise LLMTimeout("no answer with key=sk-abcdefghijklmnopqrstuvwxyz0123456789 for ann@example.org")

    report = await run(extract=FakeExtract(answer))
    assert "sk-abc" not in repr(report)
    assert "ann@example.org" not in repr(report)


async def test_a_scorer_that_always_raises_is_named_with_its_error():
    def counts(output, sample):
        raise KeyError("length")

    report = await run(sentiment_task(scorers=[counts]))
    (why,) = report.failure_summary
    assert why.startswith(f"{len(SAMPLES)} of {len(SAMPLES)} answers could not be scored on ")
    assert "counts: KeyError: 'length'" in why
