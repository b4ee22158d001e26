"""Pauses that providers asked for, as a user sees and ends them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Engine, delete, select

from llmkit.persistence.addresses import DatabaseAddress
from llmkit.persistence.clock import DatabaseNow
from llmkit.persistence.engines import reading, writing
from llmkit.persistence.rows import storable
from llmkit.persistence.statements import PAUSES
from llmkit.types import Route

__all__ = ["StoredPause", "clear_pauses", "list_pauses"]


@dataclass(frozen=True, slots=True)
class StoredPause:
    """A route that all processes of the store leave alone.

    Attributes:
        route: As `endpoint/model`.
        remaining_s: Seconds until it ends, on the database's clock.
    """

    route: str
    remaining_s: float


def list_pauses(engine: Engine, address: DatabaseAddress) -> list[StoredPause]:
    """Return the pauses that have not ended, by route.

    Raises:
        LLMStoreError: The database cannot be read.
    """
    columns = (PAUSES.c.endpoint, PAUSES.c.model, PAUSES.c.until_utc, DatabaseNow())
    with reading(engine, address) as connection:
        rows = connection.execute(select(*columns).order_by(PAUSES.c.endpoint, PAUSES.c.model)).all()
    return [
        StoredPause(f"{endpoint}/{model}", (until_utc - now_utc).total_seconds())
        for endpoint, model, until_utc, now_utc in rows
        if until_utc > now_utc
    ]


def clear_pauses(engine: Engine, address: DatabaseAddress, routes: Sequence[Route]) -> None:
    """End the pauses of routes. Running processes read it within a second; a call that waits already waits on.

    Raises:
        LLMStoreError: The database failed.
    """
    with writing(engine, address) as connection:
        for route in routes:
            at = (PAUSES.c.endpoint == str(route.provider)) & (PAUSES.c.model == storable(route.model))
            connection.execute(delete(PAUSES).where(at))
