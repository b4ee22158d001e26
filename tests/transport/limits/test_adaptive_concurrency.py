"""The limit that adapts, on servers that are arithmetic."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.transport.limits.adaptive_concurrency import AMONG_ENDED, CHANCE_REFUSALS, AdaptiveLimit, FixedLimit
from tests.support.limit_simulation import simulate


def steady(_random: random.Random, _number: int) -> float:
    return 1.0


def varied(random_: random.Random, _number: int) -> float:
    return random_.lognormvariate(-0.32, 0.8)


@given(
    ceiling=st.integers(1, 100),
    events=st.lists(st.tuples(st.sampled_from(["answered", "failed", "refused"]), st.floats(0, 1e4)), max_size=400),
)
def test_limit_stays_within_bounds(ceiling, events):
    """Between one and the ceiling, whatever happens."""
    limit = AdaptiveLimit(ceiling)
    for kind, latency_s in events:
        ticket = limit.begin(limit.limit)
        if kind == "answered":
            limit.note_answer(ticket, latency_s)
        elif kind == "failed":
            limit.note_failure(ticket)
        else:
            before = limit.limit
            limit.note_refusal(ticket)
            assert limit.limit <= before
        assert 1 <= limit.limit <= ceiling


@given(st.integers(2, 64), st.integers(CHANCE_REFUSALS + 1, 500))
def test_refusals_of_requests_that_began_together_count_once(ceiling, refusals):
    limit = AdaptiveLimit(ceiling)
    tickets = [limit.begin(under_way) for under_way in range(1, refusals + 1)]
    before = limit.limit
    for ticket in tickets:
        limit.note_refusal(ticket)
    assert limit.limit == before // 2


@given(st.integers(2, 64), st.integers(1, CHANCE_REFUSALS), st.integers(1, 20))
def test_refusals_that_come_one_by_one_are_chance(ceiling, at_once, times):
    limit = AdaptiveLimit(ceiling)
    for _ in range(times):
        before = limit.limit
        for _ in range(at_once):
            limit.note_refusal(limit.begin(1))
        assert limit.limit == before
        for _ in range(AMONG_ENDED):
            limit.note_answer(limit.begin(1), 1.0)


@given(st.integers(2, 64))
def test_a_call_that_is_refused_again_is_a_reason_at_once(ceiling):
    limit = AdaptiveLimit(ceiling)
    before = limit.limit
    limit.note_refusal(limit.begin(1), again=True)
    assert limit.limit == before // 2


@pytest.mark.parametrize("ceiling", [8, 32])
@given(st.integers(0, 2**16))
@settings(max_examples=10, deadline=None)
def test_isolated_refusals_do_not_lower_the_limit(ceiling, seed):
    """A provider that refuses one request in a hundred by chance still gets as many as it can handle."""
    limit, rng = AdaptiveLimit(ceiling), random.Random(seed)
    limits = []
    for _ in range(3000):
        ticket = limit.begin(limit.limit)
        if rng.random() < 0.01:
            limit.note_refusal(ticket)
        else:
            limit.note_answer(ticket, varied(rng, 0))
        limits.append(limit.limit)
    assert statistics.mean(limits) >= ceiling / 2


@pytest.mark.slow
@given(st.lists(st.floats(0.001, 100), max_size=300))
def test_answers_while_places_are_free_change_nothing(latencies_s):
    limit = AdaptiveLimit(16)
    for latency_s in latencies_s:
        limit.note_answer(limit.begin(under_way=3), latency_s)
    assert limit.limit == 16


@given(st.sampled_from([steady, varied]), st.sampled_from([16, 64]), st.integers(1, 24), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_a_server_with_a_long_queue_is_kept_busy(service, ceiling, capacity, seed):
    outcome = simulate(AdaptiveLimit(ceiling), calls=1500, capacity=capacity, service_s=service, seed=seed)
    at_best = simulate(FixedLimit(ceiling), calls=1500, capacity=capacity, service_s=service, seed=seed)
    assert outcome.seconds <= at_best.seconds / 0.7


@pytest.mark.parametrize("capacity", [2, 4, 8, 16])
@pytest.mark.parametrize("queue_per_slot", [None, 0, 1])
def test_adaptive_limit_reaches_nine_tenths(capacity, queue_per_slot):
    """From the start, compared with the best fixed setting."""
    server = {"capacity": capacity, "max_queue": None if queue_per_slot is None else queue_per_slot * capacity}
    outcome = simulate(AdaptiveLimit(32), calls=20 * capacity, **server)
    best = simulate(FixedLimit(capacity), calls=20 * capacity, **server)
    assert best.seconds / outcome.seconds >= 0.9


def test_a_step_too_many_is_taken_back_and_no_more():
    limit = AdaptiveLimit(64)
    simulate(limit, calls=400, capacity=24, max_queue=0)
    while limit.limit <= 24:
        limit.note_answer(limit.begin(limit.limit), 1.0)
    for _ in range(CHANCE_REFUSALS + 1):
        limit.note_refusal(limit.begin(limit.limit))
    assert limit.limit == 24
    for _ in range(CHANCE_REFUSALS + 1):
        limit.note_refusal(limit.begin(limit.limit))
    assert limit.limit == 18


def test_a_trial_that_goes_wrong_ends_before_its_group_does():
    limit = AdaptiveLimit(16)
    answers = 0
    while limit.limit == 16:
        limit.note_answer(limit.begin(limit.limit), 1.0)
    while limit.limit == 8:
        limit.note_answer(limit.begin(limit.limit), 1.0)
        answers += 1
    assert (limit.limit, answers) == (16, 8)


@given(st.sampled_from([16, 64]), st.integers(1, 16))
@settings(max_examples=25, deadline=None)
def test_the_limit_settles_near_what_the_server_does_at_once(ceiling, capacity):
    late = simulate(AdaptiveLimit(ceiling), calls=1500, capacity=capacity).late()
    assert 0.9 * capacity <= statistics.mean(late) <= 2 * capacity + 2


def test_answers_of_any_length_do_not_hide_a_queue():
    outcomes = [simulate(AdaptiveLimit(64), calls=3000, capacity=4, service_s=varied, seed=seed) for seed in range(8)]
    assert statistics.mean(limit for outcome in outcomes for limit in outcome.late()) <= 24


@given(st.integers(1, 24), st.integers(0, 8), st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_a_server_that_refuses_is_filled_and_seldom_asked_for_more(capacity, max_queue, seed):
    outcome = simulate(
        AdaptiveLimit(64), calls=2000, capacity=capacity, max_queue=max_queue, service_s=varied, seed=seed
    )
    at_best = simulate(FixedLimit(capacity), calls=2000, capacity=capacity, service_s=varied, seed=seed)
    assert outcome.seconds <= at_best.seconds / 0.7
    assert outcome.refusals <= 40
    assert max(outcome.late()) <= capacity + max_queue + 1


@pytest.mark.parametrize("factor", [10.0, 0.1])
def test_longer_answers_alone_do_not_lower_the_limit_for_long(factor):
    def service(random_: random.Random, number: int) -> float:
        return varied(random_, number) * (factor if number > 1000 else 1)

    outcome = simulate(AdaptiveLimit(16), calls=2500, capacity=None, service_s=service)
    assert statistics.mean(outcome.limits[-500:]) > 14


def test_a_minute_of_nothing_but_refusals_is_recovered_from():
    limit = AdaptiveLimit(32)
    simulate(limit, calls=1000, capacity=None)
    for _ in range(100):
        limit.note_refusal(limit.begin(limit.limit))
    assert limit.limit == 1
    assert simulate(limit, calls=1000, capacity=None).limits[-1] >= 24


def test_a_server_that_grows_is_found_out():
    limit = AdaptiveLimit(64)
    simulate(limit, calls=1000, capacity=2)
    assert limit.limit <= 6
    assert max(simulate(limit, calls=4000, capacity=16).limits[-500:]) >= 16


def test_a_limit_below_one_is_no_limit():
    with pytest.raises(ValueError, match="lets nothing through"):
        AdaptiveLimit(0)
