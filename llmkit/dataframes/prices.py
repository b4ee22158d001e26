"""Prices of the user's own, from the store."""

from __future__ import annotations

from sqlalchemy import Connection

from llmkit.persistence.costs import select_prices
from llmkit.prices.price_list import PriceList

__all__ = ["select_own_prices"]


def select_own_prices(connection: Connection) -> PriceList | None:
    """Return the prices that were read from files of the user's; None when there are none."""
    own = tuple(price for price in select_prices(connection).prices if price.is_own)
    return PriceList(own) if own else None
