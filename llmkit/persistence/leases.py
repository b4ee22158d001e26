"""Leases of limits and budgets through the journal, which groups them with the records of calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from llmkit.persistence.journal import Journal
from llmkit.persistence.lease_operations import CloseShares, ListShares, PauseRoute, TakeShares, TakeWindow
from llmkit.persistence.rows import storable
from llmkit.ports import BudgetReply, BudgetShare, ClosedShare, HeldShare, SpentBlock, WindowReply, WindowShare
from llmkit.types import Route

__all__ = ["JournalLeases"]


class JournalLeases:
    """`Leases` on an open journal, which the caller closes.

    Args:
        journal: Where they are kept.
        owner: Names the process, which may be a fork of the one that made this.
    """

    def __init__(self, journal: Journal, owner: Callable[[], str]) -> None:
        self._journal = journal
        self._owner = owner

    def take_window(
        self, shares: Sequence[WindowShare], spent: Sequence[SpentBlock], valid_s: float
    ) -> Awaitable[WindowReply]:
        """See `Leases`."""
        return self._journal.perform(TakeWindow(self._owner(), shares, spent, valid_s))

    def take_shares(self, shares: Sequence[BudgetShare], valid_s: float) -> Awaitable[BudgetReply]:
        """See `Leases`."""
        return self._journal.perform(TakeShares(self._owner(), shares, valid_s))

    def close_shares(self, shares: Sequence[ClosedShare]) -> Awaitable[None]:
        """See `Leases`."""
        return self._journal.perform(CloseShares(shares))

    def list_shares(self, pools: Sequence[str]) -> Awaitable[list[HeldShare]]:
        """See `Leases`."""
        return self._journal.perform(ListShares(pools))

    def pause(self, route: Route, seconds: float) -> Awaitable[None]:
        """See `Leases`."""
        return self._journal.perform(PauseRoute(route, seconds))

    async def read_pause_s(self, route: Route) -> float:
        """See `Leases`."""
        select = self._journal.statements.pause_of_route
        row = await self._journal.find(select, str(route.provider), storable(route.model))
        return 0.0 if row is None else max(0.0, (row[0] - row[1]).total_seconds())
