"""Prices of tokens from LiteLLM's list, for the largest cost that a request may have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from llmkit.prices.price_list import MILLION, PriceList
from llmkit.providers import BUILT_IN, ProviderSpec
from llmkit.transport.paths.library import load_library
from llmkit.types import LLMProvider, Route, TokenUsage, utc_now

__all__ = ["FREE", "ListPrice", "compute_cost", "find_listed_endpoints", "is_free", "list_price"]

_MOST = ("most_input_usd", "most_output_usd")

Endpoints = Mapping[LLMProvider, ProviderSpec]

# Dearer for long prompts, pictures and hidden reasoning; batches and other service tiers are never requested.
_RATE = re.compile(r"(?P<side>input|output)_cost_per_(image_|reasoning_)?token(_above_\d+k_tokens)?")


@dataclass(frozen=True, slots=True)
class ListPrice:
    """Prices of one token in USD: of plain text, and the dearest that a token can come to. `is_own`: they are yours."""

    input_usd: float
    output_usd: float
    most_input_usd: float
    most_output_usd: float
    is_own: bool = False

    def usual(self, input_tokens: float, output_tokens: float) -> float:
        """Return the cost of this many tokens of plain text, in USD."""
        return input_tokens * self.input_usd + output_tokens * self.output_usd

    def most(self, input_tokens: int, output_tokens: int) -> float:
        """Return the largest possible cost of this many tokens, in USD."""
        return input_tokens * self.most_input_usd + output_tokens * self.most_output_usd


FREE = ListPrice(0.0, 0.0, 0.0, 0.0)


def is_free(route: Route, endpoints: Endpoints = BUILT_IN) -> bool:
    """Return whether this route is free because it answers on your own machines.

    Args:
        route: The route.
        endpoints: Every endpoint by name. One that is not among them is not known to be free.
    """
    spec = endpoints.get(route.provider)
    return spec is not None and not spec.runs_elsewhere(route.model)


def list_price(route: Route, endpoints: Endpoints = BUILT_IN, own: PriceList | None = None) -> ListPrice | None:
    """Return the price of a route's tokens; None when it is not known. Loads litellm for one that is not free.

    3 to 6 s.

    Args:
        route: The route.
        endpoints: Every endpoint by name.
        own: Prices of yours, which win.
    """
    tiers = () if own is None else own.tiers(str(route.provider), route.model, utc_now())
    if tiers and tiers[0].is_own:
        usual, most = tiers[0], [float(max(getattr(tier, name) for tier in tiers) / MILLION) for name in _MOST]
        plain = float(usual.input_usd / MILLION), float(usual.output_usd / MILLION)
        return ListPrice(*plain, *most, is_own=True)  # type: ignore[misc,arg-type]  # two and two numbers
    if is_free(route, endpoints):
        return FREE
    spec = endpoints.get(route.provider)
    if spec is None or not spec.reports_cost:
        return None
    return _price(_find_entry(spec, route))


def compute_cost(
    prices: PriceList, endpoints: Endpoints, provider: str, model: str, at_utc: datetime, usage: TokenUsage
) -> Decimal | None:
    """Return the cost of a request by the price of its time, in USD; None when that is not known.

    A route on your own machines is free, unless you have given it a price.

    Args:
        prices: Prices of yours and of a list.
        endpoints: Every endpoint by name.
        provider: Name of the endpoint.
        model: The model.
        at_utc: When the request was sent.
        usage: Its tokens.
    """
    price = prices.find(provider, model, at_utc, usage.input_tokens or 0)
    if price is not None and price.is_own:
        return price.cost(usage)
    spec = endpoints.get(LLMProvider(provider)) if provider else None
    if spec is not None and not spec.runs_elsewhere(model):
        return Decimal(0)
    return None if price is None else price.cost(usage)


def find_listed_endpoints(endpoints: Endpoints) -> dict[str, str]:
    """Return LiteLLM's name of the provider by the name of each endpoint whose prices its list knows."""
    return {str(name): spec.litellm_prefix for name, spec in endpoints.items() if spec.reports_cost}


def _find_entry(spec: ProviderSpec, route: Route) -> Mapping[str, Any]:
    """Return LiteLLM's entry for a model, which it lists by the name of the kind, or of the model alone."""
    listed = load_library().model_cost
    entry: Mapping[str, Any] = listed.get(f"{spec.litellm_prefix}/{route.model}") or listed.get(route.model) or {}
    return entry if entry.get("litellm_provider") == spec.litellm_prefix else {}


def _price(entry: Mapping[str, Any]) -> ListPrice | None:
    taken, given = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
    # What LiteLLM lists at nothing is an experiment, or has a price that it does not know.
    if not taken or not given:
        return None
    return ListPrice(float(taken), float(given), max(_rates(entry, "input")), max(_rates(entry, "output")))


def _rates(entry: Mapping[str, Any], side: str) -> Iterator[float]:
    for name, usd in entry.items():
        match = _RATE.fullmatch(name)
        if match is not None and match["side"] == side and usd is not None:
            yield float(usd)
