"""Spending of an evaluation as the store has it, whichever process recorded it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import NamedTuple

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalRun, EvalSpending, EvalStore
from llmkit.evals.budget import NOTHING, Amount, Budget, amount
from llmkit.evals.call_names import name_prefix, warm_up_name
from llmkit.evals.run.plan import Plan
from llmkit.evals.run.request_costs import PriceBook, PriceOf, compute_largest, explain_unknown_price, get_prices
from llmkit.evals.run.shared_budget import OwnSpending

__all__ = ["NOTHING_EARLIER", "Earlier", "RecordedSpending"]


class Earlier(NamedTuple):
    """Spending of a run, by the store.

    Attributes:
        spent: All of it.
        uncounted: How many requests of unknown use it contains, at the most that a first request can use.
        in_doubt: The part of it for calls that began and have no end.
    """

    spent: Amount
    uncounted: int
    in_doubt: Amount


NOTHING_EARLIER = Earlier(NOTHING, 0, NOTHING)


class RecordedSpending:
    """Spending of a run as the store has it, that of loading its models included. See `Spending`."""

    def __init__(self, plan: Plan, run: EvalRun, store: EvalStore) -> None:
        self._plan = plan
        self._run = run
        self._store = store
        self.price_of = get_prices(plan)
        self._largest: Amount | None = None

    async def read(self, owner: str | None = None) -> Earlier:
        """Return what the run has spent, or what one process has.

        Raises:
            LLMEvaluationError: The price of something that was sent is not known.
        """
        store, workspace_id, names = self._store, self._run.workspace_id, name_prefix(self._run)
        spent = await store.sum_spending(workspace_id, names, owner)
        spent += await store.sum_spending(workspace_id, warm_up_name(self._run), owner)
        doubtful = await store.list_calls_in_doubt(workspace_id, names)
        in_doubt = sum(owner is None or call.owner == owner for call in doubtful)
        uncounted = in_doubt + sum(each.uncounted for each in spent)
        counted = await asyncio.to_thread(_sum_counted, self._plan.budget, spent, self.price_of)
        if uncounted and self._largest is None:
            self._largest = await asyncio.to_thread(compute_largest, self._plan)
        most = self._largest or NOTHING
        return Earlier(counted.plus(most.times(uncounted)), uncounted, most.times(in_doubt))

    async def read_earlier(self) -> Amount:
        """See `Spending`."""
        return (await self.read()).spent

    async def read_of_owner(self, owner: str) -> OwnSpending | None:
        """See `Spending`."""
        try:
            own = await self.read(owner)
        except LLMEvaluationError:  # a price that is known there and not here
            return None
        return OwnSpending(own.spent, own.in_doubt)


def _sum_counted(budget: Budget, spent: Sequence[EvalSpending], price_of: PriceOf) -> Amount:
    """Sum what providers counted. May load the price list."""
    costs = [_cost(each, price_of) for each in spent] if budget.max_cost_usd is not None else []
    return amount(sum(each.input_tokens + each.output_tokens for each in spent), math.fsum(costs))


def _cost(spent: EvalSpending, price_of: PriceOf) -> float:
    # The list is loaded only where it is needed, which takes seconds.
    has_own = isinstance(price_of, PriceBook) and price_of.own is not None
    if not spent.unpriced and not has_own:
        return spent.cost_usd
    price = price_of(spent.route)
    if price is None and spent.unpriced:
        raise LLMEvaluationError(explain_unknown_price(spent.route))
    if price is None or (not spent.unpriced and not price.is_own):
        return spent.cost_usd
    if price.is_own:
        return price.most(spent.input_tokens, spent.output_tokens)
    return max(spent.cost_usd, price.most(spent.input_tokens, spent.output_tokens))
