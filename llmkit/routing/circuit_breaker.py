"""Circuit breaker: routes that are skipped for a while, after repeated failures or because their quota is used up."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

from llmkit.errors import LLMError, LLMQuotaExhausted, LLMUnavailable
from llmkit.types import Route, utc_now

__all__ = ["CircuitBreaker", "OpenCircuit"]


class OpenCircuit(NamedTuple):
    """Reason to skip a route for another `wait_s` seconds: repeated failures or, with 0 of them, a used-up quota."""

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
                f"The quota of {route} is used up until {self._until}; nothing was sent. Try again then, use another "
                "model, or raise the quota and open a new session.",
                **where,
            )
        return LLMUnavailable(
            f"{route} failed several times in a row and is left alone for {self.wait_s:.0f} s more; nothing was sent. "
            "Try again then, or fix what its first errors name.",
            **where,
        )


class CircuitBreaker:
    """The state of each route's circuit.

    A circuit opens after `limit` failed calls in a row, for `cooldown_s`. After that it is half-open: one call at a
    time probes the route, at most one per `cooldown_s`, and the first answer closes the circuit. It is also open while
    the route's quota is used up.
    """

    def __init__(self, limit: int, cooldown_s: float, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._failures: dict[Route, int] = {}
        self._open_until: dict[Route, float] = {}
        self._no_quota_until: dict[Route, float] = {}

    @property
    def may_be_open(self) -> bool:
        """Whether any circuit may be open; if not, `find_open` returns None for every route."""
        return bool(self._open_until or self._no_quota_until)

    def find_open(self, route: Route) -> OpenCircuit | None:
        """Return why the route is skipped now, or None when it may be called."""
        if not self.may_be_open:
            return None
        now_s = self._clock()
        wait_s = self._no_quota_until.get(route, now_s) - now_s
        if wait_s > 0:
            return OpenCircuit(wait_s)
        self._no_quota_until.pop(route, None)
        wait_s = self._open_until.get(route, now_s) - now_s
        return OpenCircuit(wait_s, self._failures.get(route, self._limit)) if wait_s > 0 else None

    def begin_call(self, route: Route) -> OpenCircuit | None:
        """Return None when the call may begin, else why not."""
        found = self.find_open(route)
        if found is None and route in self._open_until:
            # Half-open: this call is the probe. Others wait for its end, or for another cooldown if it hangs.
            self._open_until[route] = self._clock() + self._cooldown_s
        return found

    def note_failure(self, route: Route) -> None:
        """Count a call that the provider did not answer, and open the circuit at the limit."""
        self._failures[route] = self._failures.get(route, 0) + 1
        if self._failures[route] >= self._limit:
            self._open_until[route] = self._clock() + self._cooldown_s

    def note_quota_used_up(self, route: Route, wait_s: float) -> None:
        """Open the circuit until the route's quota returns."""
        self._no_quota_until[route] = self._clock() + wait_s

    def note_answer(self, route: Route) -> None:
        """Close the circuit: the provider answered, with whatever result."""
        if self._failures:
            self._failures.pop(route, None)
            self._open_until.pop(route, None)
