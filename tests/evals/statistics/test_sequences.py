"""Confidence sequences keep their level however often one looks, and find real differences early."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.evals.statistics.sequences import BettingTest, compute_confidence_sequence, find_decision

UNIT = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 1.0]), min_size=1, max_size=60)


def find_stop(values, mean=0.0, alpha=0.05):
    """The number of values after which the mean is rejected; None if never."""
    test = BettingTest(mean)
    for number, value in enumerate(values, 1):
        test.add(value)
        if test.log_capital >= math.log(1 / alpha):
            return number
    return None


def test_false_decisions_stay_below_alpha():
    """2,000 runs without a difference, each looked at after every one of 300 samples; half of 5 % is expected."""
    rng = np.random.default_rng(4)
    values = rng.choice([-1.0, 0.0, 1.0], size=(2_000, 300), p=[0.15, 0.7, 0.15])
    assert sum(_is_ever_rejected(row) for row in values) <= 100


def _is_ever_rejected(values):
    """As `find_stop`, for all times at once."""
    bets = np.arange(1, 21)[:, None] / 21
    up = np.log1p(bets * values).cumsum(axis=1)
    down = np.log1p(-bets * values).cumsum(axis=1)
    capital = np.maximum(np.exp(up).mean(axis=0), np.exp(down).mean(axis=0)) / 2
    return bool((capital >= 20).any())


@given(UNIT)
def test_capital_is_that_of_the_formula(values):
    test = BettingTest(0.0)
    test.add(values)
    bets = np.arange(1, 21)[:, None] / 21
    up = np.prod(1 + bets * np.array(values), axis=1).mean() / 2
    down = np.prod(1 - bets * np.array(values), axis=1).mean() / 2
    assert math.exp(test.log_capital) == pytest.approx(max(up, down))


def test_ten_points_need_a_third_fewer_pairs_than_the_plan():
    """A plan for 95 % power without a look takes (1.96 + 1.645)² variances over the squared difference."""
    rng = np.random.default_rng(5)
    stops = [find_stop(rng.choice([-1.0, 0.0, 1.0], size=2_000, p=[0.1, 0.7, 0.2])) for _ in range(60)]
    assert None not in stops
    planned = (1.96 + 1.645) ** 2 * (0.3 - 0.01) / 0.01
    assert np.mean(stops) < 0.7 * planned


@pytest.mark.slow
@given(UNIT, st.randoms(use_true_random=False))
def test_the_order_of_the_values_changes_nothing(values, random):
    shuffled = list(values)
    random.shuffle(shuffled)
    first, second = compute_confidence_sequence(values), compute_confidence_sequence(shuffled)
    assert (first.low, first.high) == pytest.approx((second.low, second.high))


@given(UNIT)
def test_the_interval_holds_what_the_test_does_not_reject(values):
    found = compute_confidence_sequence(values)
    assert -1 <= found.low <= found.mean <= found.high <= 1
    for candidate, is_inside in ((found.low - 1e-6, False), (found.low + 1e-6, True), (found.high + 1e-6, False)):
        if -1 < candidate < 1 and found.low + 2e-6 < found.high:
            test = BettingTest(candidate)
            test.add(values)
            assert (test.log_capital < math.log(20)) is is_inside


def test_no_values_leave_the_whole_range():
    found = compute_confidence_sequence([])
    assert (found.low, found.high, found.n) == (-1.0, 1.0, 0)


@pytest.mark.parametrize("value", [1.5, -2.0, math.nan])
def test_values_outside_of_the_range_are_refused(value):
    with pytest.raises(ValueError, match=r"between -1\.0 and 1\.0"):
        BettingTest(0.0).add(value)


@pytest.mark.parametrize("seed", range(8))
def test_all_values_at_once_decide_where_one_by_one_does(seed):
    values = np.random.default_rng(seed).choice([-1.0, 0.0, 0.5, 1.0], size=300, p=[0.2, 0.3, 0.2, 0.3])
    test, mean, first = BettingTest(-0.02), -0.02, None
    for number, value in enumerate(values, 1):
        test.add(value)
        if first is None and test.log_capital >= math.log(20):
            first = (number, test.log_capital_up >= test.log_capital_down)
    assert find_decision(values, mean) == first
