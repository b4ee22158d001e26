"""What the comparison of servers says follows from its numbers; the servers themselves are asked by hand."""

import importlib
import math
from pathlib import Path

import pandas as pd
import pytest

from llmkit.errors import LLMTimeout
from llmkit.evals import Sample
from tests.support.eval_fakes import FakeExtract, Sentiment, run, sentiment_task

A, B = "ollama/a", "gemini/b"
SAMPLES = tuple(Sample(f"good {number}", "positive", id=f"s{number}") for number in range(60))


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    return importlib.import_module("compare_servers")


def answers(wrong_a, wrong_b, failing=()):
    def answer(call):
        if call.route.model in failing:
            raise LLMTimeout("slow")
        number = int(call.text.rpartition(" ")[2])
        wrong = wrong_a if call.route.model == "a" else wrong_b
        return Sentiment(label="negative" if number in wrong else "positive")

    return FakeExtract(answer)


async def compared(script, wrong_a=(), wrong_b=(), samples=SAMPLES, failing=()):
    made = await run(sentiment_task(dataset=samples), (A, B), extract=answers(wrong_a, wrong_b, failing))
    return script.explain_difference(made, A, B)


async def test_the_better_server_is_named(script):
    told = await compared(script, wrong_a=range(30))
    assert f"{A} minus {B}: -0.500" in told
    assert "the second is better" in told
    assert "The answers differ on 30 of 60 samples." in told
    assert "the first is better" in await compared(script, wrong_b=range(30))


async def test_equal_shares_of_other_answers_are_counted_as_answers_that_differ(script):
    told = await compared(script, wrong_a=range(3), wrong_b=range(3, 6))
    assert ": +0.000" in told
    assert "no difference is shown" in told
    assert "The answers differ on 6 of 60 samples." in told


async def test_a_narrow_interval_around_nothing_says_equivalent(script):
    assert "the servers are equivalent" in await compared(script)
    assert "More samples would tell" in await compared(script, samples=SAMPLES[:5])


async def test_a_server_that_answered_nothing_ends_no_comparison(script):
    told = await compared(script, failing=("b",))
    assert "There is no interval" in told
    assert "60 left out" in told
    assert "The answers differ on 0 of 0 samples." in told


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (0.01, 0.2, "the first is better"),
        (-0.2, -0.01, "the second is better"),
        (-0.01, 0.04, "rules out a difference of more than 0.040"),
        (-0.05, 0.0, "rules out a difference of more than 0.050"),
        (-0.06, 0.01, "one of up to 0.060 is not ruled out"),
        (-0.01, 0.06, "one of up to 0.060 is not ruled out"),
        (math.nan, math.nan, "no interval"),
    ],
)
def test_a_verdict_is_that_of_the_interval(script, low, high, words):
    assert words in script._verdict(low, high, 0.01)


def test_an_interval_that_the_exact_test_does_not_bear_out_is_too_close_to_call(script):
    assert "too close to call" in script._verdict(-0.237, -0.001, 0.0625)


def test_accounts_find_what_was_answered_twice_and_what_was_in_vain(script):
    runs = pd.DataFrame(
        [("k1", "SUCCEEDED", "provider"), ("k1", "SUCCEEDED", "replay"), ("k2", "SUCCEEDED", "provider")],
        columns=["idempotency_key", "status", "served_from"],
    )
    attempts = pd.DataFrame(
        [("r1", "SUCCEEDED", None), ("r2", "FAILED", "unavailable"), ("r2", "SUCCEEDED", None)],
        columns=["run_id", "status", "error_code"],
    )
    told = script.accounts(runs, attempts, 12.3)
    assert "2 requests answered, 1 failed (1 x unavailable). Answered more than once: 0. This call took 12 s" in told
    again = pd.concat([runs, runs[runs["idempotency_key"] == "k2"]])
    assert "Answered more than once: 1." in script.accounts(again, attempts, 1)
    assert "Answered more than once: 1." in script.accounts(runs, attempts.assign(run_id="r1", status="SUCCEEDED"), 1)
