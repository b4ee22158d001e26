"""Leases of limits and budgets, on real databases."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from llmkit.persistence.lease_operations import TakeShares, TakeWindow
from llmkit.persistence.leases import JournalLeases
from llmkit.ports import BudgetShare, ClosedShare, SpentBlock, WindowShare
from llmkit.types import Route
from tests.support.repositories import JournalHome

if TYPE_CHECKING:
    from llmkit.ports import WindowReply


def _wish(limit: int = 60, most: int = 7, pool: str = "rate/x/requests") -> WindowShare:
    return WindowShare(uuid4(), pool, limit, 1, most)


async def test_processes_that_ask_at_once_get_no_more_than_the_limit(database_url: str) -> None:
    with JournalHome(database_url) as one, JournalHome(database_url) as other:
        leases = [JournalLeases(one.journal, lambda: "one"), JournalLeases(other.journal, lambda: "other")]
        wishes = [leases[number % 2].take_window([_wish()], [], 3.0) for number in range(40)]
        replies: list[WindowReply] = list(await asyncio.gather(*wishes))
    granted = [reply.amounts[0] for reply in replies if reply.amounts is not None]
    assert sum(granted) == 60
    assert all(62 < reply.wait_s <= 64 for reply in replies if reply.amounts is None)


async def test_a_block_counts_from_the_last_request_that_left(database_url: str) -> None:
    with JournalHome(database_url) as home:
        leases = JournalLeases(home.journal, lambda: "one")
        spent, unused = _wish(10, 10), _wish(10, 10, "rate/y/requests")
        for wish in (spent, unused):
            assert (await leases.take_window([wish], [], 3.0)).amounts == (10,)
        back = [SpentBlock((spent.lease_id,), (9,), 20.0), SpentBlock((unused.lease_id,), (0,), 0.0)]
        assert (await leases.take_window([_wish(10)], back, 3.0)).amounts == (1,)
        assert (await leases.take_window([unused._replace(lease_id=uuid4())], [], 3.0)).amounts == (10,)
        full = await leases.take_window([_wish(10)], [], 3.0)
    assert full.amounts is None
    assert 40 < full.wait_s <= 41


async def test_two_limits_are_taken_together_or_not_at_all(database_url: str) -> None:
    with JournalHome(database_url) as home:
        leases = JournalLeases(home.journal, lambda: "one")
        tokens = WindowShare(uuid4(), "rate/x/tokens", 100, 90, 90)
        assert (await leases.take_window([_wish(2, 2), tokens], [], 3.0)).amounts == (2, 90)
        assert (await leases.take_window([_wish(9), tokens._replace(lease_id=uuid4())], [], 3.0)).amounts is None
        assert (await leases.take_window([_wish(3, 2)], [], 3.0)).amounts == (1,)


async def test_a_wish_that_is_applied_again_gets_the_same(database_url: str) -> None:
    """As after a connection that was lost while it committed."""
    share = BudgetShare(uuid4(), "budget/x", 100, earlier=10, settled=5, kept=0, least=1, most=20, is_new=True)
    with JournalHome(database_url) as home:
        wish = TakeWindow("one", [_wish()], [], 3.0)
        assert [(await home.journal.perform(wish)).amounts for _ in range(2)] == [(7,), (7,)]
        budget = TakeShares("one", [share], 60.0)
        assert [(await home.journal.perform(budget))[:3] for _ in range(2)] == [((20,), (15,), (0,))] * 2


def _join(**changes: Any) -> BudgetShare:
    share = BudgetShare(uuid4(), "budget/x", 100, earlier=40, settled=0, kept=0, least=10, most=10, is_new=True)
    return share._replace(**changes)


async def test_a_budget_is_shared_and_returned(database_url: str) -> None:
    with JournalHome(database_url) as home:
        leases = JournalLeases(home.journal, lambda: "one")
        mine, other = _join(), _join()
        for share in (mine, other):
            assert (await leases.take_shares([share], 60.0)).granted == (10,)
        greedy = await leases.take_shares([mine._replace(settled=10, least=41)], 60.0)
        assert (greedy.granted, greedy.spent, greedy.held, greedy.used_up) == (None, (50,), (10,), (False,))
        await leases.close_shares([ClosedShare("budget/x", other.lease_id, 3)])
        last = await leases.take_shares([mine._replace(settled=10, least=37, most=37)], 60.0)
        assert (last.granted, last.spent, last.held) == ((37,), (53,), (0,))


async def test_a_budget_is_founded_by_the_first_process_and_forgotten_after_the_last(database_url: str) -> None:
    with JournalHome(database_url) as home:
        leases = JournalLeases(home.journal, lambda: "one")
        for earlier in (40, 90):
            first, late = _join(earlier=None), _join(earlier=0)
            reply = await leases.take_shares([first], 60.0)
            assert (reply.granted, reply.is_founded) == (None, False)
            await leases.take_shares([first._replace(earlier=earlier)], 60.0)
            assert (await leases.take_shares([late], 60.0)).spent == (earlier,)
            await leases.close_shares([ClosedShare("budget/x", share.lease_id, 0) for share in (first, late)])


async def test_a_process_that_was_heard_of_is_not_closed(database_url: str) -> None:
    with JournalHome(database_url) as home:
        leases = JournalLeases(home.journal, lambda: "one")
        mine = _join()
        await leases.take_shares([mine], 60.0)
        (seen,) = await leases.list_shares(["budget/x"])
        dead = ClosedShare("budget/x", mine.lease_id, 3, seen.expires_at_utc)
        await leases.take_shares([mine], 90.0)
        await leases.close_shares([dead])
        again = mine._replace(is_new=False)
        assert not (await leases.take_shares([again], 60.0)).is_lost
        (seen,) = await leases.list_shares(["budget/x"])
        await leases.close_shares([dead._replace(expires_at_utc=seen.expires_at_utc)])
        assert (await leases.take_shares([again], 60.0)).is_lost


async def test_a_limit_that_is_used_up_stops_others_of_the_same_limit_only(database_url: str) -> None:
    with JournalHome(database_url) as home:
        leases = JournalLeases(home.journal, lambda: "one")
        assert (await leases.take_shares([_join(least=61)], 60.0)).used_up == (True,)
        assert (await leases.take_shares([_join(least=1)], 60.0)).granted is None
        assert (await leases.take_shares([_join(least=1, limit=200)], 60.0)).granted is not None


async def test_budgets_too_large_for_the_database_do_not_overflow_it(database_url: str) -> None:
    with JournalHome(database_url) as home:
        leases = JournalLeases(home.journal, lambda: "one")
        huge = _join(limit=2**62, earlier=10**30, settled=10**30, kept=10**30)
        assert (await leases.take_shares([huge], 60.0)).used_up == (True,)


async def test_a_pause_is_seen_by_all_and_the_longer_one_stays(database_url: str) -> None:
    route = Route.parse("gemini/gemini-2.5-flash")
    with JournalHome(database_url) as one, JournalHome(database_url) as other:
        here, there = (JournalLeases(home.journal, lambda: "one") for home in (one, other))
        assert await there.read_pause_s(route) == 0.0
        for seconds in (30.0, 5.0):
            await here.pause(route, seconds)
        assert 25 < await there.read_pause_s(route) <= 30
        assert await there.read_pause_s(Route.parse("gemini/other")) == 0.0
