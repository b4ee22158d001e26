"""Routes whose quota of the day is used up, and until when. Pure: the time is an argument."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from llmkit.types import Route

__all__ = ["Parking", "next_midnight"]

# A provider that names a wait this long means the day; a shorter one is that of its limits per minute.
SHORTEST_DAY_WAIT_S = 900.0
# Where the machine has no table of time zones: an hour late in summer at worst.
_STANDARD_TIME = {"America/Los_Angeles": timezone(timedelta(hours=-8))}


class Parking:
    """Routes that are not called until their quota is renewed.

    Args:
        zone: The time zone in whose midnight the provider's days begin.
    """

    def __init__(self, zone: str = "UTC") -> None:
        self._zone = zone
        self._until: dict[Route, datetime] = {}

    def park(self, route: Route, now: datetime, retry_after_s: float | None = None) -> datetime:
        """Pause the route, and return until when: for the wait that the provider named, else until its next day."""
        if retry_after_s is not None and retry_after_s >= SHORTEST_DAY_WAIT_S:
            until = now + timedelta(seconds=retry_after_s)
        else:
            until = next_midnight(now, self._zone)
        self._until[route] = until
        return until

    def until(self, route: Route, now: datetime) -> datetime | None:
        """Return when the route may be called again; None if it may be called now."""
        until = self._until.get(route)
        if until is not None and until <= now:
            del self._until[route]
            return None
        return until


def next_midnight(now: datetime, zone: str) -> datetime:
    """Return the next beginning of a day in that zone, as UTC."""
    there = now.astimezone(_zone(zone))
    tomorrow = (there + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return tomorrow.astimezone(UTC)


def _zone(name: str) -> tzinfo:
    try:
        return ZoneInfo(name)
    except ZoneInfoNotFoundError:
        return _STANDARD_TIME.get(name, UTC)
