"""Prices of tokens: by endpoint, model and time.

Amounts are decimal: a sum of costs is exact to the last digit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cached_property

from llmkit.types import TokenUsage

__all__ = ["LISTED_FROM", "MILLION", "RATES", "Price", "PriceList"]

# The first list holds for all times: when its prices began is not known.
LISTED_FROM = datetime(1970, 1, 1, tzinfo=UTC)
MILLION = Decimal(1_000_000)
RATES = ("input_usd", "cached_input_usd", "output_usd", "reasoning_usd")


@dataclass(frozen=True, slots=True)
class Price:
    """Price of a model's tokens from a time on, in USD per million tokens.

    Attributes:
        endpoint: Name of the endpoint, the first part of a route.
        model: Name of the model, or a pattern with `*` and `?`.
        valid_from_utc: When it begins; it ends when the next one begins.
        above_input_tokens: It holds for requests with more input tokens than this: a long-context tier. 0 for all.
        input_usd: Price of input tokens.
        output_usd: Price of output tokens.
        cached_input_usd: Price of cached input tokens; that of the others when None.
        reasoning_usd: Price of hidden reasoning; that of output when None.
        source: `litellm VERSION`, or the name of your file.
        is_own: Whether it is from a file of yours, which wins.
    """

    endpoint: str
    model: str
    valid_from_utc: datetime
    above_input_tokens: int
    input_usd: Decimal
    output_usd: Decimal
    cached_input_usd: Decimal | None
    reasoning_usd: Decimal | None
    source: str
    is_own: bool

    def cost(self, usage: TokenUsage) -> Decimal:
        """Return the cost of a request with these tokens, in USD.

        Input that is not known to be cached, and output that is not known to be reasoning, has the ordinary price.
        """
        taken, given = usage.input_tokens or 0, usage.output_tokens or 0
        cached, reasoned = min(usage.cached_input_tokens or 0, taken), min(usage.reasoning_tokens or 0, given)
        cached_usd = self.input_usd if self.cached_input_usd is None else self.cached_input_usd
        reasoning_usd = self.output_usd if self.reasoning_usd is None else self.reasoning_usd
        parts = (taken - cached) * self.input_usd + cached * cached_usd
        return (parts + (given - reasoned) * self.output_usd + reasoned * reasoning_usd) / MILLION

    @property
    def most_input_usd(self) -> Decimal:
        """The dearest that an input token can be."""
        return max(self.input_usd, self.cached_input_usd or self.input_usd)

    @property
    def most_output_usd(self) -> Decimal:
        """The dearest that an output token can be."""
        return max(self.output_usd, self.reasoning_usd or self.output_usd)


@dataclass(frozen=True)
class PriceList:
    """Prices to look up. Of several that fit, your own wins, then the longest pattern, then the latest."""

    prices: tuple[Price, ...]

    def tiers(self, endpoint: str, model: str, at_utc: datetime) -> tuple[Price, ...]:
        """Return the price of a model at a time, one for each tier, the lowest first; empty when it is not known."""
        fitting = [
            price
            for price in self._by_endpoint.get(endpoint, ())
            if price.valid_from_utc <= at_utc and (price.model == model or fnmatchcase(model, price.model))
        ]
        if not fitting:
            return ()
        # Tiers belong together: they have one pattern, one beginning and one source.
        best = max(_rank(price, model) for price in fitting)
        return tuple(sorted((p for p in fitting if _rank(p, model) == best), key=lambda p: p.above_input_tokens))

    def find(self, endpoint: str, model: str, at_utc: datetime, input_tokens: int) -> Price | None:
        """Return the price of a request; None when it is not known."""
        tiers = [
            p
            for p in self.tiers(endpoint, model, at_utc)
            if p.above_input_tokens == 0 or input_tokens > p.above_input_tokens
        ]
        return tiers[-1] if tiers else None

    @cached_property
    def _by_endpoint(self) -> Mapping[str, list[Price]]:
        found: dict[str, list[Price]] = {}
        for price in self.prices:
            found.setdefault(price.endpoint, []).append(price)
        return found


def _rank(price: Price, model: str) -> tuple[bool, bool, int, datetime, str, str]:
    return price.is_own, price.model == model, len(price.model), price.valid_from_utc, price.model, price.source
