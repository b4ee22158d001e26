"""The runner: every sample on every route, resumed, interrupted, failing, compared."""

import asyncio
import gc
from dataclasses import replace
from unittest.mock import patch
from uuid import uuid4

import pytest
from pydantic import BaseModel, ConfigDict, field_validator

from llmkit.calls.liveness import current_owner
from llmkit.errors import (
    LLMAuthenticationError,
    LLMEvaluationError,
    LLMInProgress,
    LLMOutputTruncated,
    LLMStoreError,
    LLMTimeout,
    LLMUnavailable,
)
from llmkit.eval_ports import CallUnderWay
from llmkit.evals import Dataset, Sample, Variant, field_match, load_report
from llmkit.evals.run.coordination import Patience
from llmkit.types import LLMProvider, Route, ServedFrom, utc_now
from tests.support.eval_fakes import (
    SAMPLES,
    FakeExtract,
    FakeService,
    MemoryStore,
    Sentiment,
    attempt,
    extraction,
    invalid,
    response,
    right,
    run,
    sentiment_task,
    stored_call,
)

A = Route.parse("ollama/a")


async def test_every_sample_runs_on_every_route_in_every_epoch():
    extract, store = FakeExtract(), MemoryStore()
    report = await run(routes=["ollama/a", "gemini/b"], epochs=3, store=store, extract=extract)

    assert extract.counts == {"ollama/a": 12, "gemini/b": 12}
    assert len(store.rows) == 24
    assert report.counts["SUCCEEDED"] == 24
    assert not report.has_failures
    assert report.work.sent == 24
    assert set(report.summary()["mean"]) == {1.0}


async def test_routes_take_turns_so_that_warm_up_hits_all_alike():
    extract = FakeExtract()
    await run(routes=["ollama/a", "gemini/b"], extract=extract, concurrency=1)
    assert [str(call.route) for call in extract.calls[:4]] == ["ollama/a", "gemini/b", "gemini/b", "ollama/a"]


async def test_concurrency_is_bounded():
    extract = FakeExtract()
    await run(epochs=5, extract=extract, concurrency=3)
    assert extract.most_under_way == 3


async def test_every_call_has_its_own_short_key_and_context():
    extract = FakeExtract()
    names = ["s:1/ü", "s:1/é", "x" * 200, "two\nlines"]
    await run(
        sentiment_task(dataset=[Sample("good", "positive", id=name) for name in names]),
        routes=["ollama/a:7b", "ollama/a"],
        epochs=2,
        extract=extract,
    )
    keys = [call.key for call in extract.calls]
    assert len(set(keys)) == len(keys) == 16
    assert max(map(len, keys)) < 240
    for call in extract.calls:
        context = call.options["context"]
        assert (context.workspace_id, context.stage, context.pipeline_run_id) == ("w", "sample", call.key)
        assert call.options["use_cache"] is False


async def test_a_pinned_route_never_falls_back_and_a_policy_may():
    extract = FakeExtract()
    await run(routes=["ollama/a", "policy:quality"], extract=extract, limit=1)
    pinned, policy = sorted(extract.calls, key=lambda call: call.route is None)
    assert not pinned.options["constraints"].allow_fallback
    assert policy.options["constraints"].allow_fallback
    assert policy.options["parameters"] == {"profile": "quality"}


async def test_a_sample_that_a_fallback_answered_is_flagged():
    other = Route.parse("gemini/b")
    extract = FakeExtract(lambda call: extraction(right(call), other))
    report = await run(routes=["policy:default"], extract=extract, service=FakeService("ollama/a", "gemini/b"))
    frame = report.samples()
    assert set(frame["fallback"]) == {True}
    assert list(report.summary("served_route")["variant"]) == ["gemini/b"]
    assert any("fallback" in note for note in report.notes)


async def test_policies_with_services_of_their_own():
    local, seen = FakeService("local/x"), []

    class Spy(FakeExtract):
        async def __call__(self, service, *args, **options):
            seen.append(service)
            return await super().__call__(service, *args, **options)

    await run(routes=["policy:prefer_local"], policies={"prefer_local": local}, extract=Spy(), limit=1)
    assert seen == [local]


async def test_the_second_run_sends_nothing():
    store = MemoryStore()
    await run(store=store)
    extract = FakeExtract()
    report = await run(store=store, extract=extract)
    assert extract.calls == []
    assert (report.work.reused, report.work.sent) == (4, 0)
    assert "4 of 4 results were there already; 0 requests sent." in report.notes


@pytest.mark.parametrize(
    "more",
    [
        {"epochs": 2},
        {"routes": ["ollama/a", "gemini/b"]},
        {"task": sentiment_task(dataset=[*SAMPLES, *(Sample(text, "negative") for text in "wxyz")])},
    ],
)
async def test_a_run_is_extended_without_calling_again(more):
    store, extract = MemoryStore(), FakeExtract()
    await run(store=store)
    report = await run(store=store, extract=extract, **more)
    assert len(extract.calls) == 4
    assert (report.work.reused, len(report.results)) == (4, 8)


async def test_limit_first_and_the_rest_later():
    store, extract = MemoryStore(), FakeExtract()
    await run(store=store, limit=1)
    report = await run(store=store, extract=extract)
    assert len(extract.calls) == 3
    assert report.counts["SUCCEEDED"] == 4


async def test_a_failing_sample_is_a_row_and_is_tried_again():
    def flaky(call):
        if "bad" in call.text:
            error = LLMTimeout("no answer in 1 s", provider=LLMProvider.OLLAMA, model="a")
            error.attempts = (attempt(A), attempt(A))
            raise error
        return right(call)

    store = MemoryStore()
    report = await run(store=store, extract=FakeExtract(flaky))
    row = report.samples().set_index("sample_id").loc["s1"]
    assert (row["status"], row["error_code"], row["error_message"]) == ("FAILED", "timeout", "no answer in 1 s")
    assert (row["requests"], row["input_tokens"], row["latency_ms"]) == (2, 20, 40.0)
    summary = report.summary().iloc[0]
    assert (summary["n"], summary["scored"], summary["failed"]) == (4, 3, 1)
    assert (summary["mean"], summary["mean_failures_as_zero"]) == (1.0, 0.75)

    extract = FakeExtract()
    report = await run(store=store, extract=extract)
    assert [call.text for call in extract.calls] == ["Text: bad"]
    assert not report.has_failures


async def test_retry_failed_can_be_switched_off():
    def timeout(call):
        raise LLMTimeout("slow")

    store, extract = MemoryStore(), FakeExtract()
    await run(store=store, extract=FakeExtract(timeout))
    report = await run(store=store, extract=extract, retry_failed=False)
    assert extract.calls == []
    assert report.counts["FAILED"] == 4


@pytest.mark.parametrize("error", [invalid(A), LLMOutputTruncated("cut at 64 tokens")])
async def test_an_answer_that_does_not_fit_is_a_result_and_stays(error):
    def fail(call):
        raise error

    store = MemoryStore()
    report = await run(store=store, extract=FakeExtract(fail))
    assert set(report.samples()["valid_first_try"]) == {False}
    assert report.summary()["valid_first_try"].iloc[0] == 0.0

    again = FakeExtract()
    await run(store=store, extract=again)
    assert again.calls == []
    report = await run(store=store, extract=again, retry_failed="all")
    assert len(again.calls) == 4
    assert not report.has_failures


async def test_what_a_validator_of_the_user_raises_is_a_row():
    def crash(call):
        raise ZeroDivisionError("division by zero")

    report = await run(extract=FakeExtract(crash))
    assert set(report.samples()["error_code"]) == {"unknown"}
    assert set(report.samples()["error_message"]) == {"ZeroDivisionError: division by zero"}


async def test_a_route_that_is_refused_three_times_is_not_called_any_more():
    samples = [Sample(f"good {number}", "positive") for number in range(50)]

    def refuse(call):
        if call.route == A:
            raise LLMAuthenticationError("wrong key")
        return right(call)

    store, extract = MemoryStore(), FakeExtract(refuse)
    task = sentiment_task(dataset=samples)
    report = await run(task, ["ollama/a", "gemini/b"], store=store, extract=extract, concurrency=2)
    assert extract.counts["gemini/b"] == 50
    assert extract.counts["ollama/a"] < 6
    not_run = [result for result in report.results if result.status == "NOT_RUN"]
    assert len(not_run) == 50 - extract.counts["ollama/a"]
    assert {result.error_code for result in not_run} == {"authentication"}
    assert all(result.status != "NOT_RUN" for result in store.rows.values())
    assert report.stopped == {"ollama/a": "wrong key"}
    assert report.samples()["finished_at_utc"].isna().sum() == len(not_run)

    report = await run(task, ["ollama/a", "gemini/b"], store=store)
    assert report.counts["SUCCEEDED"] == 100


async def test_failures_that_pass_do_not_stop_a_route():
    def timeout(call):
        raise LLMTimeout("slow")

    extract = FakeExtract(timeout)
    report = await run(epochs=5, extract=extract)
    assert len(extract.calls) == 20
    assert report.stopped == {}


def left_alone(retry_after_s=0.0):
    return LLMUnavailable("ollama/a is left alone for 30 s more", retry_after_s=retry_after_s)


def down():
    error = LLMUnavailable("Ollama does not answer")
    error.attempts = (attempt(A),)
    return error


async def test_an_outage_in_the_middle_costs_nothing_but_the_wait():
    asked = []

    def answer(call):
        asked.append(call.text)
        if 3 <= len(asked) < 5:
            raise down()
        if 5 <= len(asked) < 8:
            raise left_alone(retry_after_s=None if len(asked) == 5 else 0.0)
        return right(call)

    store = MemoryStore()
    task = sentiment_task(dataset=[Sample(f"good {number}", "positive") for number in range(20)])
    with patch("llmkit.batch.route_health.USUAL_REST_S", 0.0):
        report = await run(task, store=store, extract=FakeExtract(answer), concurrency=1)
    assert report.counts == {"SUCCEEDED": 20, "FAILED": 0, "SCORER_FAILED": 0, "NOT_RUN": 0, "IN_PROGRESS": 0}
    assert len(asked) == 20 + 5


async def test_a_route_that_stays_away_is_given_up_and_the_others_are_not():
    asked = []

    def answer(call):
        asked.append(call.text)
        if call.route == A and len(asked) > 8:
            raise left_alone()
        return right(call)

    task = sentiment_task(dataset=[Sample(f"good {number}", "positive") for number in range(20)])
    report = await run(task, ["ollama/a", "gemini/b"], extract=FakeExtract(answer))
    frame = report.samples()
    assert set(frame[frame["variant"] == "gemini/b"]["status"]) == {"SUCCEEDED"}
    assert report.counts["NOT_RUN"] == 16
    assert set(frame[frame["status"] == "NOT_RUN"]["error_code"]) == {"unavailable"}
    assert report.stopped == {"ollama/a": "ollama/a is left alone for 30 s more"}


async def test_nobody_waits_for_a_server_that_never_answered():
    def answer(call):
        raise left_alone(retry_after_s=3_600.0) if call.text == "Text: awful" else down()

    store = MemoryStore()
    report = await run(store=store, extract=FakeExtract(answer), concurrency=1)
    assert (report.counts["FAILED"], report.counts["NOT_RUN"]) == (3, 1)
    # What failed first says why; that it was left alone afterwards does not replace it.
    await run(store=store, extract=FakeExtract(lambda call: (_ for _ in ()).throw(left_alone())))
    assert {row.error_message for row in store.rows.values()} == {"Ollama does not answer"}


def elsewhere(call):
    if "good" in call.text:
        raise LLMInProgress("elsewhere", run_id=uuid4(), age_s=1.0)
    return right(call)


@pytest.fixture
def hasty(monkeypatch):
    """Nobody waits for long."""
    patience = Patience(least_s=0, usual_s=0, recent_s=0.2, result_s=0.05, silence_s=0.3)
    monkeypatch.setattr("llmkit.evals.run.runner.PATIENCE", patience)
    monkeypatch.setattr("llmkit.evals.run.runner.FIRST_PAUSE_S", 0.01)


async def test_a_call_elsewhere_of_which_nothing_is_heard_is_listed_and_not_stored(hasty):
    store = MemoryStore()
    store.doubtful = (stored_call(),)
    report = await run(store=store, extract=FakeExtract(elsewhere))
    assert report.counts["IN_PROGRESS"] == 1
    assert len(store.rows) == 3
    assert report.in_doubt == store.doubtful
    assert store.prefixes == [f"eval:{report.run.id.hex}:"]


async def test_what_another_process_has_under_way_is_waited_for():
    store, other = MemoryStore(), MemoryStore()
    await run(store=other, limit=1)
    (theirs,) = other.rows.values()

    def busy(call):
        asyncio.get_running_loop().call_later(0.05, arrive)
        return elsewhere(call)

    def arrive():
        (opened,) = store.runs.values()
        store.rows[opened.id, theirs.sample_id, theirs.route, 0] = replace(theirs, eval_run_id=opened.id)

    extract = FakeExtract(busy)
    report = await run(store=store, extract=extract)
    assert report.counts["SUCCEEDED"] == 4
    assert (report.work.shared, report.work.called) == (1, 3)
    assert len(extract.calls) == 4


async def test_what_another_process_left_behind_is_called_again(hasty):
    store, refusals = MemoryStore(), iter([LLMInProgress("elsewhere", run_id=uuid4(), age_s=1.0)])

    def left(call):
        if "good" in call.text and (refusal := next(refusals, None)):
            raise refusal
        return right(call)

    report = await run(store=store, extract=FakeExtract(left))
    assert report.counts["SUCCEEDED"] == 4
    assert (report.work.shared, report.work.called) == (0, 4)


async def test_who_joins_a_run_begins_where_nobody_is():
    store, samples = MemoryStore(), [Sample(f"good {number}", "positive", id=str(number)) for number in range(100)]
    task = sentiment_task(dataset=samples)
    here, first = FakeExtract(), FakeExtract()
    await run(task, store=MemoryStore(), extract=first, limit=4)
    begun = CallUnderWay(first.calls[3].key, current_owner(), utc_now(), utc_now())
    store.begun = [begun]
    await run(task, store=store, extract=here, concurrency=1)
    order = [int(call.text.removeprefix("Text: good ")) for call in here.calls]
    assert 40 <= order[0] <= 65
    assert sorted(order) == list(range(100))


async def test_a_failure_that_another_process_met_meanwhile_is_not_called_again(hasty):
    store = MemoryStore()

    def fail_elsewhere(call):
        if "good" in call.text:
            (opened,) = store.runs.values()
            bad = next(iter(failing.rows.values()))
            store.rows[opened.id, "s1", "ollama/a", 0] = replace(bad, eval_run_id=opened.id, sample_id="s1")
        return elsewhere(call)

    failing = MemoryStore()
    await run(store=failing, extract=FakeExtract(lambda call: (_ for _ in ()).throw(LLMTimeout("slow"))), limit=1)
    extract = FakeExtract(fail_elsewhere)
    report = await run(store=store, extract=extract, concurrency=1)
    assert "Text: bad" not in [call.text for call in extract.calls]
    assert report.counts["FAILED"] == 1


async def test_cancelling_keeps_what_is_done():
    store, waiting = MemoryStore(), asyncio.Event()

    async def wait(call):
        waiting.set()
        await asyncio.Event().wait()

    def answer(call):
        return wait(call) if "awful" in call.text else right(call)

    extract = FakeExtract(answer)
    job = asyncio.create_task(run(store=store, extract=extract, concurrency=1))
    await waiting.wait()
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert extract.under_way == 0
    assert len(store.rows) == 3

    rest = FakeExtract()
    await run(store=store, extract=rest)
    assert [call.text for call in rest.calls] == ["Text: awful"]


def test_keyboard_interrupt_passes_through():
    def interrupt(call):
        if "awful" in call.text:
            raise KeyboardInterrupt
        return right(call)

    store = MemoryStore()
    with pytest.raises(KeyboardInterrupt):
        asyncio.run(run(store=store, extract=FakeExtract(interrupt), concurrency=1))
    assert len(store.rows) == 3
    # Asyncio logs the lost task when it is collected. Inside `ast.parse`, Python 3.11 cannot format its traceback.
    gc.collect()


async def test_a_dead_store_ends_the_run_with_its_own_error():
    def fail(result):
        raise LLMStoreError("disk full")

    store = MemoryStore()
    store.before_save = fail
    with pytest.raises(LLMStoreError, match="disk full"):
        await run(store=store)


async def test_replayed_answers_are_not_counted_as_sent():
    extract = FakeExtract(lambda call: extraction(right(call), A, response(A, ServedFrom.REPLAY)))
    report = await run(extract=extract)
    assert (report.work.called, report.work.replayed, report.work.sent) == (4, 4, 0)
    assert report.samples()["requests"].sum() == 4


async def test_repaired_answers_are_not_valid_at_first_try():
    extract = FakeExtract(lambda call: extraction(right(call), A, response(A), response(A)))
    report = await run(extract=extract)
    assert report.summary()["valid_first_try"].iloc[0] == 0.0
    assert report.samples()["input_tokens"].sum() == 80
    assert report.work.sent == 8


async def test_an_edited_dataset_is_refused_with_what_changed():
    store, extract = MemoryStore(), FakeExtract()
    await run(store=store)
    edited = [replace(SAMPLES[0], input="great"), *SAMPLES[2:]]
    with pytest.raises(LLMEvaluationError, match=r"removed: s1; edited: s0"):
        await run(sentiment_task(dataset=edited), store=store, extract=extract)
    assert extract.calls == []


async def test_a_dataset_edited_under_another_route_is_refused_too():
    store = MemoryStore()
    await run(store=store)
    edited = sentiment_task(dataset=[replace(SAMPLES[0], input="great"), *SAMPLES[1:]])
    with pytest.raises(LLMEvaluationError, match="edited: s0"):
        await run(edited, ["gemini/b"], store=store)


async def test_a_sample_that_failed_may_be_mended():
    def fail(call):
        if "good" in call.text:
            raise LLMTimeout("slow")
        return right(call)

    store, extract = MemoryStore(), FakeExtract()
    await run(store=store, extract=FakeExtract(fail))
    mended = sentiment_task(dataset=[replace(SAMPLES[0], input="fine"), *SAMPLES[1:]])
    report = await run(mended, store=store, extract=extract)
    assert [call.text for call in extract.calls] == ["Text: fine"]
    assert not report.has_failures


class Other(BaseModel):
    label: str


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompt": "Say: {input}"}, "prompt"),
        ({"system": "Be brief"}, "system"),
        ({"output_type": Other}, "output schema"),
        ({"parameters": {"temperature": 1}}, "parameters"),
    ],
)
async def test_an_edited_task_is_refused_with_what_changed(change, named):
    store = MemoryStore()
    await run(store=store)
    with pytest.raises(LLMEvaluationError, match=f"changed: {named}"):
        await run(sentiment_task(**change), store=store)


async def test_an_edited_prompt_function_is_noticed():
    store = MemoryStore()
    await run(sentiment_task(prompt=lambda sample: f"A {sample.input}"), store=store)
    with pytest.raises(LLMEvaluationError, match="ollama/a was asked something else"):
        await run(sentiment_task(prompt=lambda sample: f"B {sample.input}"), store=store)


@pytest.mark.parametrize("options", [{"parameters": {"temperature": 0.5}}, {"reasks": 3}])
async def test_other_parameters_under_one_label_are_refused(options):
    store = MemoryStore()
    await run(store=store)
    with pytest.raises(LLMEvaluationError, match="asked something else"):
        await run(store=store, **options)


async def test_a_scorer_that_crashes_is_a_scorer_error_and_is_scored_again_without_a_call():
    def shaky(output, sample):
        raise RuntimeError("no dictionary")

    store = MemoryStore()
    report = await run(sentiment_task(scorers=[field_match("label"), shaky]), store=store)
    assert report.counts["SCORER_FAILED"] == 4
    summary = report.summary().set_index("metric")
    assert summary.loc["field_match", "scored"] == 4
    assert (summary.loc["shaky", "scored"], summary.loc["shaky", "scorer_failed"]) == (0, 4)
    assert "RuntimeError: no dictionary" in report.samples()["scorer_errors"].iloc[0]

    def shaky(output, sample):
        return 0.5

    extract = FakeExtract()
    report = await run(sentiment_task(scorers=[field_match("label"), shaky]), store=store, extract=extract)
    assert extract.calls == []
    assert report.work.rescored == 4
    assert report.summary().set_index("metric").loc["shaky", "mean"] == 0.5


async def test_an_added_scorer_scores_what_is_stored():
    def length(output, sample):
        return len(output.label)

    store, extract = MemoryStore(), FakeExtract()
    await run(store=store)
    report = await run(sentiment_task(scorers=[field_match("label"), length]), store=store, extract=extract)
    assert extract.calls == []
    assert report.metrics == ("field_match", "length")


# The same schema, and a rule that it does not show.
class Strict(Sentiment):
    model_config = ConfigDict(title="Sentiment")

    @field_validator("label")
    @classmethod
    def _never_negative(cls, value):
        if value == "negative":
            raise ValueError("too sad")
        return value


async def test_a_stored_output_that_fits_no_more_is_a_scorer_error():
    def one(output, sample):
        return 1

    store, extract = MemoryStore(), FakeExtract()
    first = sentiment_task()
    await run(first, store=store)
    second = sentiment_task(output_type=Strict, scorers=[one])
    report = await run(second, store=store, extract=extract)
    assert extract.calls == []
    assert (report.counts["SUCCEEDED"], report.counts["SCORER_FAILED"]) == (2, 2)
    assert "the stored output does not fit any more" in report.samples()["scorer_errors"].dropna().iloc[0]
    assert "2 answers could not be scored; see scorer_errors." in report.notes
    assert "4 stored outputs scored again without a call." in report.notes


async def test_variants_of_prompt_and_parameters_on_one_route():
    extract = FakeExtract()
    task = sentiment_task(prompts={"short": "{input}"}, parameters={"temperature": 0, "seed": 1})
    routes = ["ollama/a", "ollama/a@short", Variant("ollama/a", parameters={"temperature": 1}, label="hot")]
    report = await run(task, routes, extract=extract, epochs=2, concurrency=1, limit=1)
    assert report.variants == ("ollama/a", "ollama/a@short", "hot")
    seen = [(call.text, call.options["parameters"]) for call in extract.calls]
    assert seen[:3] == [
        ("Text: good", {"temperature": 0, "seed": 1}),
        ("good", {"temperature": 0, "seed": 1}),
        ("Text: good", {"temperature": 1, "seed": 1}),
    ]
    assert seen[3][1] == {"temperature": 0, "seed": 2}


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ([], "at least one route"),
        (["llama3"], "a route is written provider/model"),
        (["olama/gpt"], "did you mean ollama?"),
        (["policy:cheapest"], "known policies: default, fast, balanced, quality"),
        (["ollama/a", "ollama/a"], "Two routes are labelled 'ollama/a'"),
        (["ollama/a@long"], "has no prompt 'long'"),
        ([Variant("ollama/a", label="a b")], "white space"),
    ],
)
async def test_a_route_that_cannot_be_used_is_one_error_before_anything_is_sent(routes, message):
    extract, store = FakeExtract(), MemoryStore()
    with pytest.raises(LLMEvaluationError, match=message):
        await run(routes=routes, extract=extract, store=store)
    assert (extract.calls, store.runs) == ([], {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs"),
        ({"concurrency": 0}, "concurrency"),
        ({"limit": 0}, "limit"),
        ({"reasks": -1}, "reasks"),
        ({"parameters": {"temperature": 9}}, "temperature"),
        ({"parameters": {"top_k": 9}}, "Unknown parameter top_k"),
        ({"name": " "}, "name of an evaluation"),
    ],
)
async def test_an_option_that_cannot_be_used_is_one_error(options, message):
    with pytest.raises(LLMEvaluationError, match=message):
        await run(**options)


async def test_a_missing_field_is_one_error_before_anything_is_sent():
    extract = FakeExtract()
    samples = [Sample({"text": "good"}, "positive"), Sample({"body": "bad"}, "negative", id="odd")]
    with pytest.raises(LLMEvaluationError, match=r"names \{text\}, but sample 'odd' has only \{input\}, \{body\}"):
        await run(sentiment_task(dataset=samples, prompt="{text}"), extract=extract)
    assert extract.calls == []


async def test_progress_is_told_to_a_function():
    seen = []
    await run(progress=seen.append, epochs=2, concurrency=1)
    assert (seen[-1].done, seen[-1].total, seen[-1].sent) == (8, 8, 8)
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)


async def test_the_progress_bar_goes_to_stderr(capsys):
    store = MemoryStore()
    await run(progress=True, store=store)
    out, err = capsys.readouterr()
    assert out == ""
    assert "4/4" in err
    await run(progress=True, store=store)
    assert "4/4" in capsys.readouterr().err


async def test_the_name_is_the_task_s_unless_given():
    report = await run(name=None)
    assert report.run.name == "sentiment"


async def test_a_stored_report_needs_neither_task_nor_model():
    store = MemoryStore()
    groups = [Sample(f"good {number}", "positive", group=str(number % 3)) for number in range(9)]
    task = sentiment_task(dataset=groups)
    made = await run(task, ["ollama/a", "gemini/b"], store=store)
    loaded = await load_report(store, "w", "run")
    assert loaded.summary().equals(made.summary())
    assert set(loaded.summary()["interval"]) == {"clustered wilson"}
    assert (await load_report(store, "w", "run", task=task)).samples().equals(made.samples())
    with pytest.raises(LLMEvaluationError, match="there are: run"):
        await load_report(store, "w", "ruin")


async def test_results_of_other_processes_are_in_the_report():
    store = MemoryStore()
    await asyncio.gather(run(store=store), run(routes=["gemini/b"], store=store))
    assert len((await load_report(store, "w", "run")).results) == 8


def test_the_dataset_is_read_when_it_is_needed():
    task = sentiment_task(dataset="missing.jsonl")
    with pytest.raises(LLMEvaluationError, match=r"no dataset file .*missing\.jsonl"):
        task.load()
    assert len(sentiment_task(dataset=Dataset.load(SAMPLES).limit(2)).load()) == 2


async def test_output_json_reads_back_into_the_type():
    store = MemoryStore()
    await run(store=store)
    for result in store.rows.values():
        assert Sentiment.model_validate_json(result.output_json)


async def test_a_route_that_failed_before_the_evaluation_began_gets_its_rest():
    asked = []

    def answer(call):
        asked.append(call.text)
        if len(asked) == 1:
            raise left_alone()
        return right(call)

    report = await run(extract=FakeExtract(answer), concurrency=1)
    assert report.counts["SUCCEEDED"] == 4


async def test_results_keep_the_order_of_the_dataset_and_of_the_variants():
    samples = [Sample(text, "positive", id=name) for text, name in (("good", "s10"), ("fine", "s2"), ("bad", "s1"))]
    store, task = MemoryStore(), sentiment_task(dataset=samples)
    report = await run(task, ["ollama/b", "ollama/a"], store=store, epochs=2)
    expected = [
        (name, route, epoch) for name in ("s10", "s2", "s1") for route in ("ollama/b", "ollama/a") for epoch in (0, 1)
    ]
    stored = await load_report(store, "w", "run", task=task)
    for each in (report, stored):
        assert [(result.sample_id, result.route, result.epoch) for result in each.results] == expected
        assert list(each.samples()["sample_id"].unique()) == ["s10", "s2", "s1"]
