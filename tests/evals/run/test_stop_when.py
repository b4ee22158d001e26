"""An evaluation with a stop rule ends when the comparison is decided, also after a restart."""

import pytest

from llmkit.errors import LLMEvaluationError, LLMTimeout
from llmkit.evals import Sample, load_report
from llmkit.evals.decide.stopping import Decided
from llmkit.types import Route
from tests.support.eval_fakes import FakeExtract, MemoryStore, Sentiment, right, run, sentiment_task

ROUTES = ("ollama/a", "gemini/b")
MANY = [Sample(f"good {i}", "positive", id=f"s{i}") for i in range(300)]


def always_wrong_on_b(call):
    return Sentiment(label="negative") if call.route == Route.parse("gemini/b") else right(call)


def task_of(samples=MANY, **changes):
    return sentiment_task(dataset=samples, **changes)


async def decide(rule=None, *, answer=always_wrong_on_b, **options):
    extract = FakeExtract(answer)
    report = await run(
        options.pop("task", None) or task_of(),
        routes=options.pop("routes", ROUTES),
        extract=extract,
        stop_when=rule or Decided("field_match"),
        warm_up=False,
        **options,
    )
    return report, extract


async def test_a_clear_difference_stops_the_run():
    report, extract = await decide()
    assert report.decision.verdict == "better"
    assert len(extract.calls) < 60
    left = [result for result in report.results if result.status == "NOT_RUN"]
    assert {result.error_code for result in left} == {"decided"}
    assert any(note.startswith("Stopped when decided: ollama/a is better than gemini/b") for note in report.notes)
    assert not report.has_failures
    assert report.to_json()["decision"]["verdict"] == "better"


async def test_equal_variants_run_to_the_end():
    report, extract = await decide(answer=right, task=task_of(MANY[:60]))
    assert len(extract.calls) == 120
    assert report.decision.verdict == "not decided"
    assert report.counts["NOT_RUN"] == 0


async def test_samples_run_in_the_order_of_the_rule():
    first = await decide(answer=right, task=task_of(MANY[:60]), concurrency=1)
    other = await decide(Decided("field_match", seed=1), answer=right, task=task_of(MANY[:60]), concurrency=1)
    texts = [[call.text for call in extract.calls] for _report, extract in (first, other)]
    assert texts[0] != texts[1]
    assert sorted(texts[0]) == sorted(texts[1])


async def test_a_decided_run_that_goes_on_sends_nothing():
    store = MemoryStore()
    first, _ = await decide(store=store)
    again, extract = await decide(store=store)
    assert extract.calls == []
    assert (again.decision.verdict, again.decision.units) == (first.decision.verdict, first.decision.units)


async def test_a_run_without_the_rule_does_the_rest():
    store = MemoryStore()
    await decide(store=store)
    report = await run(task_of(), routes=ROUTES, extract=FakeExtract(always_wrong_on_b), store=store, warm_up=False)
    assert report.counts["NOT_RUN"] == 0


async def test_the_stored_run_has_the_decision():
    store = MemoryStore()
    report, _ = await decide(store=store)
    stored = await load_report(store, report.run.workspace_id, report.run.name)
    assert stored.decision == report.decision


async def test_failures_without_an_answer_decide_nothing():
    def answer(call):
        if call.route == Route.parse("gemini/b") and call.text.endswith(("1", "3", "5", "7")):
            raise LLMTimeout("slow")
        return right(call)

    report, _ = await decide(answer=answer, task=task_of(MANY[:100]))
    assert not report.decision.is_decided


async def test_a_part_that_no_result_has_is_named():
    report, _ = await decide(Decided("field_match.nothing"), task=task_of(MANY[:4]))
    assert report.decision.describe() == (
        "The stop rule on field_match.nothing cannot decide: there is no such score; there are: field_match."
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"routes": ROUTES[:1]}, "compares two variants; this evaluation has 1"),
        ({"epochs": 2}, "needs epochs=1"),
        ({"rule": Decided("nothing")}, "names the metric 'nothing'; the scorers are: field_match"),
    ],
)
async def test_a_rule_that_cannot_be_followed_is_refused(options, words):
    with pytest.raises(LLMEvaluationError, match=words):
        await decide(**options)
