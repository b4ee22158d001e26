"""Budgets: the most that a run may use, and accounts in which that is reserved before it is spent. Pure.

A request is sent only after the most that it can use was reserved, and the sum of what is spent and reserved never
exceeds the limit. So no limit is exceeded, in whatever order requests begin and end, as long as no request uses more
than was reserved for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Literal, NamedTuple

from llmkit.errors import LLMEvaluationError

__all__ = ["NOTHING", "Account", "Amount", "Books", "Budget", "BudgetUse", "Kind", "amount"]

Kind = Literal["tokens", "cost", "time"]

# Money is counted in whole parts of a dollar, rounded up: sums of floats are off in the last digit.
PARTS_PER_USD = 10**12


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that a run may take. What is None has no limit.

    Attributes:
        max_tokens: Input and output tokens of all requests that the run ever sent, retries, repairs and judges
            included.
        max_cost_usd: What these cost, in US dollars.
        max_time_s: Wall time of one call of `evaluate`, in seconds.

    Raises:
        LLMEvaluationError: A limit is not a number above 0.
    """

    max_tokens: int | None = None
    max_cost_usd: float | None = None
    max_time_s: float | None = None

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
                raise LLMEvaluationError(f"The budget's {limit.name} is a number above 0, or None; got {value!r}.")

    @property
    def counts_requests(self) -> bool:
        """Whether something has to be set aside for every request."""
        return self.max_tokens is not None or self.max_cost_usd is not None


class Amount(NamedTuple):
    """Amounts that requests use: tokens, and money in units of 1 / `PARTS_PER_USD` dollars."""

    tokens: int
    money: int

    def of(self, kind: Kind) -> int:
        """Return the amount of one kind."""
        return self.tokens if kind == "tokens" else self.money

    def plus(self, other: Amount) -> Amount:
        """Return the sum by kind."""
        return Amount(self.tokens + other.tokens, self.money + other.money)

    def times(self, count: int) -> Amount:
        """Return a multiple of it."""
        return Amount(count * self.tokens, count * self.money)


NOTHING = Amount(0, 0)


def amount(tokens: int, cost_usd: float) -> Amount:
    """Return an amount of tokens and US dollars, no less than given."""
    return Amount(tokens, math.ceil(cost_usd * PARTS_PER_USD))


@dataclass(slots=True)
class Account:
    """Account of one kind: the limit, what was spent, and what is reserved for requests in progress."""

    limit: int
    spent: int = 0
    reserved: int = 0

    def has_room(self, most: int) -> bool:
        """Return whether this amount can be reserved now."""
        return self.spent + self.reserved + most <= self.limit

    def may_have_room(self, most: int) -> bool:
        """Return whether this amount could be reserved if all present reservations were settled with 0."""
        return self.spent + most <= self.limit


@dataclass(slots=True)
class Books:
    """The accounts of a budget; what has no limit has no account."""

    accounts: dict[Kind, Account] = field(default_factory=dict)

    @classmethod
    def of(cls, budget: Budget, spent: Amount = NOTHING) -> Books:
        """Open the accounts of a budget, part of which is spent."""
        accounts: dict[Kind, Account] = {}
        if budget.max_tokens is not None:
            accounts["tokens"] = Account(int(budget.max_tokens), spent.tokens)
        if budget.max_cost_usd is not None:
            accounts["cost"] = Account(round(budget.max_cost_usd * PARTS_PER_USD), spent.money)
        return cls(accounts)

    def reserve(self, most: Amount) -> bool:
        """Reserve an amount in all accounts; return False, and reserve nothing, if there is no room for it now."""
        # All or nothing: tokens that stay reserved for a request without money would never be settled.
        parts = list(self._parts(most))
        if not all(account.has_room(part) for _, account, part in parts):
            return False
        for _, account, part in parts:
            account.reserved += part
        return True

    def lacking(self, most: Amount) -> Kind | None:
        """Return what this amount can never be reserved from, whatever is settled later; None if it may still fit."""
        return next((kind for kind, account, part in self._parts(most) if not account.may_have_room(part)), None)

    def settle(self, reserved: Amount, used: Amount) -> None:
        """Replace a reservation by what was really used."""
        for (_, account, part), (_, _, taken) in zip(self._parts(reserved), self._parts(used), strict=True):
            account.reserved -= part
            account.spent += taken

    def left(self, kind: Kind) -> int:
        """Return what is neither spent nor reserved of a limited kind; below 0 if earlier runs spent more."""
        account = self.accounts[kind]
        return account.limit - account.spent - account.reserved

    def _parts(self, of: Amount) -> Iterator[tuple[Kind, Account, int]]:
        for kind, account in self.accounts.items():
            yield kind, account, of.of(kind)


@dataclass(frozen=True, slots=True)
class BudgetUse:
    """Use of the budget by a run.

    Attributes:
        budget: The limits.
        tokens: Spent by the run so far, earlier calls of `evaluate` and other processes included; None without a
            limit.
        cost_usd: The same in US dollars.
        uncounted: Requests of earlier calls that may have been billed by an unknown amount. Each counts as
            the most that a first request of this run can take.
        stopped_by: Which limit stopped the run; None when none did.
        why: What happened and what to do, in words; None when nothing did.
    """

    budget: Budget
    tokens: int | None = None
    cost_usd: float | None = None
    uncounted: int = 0
    stopped_by: Kind | None = None
    why: str | None = None

    @property
    def text(self) -> str:
        """How much of each limit is spent, in words."""
        parts = []
        if self.tokens is not None:
            parts.append(f"{self.tokens:,} of {self.budget.max_tokens:,} tokens")
        if self.cost_usd is not None:
            parts.append(f"${self.cost_usd:,.4f} of ${self.budget.max_cost_usd:,.4f}")
        return " and ".join(parts)
