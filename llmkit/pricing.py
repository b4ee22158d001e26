"""Prices of tokens from LiteLLM's list, for the largest cost that a request may have."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmkit.providers import PROVIDERS
from llmkit.transport.paths.library import load_library
from llmkit.types import Route

__all__ = ["FREE", "ListPrice", "is_free", "list_price"]

# Dearer for long prompts, pictures and hidden reasoning; batches and other service tiers are never requested.
_RATE = re.compile(r"(?P<side>input|output)_cost_per_(image_|reasoning_)?token(_above_\d+k_tokens)?")


@dataclass(frozen=True, slots=True)
class ListPrice:
    """Prices of one token in USD: of plain text, and the dearest that a token can come to."""

    input_usd: float
    output_usd: float
    most_input_usd: float
    most_output_usd: float

    def usual(self, input_tokens: float, output_tokens: float) -> float:
        """Return the cost of this many tokens of plain text, in USD."""
        return input_tokens * self.input_usd + output_tokens * self.output_usd

    def most(self, input_tokens: int, output_tokens: int) -> float:
        """Return the largest possible cost of this many tokens, in USD."""
        return input_tokens * self.most_input_usd + output_tokens * self.most_output_usd


FREE = ListPrice(0.0, 0.0, 0.0, 0.0)


def is_free(route: Route) -> bool:
    """Return whether this route is free because it answers on your own machines."""
    return not PROVIDERS[route.provider].runs_elsewhere(route.model)


def list_price(route: Route) -> ListPrice | None:
    """Return the price of a route's tokens; None when it is not known. Loads litellm for one that is not free.

    3 to 6 s.
    """
    if is_free(route):
        return FREE
    if not PROVIDERS[route.provider].reports_cost:
        return None
    return _price(load_library().model_cost.get(str(route), {}))


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
