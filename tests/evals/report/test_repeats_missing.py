"""What repeats and missing scores tell, and what a report says of why."""

import json
import math
import threading

import pandas as pd
import pytest

from llmkit.errors import LLMEvaluationError, LLMTimeout
from llmkit.evals import Sample, Score
from llmkit.evals import statistics as s
from llmkit.evals.report.report import MISSING_COLUMNS, REPEAT_COLUMNS, SAMPLE_COLUMNS
from llmkit.session import Session
from llmkit.testing import OllamaServer, Reply
from tests.support.eval_fakes import FakeExtract, Sentiment, run, sentiment_task

TRIES = {"good a": [1, 1, 1, 0], "good b": [1, 0, 0, 0], "good c": [0, 0, 0, 0], "good d": [1, 1, 1, 1]}


def columns_of(frame):
    return {name: str(dtype) for name, dtype in frame.dtypes.items()}


def expected(columns):
    return {name: str(pd.Series([], dtype=dtype).dtype) for name, dtype in columns.items()}


def by_epoch(call):
    right = TRIES[call.text.removeprefix("Text: ")][call.epoch]
    if not right and call.epoch == 3:
        raise LLMTimeout("slow")  # no answer is no right answer
    return Sentiment(label="positive" if right else "negative")


async def repeated(**options):
    task = sentiment_task(dataset=[Sample(text, "positive") for text in TRIES])
    return await run(task, extract=FakeExtract(by_epoch), **{"epochs": 4} | options)


async def test_repeats_are_the_unbiased_chances_by_sample():
    frame = (await repeated()).repeats(2)
    assert columns_of(frame) == expected(REPEAT_COLUMNS)
    (row,) = frame.to_dict("records")
    some = [s.estimate_pass_at_k(4, sum(tries), 2) for tries in TRIES.values()]
    every = [s.estimate_pass_hat_k(4, sum(tries), 2) for tries in TRIES.values()]
    assert (row["pass_at_k"], row["pass_hat_k"]) == pytest.approx((sum(some) / 4, sum(every) / 4))
    assert (row["pass_at_k_low"], row["pass_at_k_high"]) == pytest.approx(
        (s.estimate_mean(some).low, s.estimate_mean(some).high)
    )
    assert (row["samples"], row["left_out"]) == (4, 0)


async def test_too_few_repeats_are_left_out():
    report = await repeated(epochs=2)
    (row,) = report.repeats(3).to_dict("records")
    assert (row["samples"], row["left_out"]) == (0, 4)
    assert math.isnan(row["pass_at_k"])
    with pytest.raises(LLMEvaluationError, match="at least 1"):
        report.repeats(0)


async def test_missing_scores_in_three_views():
    report = await repeated()
    frame = report.missing()
    assert columns_of(frame) == expected(MISSING_COLUMNS)
    (row,) = frame.to_dict("records")
    # 16 results: 8 right, 5 wrong, 3 without an answer.
    assert (row["n"], row["missing"]) == (16, 3)
    assert (row["mean_excluded"], row["mean_as_failures"]) == pytest.approx((8 / 13, 8 / 16))
    assert (row["worst"], row["best"]) == pytest.approx((8 / 16, 11 / 16))
    assert row["as_failures_low"] < row["mean_as_failures"] < row["as_failures_high"]


async def test_scores_without_bounds_have_no_worst_case():
    def large(output, sample):
        return 7

    report = await run(sentiment_task(scorers=[large]))
    (row,) = report.missing().to_dict("records")
    assert row["mean_excluded"] == 7
    assert math.isnan(row["worst"])


async def test_a_report_says_why_a_score_was_given():
    def reasoned(output, sample):
        return Score(0.5, f"because of {sample.key}")

    frame = (await run(sentiment_task(scorers=[reasoned]))).samples()
    assert "score_details" in SAMPLE_COLUMNS
    assert json.loads(frame["score_details"][0]) == {"reasoned": "because of s0"}


async def test_hanging_scorer_does_not_stop_the_run():
    """It is a scorer error of each sample."""
    release = threading.Event()

    def stuck(output, sample):
        release.wait(60)
        return 1

    try:
        report = await run(sentiment_task(scorers=[stuck]), scorer_timeout_s=0.02)
    finally:
        release.set()
    assert report.counts["SCORER_FAILED"] == 4
    assert all("no score within 0.02 s" in result.scorer_errors["stuck"] for result in report.results)


async def test_a_limit_of_nothing_is_refused():
    with pytest.raises(LLMEvaluationError, match="scorer_timeout_s must be above 0"):
        await run(scorer_timeout_s=0)


@pytest.mark.slow
def test_a_session_reads_a_stored_report():
    server = OllamaServer([Reply('{"label": "positive"}')], models=["a"])
    with server, Session("w", ollama_api_base=server.url) as session:
        made = session.evaluate(sentiment_task(), ["ollama/a"], name="run", progress=False, limit=1)
        calls = len(server.calls)
        read = session.report("run")
        assert len(server.calls) == calls
        with pytest.raises(LLMEvaluationError, match="there are: run"):
            session.report("other")
    assert read.summary().equals(made.summary())
