"""The most that requests of an evaluation can use, in tokens and money, and the prices that this needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from llmkit.errors import LLMEvaluationError
from llmkit.evals.budget import NOTHING, Amount, amount
from llmkit.evals.run.plan import Plan
from llmkit.evals.tasks.task import response_format_of
from llmkit.evals.tasks.variant import ResolvedVariant
from llmkit.prices.price_list import PriceList
from llmkit.pricing import FREE, ListPrice, list_price
from llmkit.providers import ProviderSpec, compute_max_prompt_tokens
from llmkit.types import LLMProvider, LLMRequest, Route

__all__ = [
    "PriceBook",
    "PriceOf",
    "compute_largest",
    "compute_most",
    "explain_unknown_price",
    "get_prices",
    "require_countable",
]

PriceOf = Callable[[Route], ListPrice | None]


async def require_countable(plan: Plan) -> None:
    """Refuse a budget of tokens or cost that could not be kept, before anything is sent.

    Raises:
        LLMEvaluationError: Somebody has no output limit, or, with a limit of cost, no known price.
    """
    if not plan.budget.counts_requests:
        return
    judges = plan.judges()
    unlimited = [part.label for part in _parts(plan) if part.parameters.get("max_output_tokens") is None]
    unlimited += [
        f"the scorer {name!r}"
        for name, judge in judges.items()
        if judge.get("parameters", {}).get("max_output_tokens") is None
    ]
    if unlimited:
        raise LLMEvaluationError(
            "A budget of tokens or cost is kept by setting aside the most that an answer may take: give the parameter "
            f"max_output_tokens, for example Task(..., parameters={{'max_output_tokens': 500}}). It is missing for "
            f"{', '.join(unlimited)}."
        )
    if plan.budget.max_cost_usd is not None:
        nameless = [variant.label for variant in plan.variants if not variant.parts]
        if nameless:
            raise LLMEvaluationError(
                f"{nameless[0]} is a function, so what it will cost is not known: limit tokens instead (max_tokens)."
            )
        price_of = get_prices(plan)
        unknown = await asyncio.to_thread(lambda: [each for each in _routes(plan) if price_of(each) is None])
        if unknown:
            raise LLMEvaluationError(explain_unknown_price(unknown[0]))


@dataclass(frozen=True, slots=True)
class PriceBook:
    """Prices of the routes of a plan: those of the user's own, then the list's."""

    endpoints: Mapping[LLMProvider, ProviderSpec]
    own: PriceList | None

    def __call__(self, route: Route) -> ListPrice | None:
        """Return the price of a route's tokens; None when it is not known."""
        return list_price(route, self.endpoints, self.own)


def get_prices(plan: Plan) -> PriceBook:
    """Return the prices of the plan's endpoints: one of the same name may be another elsewhere."""
    return PriceBook(plan.service.router.endpoints, plan.prices)


def explain_unknown_price(route: Route) -> str:
    """Return why a budget in US dollars cannot be kept for a route, and the remedy."""
    return (
        f"The price of {route} is not known, so that a budget in US dollars cannot be kept: add it with `llmkit cost "
        "prices --import FILE`, limit tokens instead (max_tokens), or leave the route out."
    )


def _parts(plan: Plan) -> list[ResolvedVariant]:
    """Return every variant that is called, those that policies name included."""
    return [part for variant in plan.variants for part in variant.parts]


def _routes(plan: Plan) -> Iterator[Route]:
    """Return the routes that may answer or judge."""
    for variant in _parts(plan):
        routed = variant.service.router.explain(LLMRequest(messages="price", route=variant.route, **variant.parameters))
        yield from routed.candidates if variant.route is None else (variant.route,)
    for judge in plan.judges().values():
        if judge.get("route") is not None:
            yield Route.parse(judge["route"])
        else:
            yield from plan.service.router.explain(LLMRequest(messages="price")).candidates


def compute_most(request: LLMRequest, price: ListPrice) -> Amount:
    """Return the most that a request with an output limit may take."""
    prompt, answer = compute_max_prompt_tokens(request), request.max_output_tokens or 0
    return amount(prompt + answer, price.most(prompt, answer))


def compute_largest(plan: Plan) -> Amount:
    """Return the most that a first request of the plan may use, at which an uncounted earlier one is charged."""
    has_price = plan.budget.max_cost_usd is not None
    schema = response_format_of(plan.task)
    prices = [price for price in map(get_prices(plan), _routes(plan)) if price is not None] if has_price else [FREE]
    largest = NOTHING
    for variant in _parts(plan):
        for sample in plan.selected:
            request = LLMRequest(messages=variant.messages(sample), response_format=schema, **variant.parameters)
            most = [compute_most(request, price) for price in prices]
            largest = Amount(
                max(largest.tokens, *(each.tokens for each in most)), max(largest.money, *(each.money for each in most))
            )
    return largest
