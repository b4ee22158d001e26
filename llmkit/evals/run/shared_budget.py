"""A budget that all processes at a run share, spent from parts that are taken ahead of need.

The store has the part of each process: what it has spent, and what it may spend beyond that (`amount`). Their sum, and
what was spent before, never exceeds the limit. A process reserves within its part without the store, gives back what it
does not use every few seconds, and closes its part when it ends. A process that died cannot: the others count what the
records of its calls say, and what was under way as the most that a request can use.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol
from uuid import UUID, uuid4

from llmkit.calls.liveness import is_alive
from llmkit.evals.budget import NOTHING, Account, Amount, Books, Budget, Kind
from llmkit.ports import BudgetReply, BudgetShare, ClosedShare, HeldShare, Leases

__all__ = ["OwnSpending", "SharedBudget", "Spending"]

# A part that was not renewed for so long is that of a dead process. A process uses no part that is half as old.
VALID_S: Final = 120.0
# What a process takes at once is what it used in the last seconds, this many.
BLOCK_S: Final = 5.0
# How often a part is renewed, in seconds; with many workers less often, so that the store is asked a hundred times a
# second at most.
RENEW_S: Final = 2.0
WORKERS_PER_S: Final = 100
# Between two questions while there is no room.
FIRST_WAIT_S: Final = 0.1
# Between two looks for processes that died while there is no room.
REAP_S: Final = 1.0
# The store counts in 64 bits.
MOST_LIMIT: Final = 2**62


class OwnSpending(NamedTuple):
    """Spending of one process on a run, by the records of its calls.

    Attributes:
        total: All of it, calls in doubt included.
        doubtful: Of these, calls that it had under way, at the most that a request can use.
    """

    total: Amount
    doubtful: Amount


class Spending(Protocol):
    """The records of what a run has spent. The methods raise `LLMStoreError`."""

    async def read_earlier(self) -> Amount:
        """Return what the run has spent. No other process is at work."""
        ...

    async def read_of_owner(self, owner: str) -> OwnSpending | None:
        """Return what a process that is dead has spent; None when that is unknown."""
        ...


def is_gone(share: HeldShare) -> bool:
    """Return whether the process of a share is dead, or was silent for so long that it counts as dead."""
    return is_alive(share.owner) is False or share.read_at_utc > share.expires_at_utc


class SharedBudget:
    """The part of this process of a run's budget. Belongs to one event loop.

    Attributes:
        books: What was spent and is reserved by this process, within what it may use now.

    Args:
        leases: Where parts are taken.
        name: Name of the run's budget, the same in all processes.
        budget: The limits of the whole run.
        spending: What is recorded of the run.
        clock: Seconds on a clock that never goes back.
        is_dead: Whether the process of a share is dead.
    """

    def __init__(
        self,
        leases: Leases,
        name: str,
        budget: Budget,
        spending: Spending,
        clock: Callable[[], float],
        is_dead: Callable[[HeldShare], bool] = is_gone,
    ) -> None:
        self._leases = leases
        self._spending = spending
        self._clock = clock
        self._is_dead = is_dead
        whole = Books.of(budget).accounts
        self._limits = {kind: min(account.limit, MOST_LIMIT) for kind, account in whole.items()}
        self._pools = {kind: f"budget/{name}/{kind}" for kind in whole}
        self.books = Books({kind: Account(0) for kind in whole})
        self._ids: dict[Kind, UUID] = {}
        self._earlier: Amount | None = None
        self._reply: BudgetReply | None = None
        self._reported: dict[Kind, int] = {}
        self._renewed_s = -math.inf
        self._reaped_s = -math.inf
        self._asked_s = clock()
        self._used_then: dict[Kind, int] = dict.fromkeys(whole, 0)
        self._recent: dict[Kind, float] = dict.fromkeys(whole, 0.0)
        self._refusals = 0

    # --- what a process does ------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Take part. What the run has spent before is read by the first process.

        Raises:
            LLMStoreError: The store cannot be reached.
        """
        await self._reap()
        await self._ask(NOTHING, 1)

    def reserve(self, most: Amount) -> bool:
        """Reserve an amount if this process has room for it now."""
        return self._is_fresh and self.books.reserve(most)

    async def take(self, least: Amount, callers: int = 1) -> bool:
        """Ask for room for this amount and more; return whether there is.

        Args:
            least: What one request needs; nothing to renew the part of this process, and give back what it does not
                use.
            callers: How many requests of this process wait.

        Raises:
            LLMStoreError: The store cannot be reached.
        """
        reply = await self._ask(least, callers)
        if reply.granted is None and not any(reply.used_up) and await self._reap():
            reply = await self._ask(least, callers)
        self._refusals = 0 if reply.granted is not None else min(self._refusals + 1, 16)
        return reply.granted is not None

    async def close(self) -> None:
        """Give back what is not used.

        Raises:
            LLMStoreError: The store cannot be reached. The others count this process as dead after `VALID_S`.
        """
        if self._ids:
            accounts = self.books.accounts
            shares = [
                ClosedShare(self._pools[kind], self._ids[kind], accounts[kind].spent + accounts[kind].reserved)
                for kind in accounts
            ]
            self._ids = {}
            await self._leases.close_shares(shares)

    async def read_earlier(self) -> Amount:
        """Return what the run has spent by its records.

        Raises:
            LLMEvaluationError: The price of something that was sent is not known.
            LLMStoreError: The store cannot be read.
        """
        return await self._spending.read_earlier()

    @property
    def pause_s(self) -> float:
        """How long to wait after there was no room, in seconds, unless a request of this process ends before."""
        if not self._held_elsewhere:
            return self.renew_s
        # With jitter: all processes wait for the same request to end.
        jitter = random.uniform(0.5, 1)  # noqa: S311
        return min(jitter * FIRST_WAIT_S * 2.0**self._refusals, self.renew_s)

    @property
    def renew_s(self) -> float:
        """How long after a question the part is to be renewed, in seconds."""
        workers = 1 if self._reply is None else self._reply.workers
        return min(max(RENEW_S, workers / WORKERS_PER_S), VALID_S / 8)

    @property
    def used_up(self) -> Kind | None:
        """The limit that is used up: some process had a request for which there can be no room any more."""
        if self._reply is None:
            return None
        return next((kind for kind, over in zip(self._limits, self._reply.used_up, strict=True) if over), None)

    def spent(self, kind: Kind) -> int:
        """Return what all processes have spent, as far as they reported it."""
        if self._reply is None:
            return 0
        index = list(self._limits).index(kind)
        return self._reply.spent[index] - self._reported[kind] + self.books.accounts[kind].spent

    # --- the store ----------------------------------------------------------------------------------------------

    @property
    def _is_fresh(self) -> bool:
        # A process that was stopped for a while may have been taken for dead.
        return self._clock() - self._renewed_s < VALID_S / 2

    @property
    def _held_elsewhere(self) -> bool:
        return self._reply is not None and any(self._reply.held)

    async def _ask(self, least: Amount, callers: int) -> BudgetReply:
        while True:
            is_new = not self._ids
            ids = self._ids or {kind: uuid4() for kind in self._limits}
            if is_new:
                self._begin_again()
            wishes = self._choose_size(least, callers)
            accounts = self.books.accounts
            before = {kind: (account.spent, account.reserved) for kind, account in accounts.items()}
            shares = [
                BudgetShare(
                    lease_id=ids[kind],
                    pool=self._pools[kind],
                    limit=self._limits[kind],
                    earlier=None if self._earlier is None else self._earlier.of(kind),
                    settled=spent,
                    kept=reserved,
                    least=least.of(kind),
                    most=wishes[kind],
                    is_new=is_new,
                )
                for kind, (spent, reserved) in before.items()
            ]
            self._ids = ids
            for kind, account in accounts.items():
                # Given up before the store knows it: this caller may be cancelled before it hears the answer.
                account.limit = sum(before[kind])
            asked_s = self._clock()
            reply = await self._leases.take_shares(shares, VALID_S)
            if reply.is_lost:
                self._ids = {}
                continue
            self._note(reply, before, asked_s)
            if not reply.is_founded:
                # No process can spend before this is known, and none that has ended is missing in it.
                self._earlier = await self._spending.read_earlier()
                continue
            return reply

    def _begin_again(self) -> None:
        """Begin with a part of which nothing is spent, after another that others have closed."""
        for kind, account in self.books.accounts.items():
            self._used_then[kind] -= account.spent
            account.spent = 0
        self._earlier = None

    def _note(self, reply: BudgetReply, before: dict[Kind, tuple[int, int]], asked_s: float) -> None:
        self._reply, self._renewed_s = reply, asked_s
        self._reported = {kind: spent for kind, (spent, _) in before.items()}
        if reply.granted is not None:
            for (kind, account), part in zip(self.books.accounts.items(), reply.granted, strict=True):
                account.limit = sum(before[kind]) + part

    def _choose_size(self, least: Amount, callers: int) -> dict[Kind, int]:
        """Return what to ask for: as much as was used in the last seconds, or what waits now."""
        now_s = self._clock()
        fading = math.exp(-max(0.0, now_s - self._asked_s) / BLOCK_S)
        self._asked_s = now_s
        wishes: dict[Kind, int] = {}
        for kind, account in self.books.accounts.items():
            used = account.spent + account.reserved
            self._recent[kind] = self._recent[kind] * fading + max(0, used - self._used_then[kind])
            self._used_then[kind] = used
            wishes[kind] = max(callers * least.of(kind), math.ceil(self._recent[kind]))
        return wishes

    async def _reap(self) -> bool:
        """Close the shares of processes that died; return whether there were any."""
        if self._clock() - self._reaped_s < REAP_S:
            return False
        self._reaped_s = self._clock()
        held = await self._leases.list_shares(list(self._pools.values()))
        mine = set(self._ids.values())
        dead = [share for share in held if share.lease_id not in mine and self._is_dead(share)]
        if not dead:
            return False
        known = {owner: await self._spending.read_of_owner(owner) for owner in {share.owner for share in dead}}
        await self._leases.close_shares([self._count_dead(share, known[share.owner]) for share in dead])
        return True

    def _count_dead(self, share: HeldShare, own: OwnSpending | None) -> ClosedShare:
        # What it spent since its last report: by its records, but no less than the requests that were under way, and
        # no more than it had. It may have spent from an earlier share too, which was closed: then this is too much.
        kind: Kind = next(kind for kind, pool in self._pools.items() if pool == share.pool)
        since = share.amount
        if own is not None:
            since = min(since, max(own.total.of(kind) - share.settled, own.doubtful.of(kind)))
        return ClosedShare(share.pool, share.lease_id, share.settled + max(0, since), share.expires_at_utc)
