"""The changes of leases; see `operations`.

The rows of a pool are read and changed under the lock of the pool, so no two processes are given the same room. All
locks of a batch are taken before its first change and in one order, so no two batches wait for each other; and leases
are the last changes of a batch, so that the locks are held for little more than its commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, Self
from uuid import UUID, uuid5

from llmkit.persistence.compiled_statements import CompiledStatement, Statements
from llmkit.persistence.connections import Writer
from llmkit.persistence.operations import execute
from llmkit.persistence.rows import storable
from llmkit.persistence.writer import Operation
from llmkit.ports import BudgetReply, BudgetShare, ClosedShare, HeldShare, SpentBlock, WindowReply, WindowShare
from llmkit.types import Route

__all__ = ["WINDOW_S", "CloseShares", "ListShares", "PauseRoute", "TakeShares", "TakeWindow"]

# A minute, and a second for requests that take longer to reach the provider than those after them.
WINDOW_S: Final = 61.0
# Names of rows that belong to a pool and not to a process.
_BASES: Final = UUID("7d1c6cf6-5b0e-4f0c-9d0a-6f6c6d6b6974")
# Amounts are kept in 64 bits, in which the sum of two of them must fit too: trillionths of 4 million dollars.
_MOST: Final = 2**62


class _Lease(NamedTuple):
    """The row of a lease."""

    amount: int
    settled: int
    expires_at_utc: datetime | None


class _Pools:
    """The rows of pools inside one transaction, with the database's time after their locks were given."""

    def __init__(self, connection: Writer, statements: Statements, pools: Iterable[str]) -> None:
        self._connection = connection
        self._statements = statements
        for pool in sorted(set(pools)):
            connection.all(statements.lock_pool.sql, statements.lock_pool.row({"pool": pool}))
        # Read after waiting for the locks: what was granted meanwhile began before this.
        row = connection.first(statements.database_now.sql, ())
        assert row is not None
        self.now_utc: datetime = statements.database_now.values(row)[0]

    def change(self, statement: CompiledStatement, **values: Any) -> int:
        return execute(self._connection, statement, [statement.row(values)])

    def find(self, lease_id: UUID) -> _Lease | None:
        select = self._statements.lease
        row = self._connection.first(select.sql, select.row({"lease_id": lease_id}))
        if row is None:
            return None
        amount, settled, expires_at_utc = select.values(row)
        return _Lease(int(amount), int(settled), expires_at_utc)

    def write(self, lease_id: UUID, pool: str, owner: str, lease: _Lease) -> None:
        """Insert a lease, or replace its values."""
        values = {
            "amount": min(lease.amount, _MOST),
            "settled": min(lease.settled, _MOST),
            "expires_at_utc": lease.expires_at_utc,
        }
        if not self.change(self._statements.update_lease, lease_id=lease_id, **values):
            self.change(self._statements.insert_lease, id=lease_id, pool=pool, owner=owner, **values)

    def read_use(self, pool: str) -> tuple[int, int]:
        """Return what is reserved or used in the window, and by how many processes."""
        select = self._statements.pool_use
        row = self._connection.first(select.sql, select.row({"in_pool": pool, "now_utc": self.now_utc}))
        assert row is not None
        return int(row[0]), int(row[1])

    def wait_s(self, pool: str, excess: int) -> float:
        """Return the seconds until as much has left the window."""
        select, wait_s = self._statements.pool_ends, WINDOW_S
        for row in self._connection.all(select.sql, select.row({"in_pool": pool, "now_utc": self.now_utc})):
            amount, ends_utc = select.values(row)
            wait_s = (ends_utc - self.now_utc).total_seconds()
            excess -= int(amount)
            if excess <= 0:
                break
        return max(wait_s, 0.0)

    def read_budget(self, pool: str, without: UUID) -> tuple[int, int, int]:
        """Return what processes other than one hold of a budget, what they have spent, and how many they are."""
        select = self._statements.budget_use
        row = self._connection.first(select.sql, select.row({"in_pool": pool, "lease_id": without}))
        assert row is not None
        return int(row[0]), int(row[1]), int(row[2])

    def list_shares(self, pool: str) -> list[HeldShare]:
        """Return the shares that processes have of a budget."""
        select = self._statements.budget_shares
        found = self._connection.all(select.sql, select.row({"in_pool": pool}))
        rows = (select.values(row) for row in found)
        return [
            HeldShare(pool, lease_id, owner, int(amount), int(settled), expires_at_utc, self.now_utc)
            for lease_id, owner, amount, settled, expires_at_utc in rows
        ]


class TakeWindow(Operation):
    """Return blocks of limits per minute that are spent, and take the next one, of all limits or of none."""

    __slots__ = ("owner", "shares", "spent", "valid_s")
    rank = 5

    def __init__(self, owner: str, shares: Sequence[WindowShare], spent: Sequence[SpentBlock], valid_s: float) -> None:
        self.owner = owner
        self.shares = shares
        self.spent = spent
        self.valid_s = valid_s

    def lock_key(self) -> str:
        """See `Operation`."""
        return self.shares[0].pool if self.shares else ""

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""

    @classmethod
    def apply_all(cls, connection: Writer, statements: Statements, operations: Sequence[Self]) -> list[Any]:
        """Apply each in turn; a block that was taken by a first application is returned as it is."""
        pools = _Pools(connection, statements, (share.pool for each in operations for share in each.shares))
        return [each._apply(pools, statements) for each in operations]  # noqa: SLF001

    def _apply(self, pools: _Pools, statements: Statements) -> WindowReply:
        for block in self.spent:
            self._give_back(pools, statements, block)
        if all(share.most == 0 for share in self.shares):
            return WindowReply(None, 0.0, 0)
        known = [pools.find(share.lease_id) for share in self.shares]
        uses = [pools.read_use(share.pool) for share in self.shares]
        holders = max(users for _, users in uses)
        if all(lease is not None for lease in known):
            return WindowReply(tuple(lease.amount for lease in known if lease is not None), 0.0, holders)
        rooms = [share.limit - used for share, (used, _) in zip(self.shares, uses, strict=True)]
        short = [(share, room) for share, room in zip(self.shares, rooms, strict=True) if room < share.least]
        if short:
            return WindowReply(
                None, max(pools.wait_s(share.pool, share.least - room) for share, room in short), holders
            )
        amounts = tuple(min(share.most, room) for share, room in zip(self.shares, rooms, strict=True))
        ends_utc = pools.now_utc + timedelta(seconds=self.valid_s + WINDOW_S)
        for share, amount in zip(self.shares, amounts, strict=True):
            pools.change(statements.prune_leases, in_pool=share.pool, now_utc=pools.now_utc)
            values = {"pool": share.pool, "owner": self.owner, "amount": amount, "settled": 0}
            pools.change(statements.insert_lease, id=share.lease_id, expires_at_utc=ends_utc, **values)
        return WindowReply(amounts, 0.0, holders)

    def _give_back(self, pools: _Pools, statements: Statements, block: SpentBlock) -> None:
        # Counted from the last request that left, which was earlier than this transaction by at least `idle_s`.
        ends_utc = pools.now_utc + timedelta(seconds=WINDOW_S - block.idle_s)
        for lease_id, used in zip(block.lease_ids, block.used, strict=True):
            if used == 0:
                pools.change(statements.delete_lease, lease_id=lease_id)
            else:
                values = {"amount": used, "settled": 0, "expires_at_utc": ends_utc}
                pools.change(statements.update_lease, lease_id=lease_id, **values)


# A budget has a row for each process at work, and one without owner, the base, with what was spent by all who are gone.
# The base is written by the first process, which reads the records of the run after it joined, when no other can have
# spent anything; and it goes with the last one, so that the next first process reads them again. The amount of the base
# is no part of the budget, but the largest limit that was used up.


class TakeShares(Operation):
    """Report what was spent of a budget, and take the next part, of all kinds or of none."""

    __slots__ = ("owner", "shares", "valid_s")
    rank = 6

    def __init__(self, owner: str, shares: Sequence[BudgetShare], valid_s: float) -> None:
        self.owner = owner
        self.shares = shares
        self.valid_s = valid_s

    def lock_key(self) -> str:
        """See `Operation`."""
        return self.shares[0].pool

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""

    @classmethod
    def apply_all(cls, connection: Writer, statements: Statements, operations: Sequence[Self]) -> list[Any]:
        """Apply each in turn. Totals, not differences, are written, so a second application changes nothing."""
        pools = _Pools(connection, statements, (share.pool for each in operations for share in each.shares))
        return [each._apply(pools) for each in operations]  # noqa: SLF001

    def _apply(self, pools: _Pools) -> BudgetReply:
        nothing = (0,) * len(self.shares)
        if any(not share.is_new and pools.find(share.lease_id) is None for share in self.shares):
            return BudgetReply(None, nothing, nothing, (False,) * len(nothing), 0, is_founded=True, is_lost=True)
        uses = [pools.read_budget(share.pool, share.lease_id) for share in self.shares]
        bases = [_found_base(pools, share) for share in self.shares]
        spent = tuple(
            share.settled + others + (0 if base is None else base.settled)
            for share, base, (_, others, _) in zip(self.shares, bases, uses, strict=True)
        )
        used_up = tuple(
            _mark_used_up(pools, share, base, used) for share, base, used in zip(self.shares, bases, spent, strict=True)
        )
        held = tuple(use[0] for use in uses)
        workers = 1 + max(use[2] for use in uses)
        rooms = [
            share.limit - used - elsewhere - share.kept
            for share, used, elsewhere in zip(self.shares, spent, held, strict=True)
        ]
        is_founded = None not in bases
        is_granted = is_founded and not any(used_up)
        is_granted &= all(room >= share.least for share, room in zip(self.shares, rooms, strict=True))
        # Half of what is left goes to all who work, so that the last requests are not all in the hands of one.
        granted = tuple(
            max(share.least, min(share.most, room // (2 * workers))) if is_granted else 0
            for share, room in zip(self.shares, rooms, strict=True)
        )
        ends_utc = pools.now_utc + timedelta(seconds=self.valid_s)
        for share, part in zip(self.shares, granted, strict=True):
            lease = _Lease(share.kept + part, share.settled, ends_utc)
            pools.write(share.lease_id, share.pool, self.owner, lease)
        return BudgetReply(granted if is_granted else None, spent, held, used_up, workers, is_founded, is_lost=False)


def _found_base(pools: _Pools, share: BudgetShare) -> _Lease | None:
    base = pools.find(_base_id(share.pool))
    if base is None and share.earlier is not None:
        base = _Lease(0, share.earlier, None)
        pools.write(_base_id(share.pool), share.pool, "", base)
    return base


def _mark_used_up(pools: _Pools, share: BudgetShare, base: _Lease | None, spent: int) -> bool:
    """Return whether the limit is used up, after noting that it is if this request can never have room."""
    if base is None:
        return False
    if spent + share.least > share.limit > base.amount:
        base = base._replace(amount=share.limit)
        pools.write(_base_id(share.pool), share.pool, "", base)
    return base.amount >= share.limit


class CloseShares(Operation):
    """Add what shares have spent to their pools, and remove them: of a process that ends, or of one that died."""

    __slots__ = ("shares",)
    rank = 6

    def __init__(self, shares: Sequence[ClosedShare]) -> None:
        self.shares = shares

    def lock_key(self) -> str:
        """See `Operation`."""
        return self.shares[0].pool

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""

    @classmethod
    def apply_all(cls, connection: Writer, statements: Statements, operations: Sequence[Self]) -> list[Any]:
        """Close those that are still there: another process may have found the same one dead."""
        pools = _Pools(connection, statements, (share.pool for each in operations for share in each.shares))
        for each in operations:
            for share in each.shares:
                _close(pools, statements, share)
        return [None] * len(operations)


def _close(pools: _Pools, statements: Statements, share: ClosedShare) -> None:
    lease = pools.find(share.lease_id)
    if lease is None or (share.expires_at_utc is not None and share.expires_at_utc != lease.expires_at_utc):
        return
    pools.change(statements.delete_lease, lease_id=share.lease_id)
    base_id = _base_id(share.pool)
    if pools.read_budget(share.pool, share.lease_id)[2] == 0:
        pools.change(statements.delete_lease, lease_id=base_id)
    elif (base := pools.find(base_id)) is not None:
        spent = base.settled + max(lease.settled, share.spent)
        pools.write(base_id, share.pool, "", base._replace(settled=spent))


def _base_id(pool: str) -> UUID:
    return uuid5(_BASES, pool)


class ListShares(Operation):
    """Read the shares that processes have of budgets."""

    __slots__ = ("pools",)
    rank = 6

    def __init__(self, pools: Sequence[str]) -> None:
        self.pools = pools

    def lock_key(self) -> str:
        """See `Operation`."""
        return self.pools[0]

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""

    @classmethod
    def apply_all(cls, connection: Writer, statements: Statements, operations: Sequence[Self]) -> list[Any]:
        """Read them, without their locks: a share that is closed meanwhile is not closed again."""
        pools = _Pools(connection, statements, ())
        return [[share for pool in each.pools for share in pools.list_shares(pool)] for each in operations]


class PauseRoute(Operation):
    """Leave a route alone until a time, in all processes; a longer pause stays."""

    __slots__ = ("route", "seconds")
    rank = 7

    def __init__(self, route: Route, seconds: float) -> None:
        self.route = route
        self.seconds = seconds

    def lock_key(self) -> str:
        """See `Operation`."""
        return str(self.route)

    def prepare(self, statements: Statements) -> None:
        """See `Operation`."""

    @classmethod
    def apply_all(cls, connection: Writer, statements: Statements, operations: Sequence[Self]) -> list[Any]:
        """Write all."""
        now_utc = _Pools(connection, statements, ()).now_utc
        rows = [
            statements.pause_route.row(
                {
                    "endpoint": str(each.route.provider),
                    "model": storable(each.route.model),
                    "until_utc": now_utc + timedelta(seconds=each.seconds),
                }
            )
            for each in operations
        ]
        execute(connection, statements.pause_route, rows)
        return [None] * len(operations)
