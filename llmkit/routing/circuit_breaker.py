"""Which routes are left alone for a while, because they keep failing or because their quota is used up."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

from llmkit.errors import LLMError, LLMQuotaExhausted, LLMUnavailable
from llmkit.types import Route, utc_now

__all__ = ["CircuitBreaker", "Outage"]


class Outage(NamedTuple):
    """Reason to skip a route for another `wait_s` seconds: repeated failures or, with 0, a used-up quota."""

    wait_s: float
    failures: int = 0

    @property
    def why(self) -> str:
        """The reason, for the plan."""
        if not self.failures:
            return f"its quota is used up until {self._until}"
        return f"cooling off after {self.failures} failed calls, for {self.wait_s:.0f} s more"

    @property
    def _until(self) -> str:
        return f"{utc_now() + timedelta(seconds=self.wait_s):%Y-%m-%d %H:%M} UTC"

    def error(self, route: Route) -> LLMError:
        """Return the error for a call that is made anyway."""
        where: dict[str, Any] = {"provider": route.provider, "model": route.model, "retry_after_s": self.wait_s}
        if not self.failures:
            return LLMQuotaExhausted(
                f"The quota of {route} is used up until {self._until}; nothing was sent. Try again then, ask another "
                "model, or raise the quota and open a new session.",
                **where,
            )
        return LLMUnavailable(
            f"{route} failed several times in a row and is left alone for {self.wait_s:.0f} s more; nothing was sent. "
            "Try again then, or mend what its first errors name.",
            **where,
        )


class CircuitBreaker:
    """Which routes fail again and again, and until when they are left alone.

    After `limit` failed calls in a row a route is closed for `cooldown_s`; then one call at a time is let through, at
    most one per `cooldown_s`, until one is answered. A route whose quota is used up is closed while that lasts.
    """

    def __init__(self, limit: int, cooldown_s: float, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._failures: dict[Route, int] = {}
        self._closed_until: dict[Route, float] = {}
        self._parked_until: dict[Route, float] = {}

    @property
    def any(self) -> bool:
        """Whether any route may be left alone; False settles for all of them what `of` says."""
        return bool(self._closed_until or self._parked_until)

    def of(self, route: Route) -> Outage | None:
        """Return the outage that keeps calls away now, or None."""
        if not self.any:
            return None
        now_s = self._clock()
        parked_s = self._parked_until.get(route, now_s) - now_s
        if parked_s > 0:
            return Outage(parked_s)
        self._parked_until.pop(route, None)
        closed_s = self._closed_until.get(route, now_s) - now_s
        return Outage(closed_s, self._failures.get(route, self._limit)) if closed_s > 0 else None

    def enter(self, route: Route) -> Outage | None:
        """Begin a call: None when it may go, else why not. The call let through closes the door again."""
        outage = self.of(route)
        if outage is not None:
            return outage
        if route in self._closed_until:
            self._closed_until[route] = self._clock() + self._cooldown_s
        return None

    def note_failure(self, route: Route) -> None:
        """Note a call that the provider did not answer."""
        self._failures[route] = self._failures.get(route, 0) + 1
        if self._failures[route] >= self._limit:
            self._closed_until[route] = self._clock() + self._cooldown_s

    def park(self, route: Route, wait_s: float) -> None:
        """Note that the route's quota is used up for a number of seconds."""
        self._parked_until[route] = self._clock() + wait_s

    def note_answer(self, route: Route) -> None:
        """Note a call that was answered, with whatever."""
        if self._failures:
            self._failures.pop(route, None)
            self._closed_until.pop(route, None)
