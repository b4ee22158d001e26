"""Limits per minute and per day."""

from __future__ import annotations

import asyncio
import math
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmkit.transport.limits.daily_quota import Parking, next_midnight
from llmkit.transport.limits.rate_limits import Rates
from llmkit.transport.limits.sliding_window import SlidingWindow
from llmkit.types import Route

ROUTE = Route.parse("gemini/gemini-2.5-flash")


class Clock:
    """A time that only passes when somebody waits."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        await asyncio.sleep(0)


@given(
    limit=st.integers(1, 50),
    steps=st.lists(st.tuples(st.integers(1, 60), st.floats(0, 30), st.floats(0, 90)), min_size=1, max_size=60),
)
def test_no_minute_exceeds_the_limit(limit, steps):
    """Whenever a pass is used."""
    window, now_s = SlidingWindow(limit), 0.0
    sent: list[tuple[float, int]] = []
    for amount, dawdling_s, pause_s in steps:
        now_s += window.wait_s(now_s, amount)
        given_pass = window.reserve(min(amount, limit))
        now_s += dawdling_s
        window.use(given_pass, now_s)
        sent.append((now_s, min(amount, limit)))
        now_s += pause_s
    for start_s, _ in sent:
        assert sum(amount for at_s, amount in sent if start_s <= at_s < start_s + 60 - 1e-6) <= limit


def test_unused_pass_keeps_its_room():
    """A pass that was given back does not."""
    window = SlidingWindow(1)
    held = window.reserve()
    assert window.wait_s(1000.0) == math.inf
    window.release(held)
    window.release(held)
    assert window.wait_s(1000.0) == 0


def test_more_than_the_whole_limit_waits_for_an_empty_window():
    window = SlidingWindow(10)
    window.use(window.reserve(1), 0.0)
    assert window.wait_s(20.0, amount=1000) == 40.0
    assert window.wait_s(60.0, amount=1000) == 0


def test_what_was_sent_can_be_corrected_until_it_is_forgotten():
    window = SlidingWindow(100)
    sent = window.reserve(100)
    window.use(sent, 0.0)
    window.settle(sent, 30)
    assert window.wait_s(1.0, 70) == 0
    assert window.wait_s(61.0, 100) == 0
    window.settle(sent, 90)
    assert window.wait_s(61.0, 100) == 0


async def test_requests_and_tokens_both_hold_and_the_first_comes_first():
    clock = Clock()
    rates = Rates(SlidingWindow(3), SlidingWindow(100), clock, clock.sleep)
    order: list[int] = []

    async def send(number: int, tokens: int) -> None:
        reservation = await rates.reserve(lambda: tokens)
        reservation.use()
        order.append(number)

    await asyncio.gather(*(send(number, 60 if number == 1 else 30) for number in range(5)))
    assert order == [0, 1, 2, 3, 4]
    # 0 and 1 fit (90 tokens), 2 and 3 with 4 are the next minute's.
    assert clock.now_s == 160.0


async def test_a_cancelled_waiter_takes_no_room():
    clock = Clock()
    rates = Rates(SlidingWindow(1), None, clock, clock.sleep)
    first = await rates.reserve(lambda: 0)
    waiting = [asyncio.create_task(rates.reserve(lambda: 0)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    waiting[1].cancel()
    first.release()
    async with asyncio.timeout(60):
        (await waiting[2]).use()
    assert clock.now_s == 100.0


async def test_short_answer_frees_tokens_for_waiting_calls():
    """A call that waits for tokens goes on when an answer was shorter than its reservation."""
    clock = Clock()
    rates = Rates(None, SlidingWindow(100), clock)  # the wait is a real minute
    first = await rates.reserve(lambda: 90)
    first.use()
    waiting = asyncio.create_task(rates.reserve(lambda: 90))
    await asyncio.sleep(0.01)
    first.settle(5)
    async with asyncio.timeout(30):
        await waiting


def test_a_day_begins_where_the_provider_says():
    summer = datetime(2026, 7, 1, 12, 0, tzinfo=UTC)
    assert next_midnight(summer, "America/Los_Angeles") == datetime(2026, 7, 2, 7, 0, tzinfo=UTC)
    assert next_midnight(datetime(2026, 12, 1, 7, 59, tzinfo=UTC), "America/Los_Angeles").hour == 8
    assert next_midnight(summer, "No/Such_Zone") == datetime(2026, 7, 2, tzinfo=UTC)


@given(st.integers(0, 10 * 365 * 24 * 60))
def test_the_next_midnight_is_one_and_comes_within_a_long_day(minutes):
    now = datetime(2020, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
    until = next_midnight(now, "America/Los_Angeles")
    assert now < until <= now + timedelta(hours=25)
    assert until.astimezone(ZoneInfo("America/Los_Angeles")).hour == 0


@pytest.mark.parametrize(("asked_s", "expected_s"), [(None, 8 * 3600), (38.0, 8 * 3600), (7200.0, 7200)])
def test_a_parked_route_is_free_again_at_its_reset(asked_s, expected_s):
    now = datetime(2026, 1, 10, 0, 0, tzinfo=UTC)
    parking = Parking("America/Los_Angeles")
    until = parking.park(ROUTE, now, asked_s)
    assert (until - now).total_seconds() == expected_s
    assert parking.until(ROUTE, until - timedelta(seconds=1)) == until
    assert parking.until(Route.parse("gemini/other"), now) is None
    assert parking.until(ROUTE, until) is None
