"""Adaptive limit on concurrent requests, learned from a provider's answers. Pure: no clock, no tasks."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Protocol

__all__ = ["AdaptiveLimit", "Concurrency", "FixedLimit", "Ticket"]

# Enough to keep most servers busy at once, few enough that one with a queue does not refuse.
START = 16
# Requests that one decision rests on: the latency of a single one is mostly noise. Fewer where few run at once.
SMALLEST_GROUP, USUAL_GROUP = 8, 24
TURNS = 3
# A trial that goes wrong costs answers every second, and is broken off when one turn, or this many, leave no doubt.
FEWEST_ANSWERED = 2
# Latencies this much above the base are a reason to try fewer at once.
TOLERANCE = 2.0
# What is kept above the server's capacity as it was measured, so that its slots are never empty.
HEADROOM = 1.25
AFTER_REFUSAL = 0.75
# Three refusals among eight finished requests are put down to chance: hosted models and proxies refuse some now
# and then, however few are under way. A server that is full refuses one after the other, or the same call again.
CHANCE_REFUSALS, AMONG_ENDED = 3, 8
# While nothing is known yet.
AFTER_FIRST_REFUSAL = 0.5
# After N groups without a trial the base may have become wrong; fewer after a trial whose outcome was chance.
FIRST_TRIAL_AFTER, LONGEST_TRIAL_AFTER = 4, 32
FIRST_PATIENCE, LONGEST_PATIENCE = 4, 64


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request under way. `group` is the decision that it serves; None when its outcome is unrelated to the limit."""

    generation: int
    group: int | None


class Concurrency(Protocol):
    """Limit on concurrent requests. Every ticket is returned through one of the last three methods."""

    @property
    def limit(self) -> int:
        """Requests that may be under way at once now."""
        ...

    def begin(self, under_way: int) -> Ticket:
        """Begin a request; `under_way` includes it."""
        ...

    def note_answer(self, ticket: Ticket, latency_s: float) -> None:
        """Note an answered request."""
        ...

    def note_failure(self, ticket: Ticket) -> None:
        """Note a request whose outcome is unrelated to the limit: it was cancelled or rejected for its content."""
        ...

    def note_refusal(self, ticket: Ticket, *, again: bool = False) -> None:
        """Note a request that the server refused as one too many; `again` if the same call was refused before."""
        ...


class FixedLimit:
    """A `Concurrency` that learns nothing."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def begin(self, under_way: int) -> Ticket:  # noqa: ARG002
        """See `Concurrency`."""
        return _NO_MATTER

    def note_answer(self, ticket: Ticket, latency_s: float) -> None:
        """See `Concurrency`."""

    def note_failure(self, ticket: Ticket) -> None:
        """See `Concurrency`."""

    def note_refusal(self, ticket: Ticket, *, again: bool = False) -> None:
        """See `Concurrency`."""


_NO_MATTER = Ticket(0, None)


@dataclass(frozen=True, slots=True)
class _Level:
    """A limit, and the mean latency under it with its standard error and the standard deviation of single ones."""

    limit: int
    latency_s: float
    error_s: float = 0.0
    spread_s: float = 0.0

    @property
    def rate(self) -> float:
        """Requests a second, by Little's law."""
        return self.limit / self.latency_s


def _slowest_that_carries(before: _Level, limit: int) -> float:
    """Return the latency up to which a lower limit carries about as much.

    Halfway to the value without any queueing.
    """
    expected_if_idle = limit / before.limit
    return limit / ((1 + expected_if_idle) / 2 * before.rate)


class AdaptiveLimit:
    """Additive increase, multiplicative decrease on refusals and on rising latency.

    A slow answer may be just a long one, so rising latency is only a reason to try fewer at once. When fewer carry as
    much, the others had stood in the server's queue: the lower limit stays, at the capacity that this tells and a
    quarter more. Else it is taken back, as soon as there is no doubt, and the latency becomes the new base. The first
    search halves until then.

    Refusals after a step up take the step back; those where none were met before take away a quarter. A level at which
    requests were refused is not tried again for a while, and for longer each time. Single refusals are no reason.

    A decision rests on a group of requests that began one after the other while every place was taken, and waits for
    the last of them: the first to be answered are the short ones, whatever the limit.

    Args:
        ceiling: Never more than this; at least 1.
    """

    def __init__(self, ceiling: int) -> None:
        if ceiling < 1:
            raise ValueError(f"ceiling={ceiling}: a limit below 1 lets nothing through")
        self._ceiling = ceiling
        self._limit = min(ceiling, START)
        self._generation = 0
        self._group = _Group(self._limit)
        self._groups_since_trial = 0
        self._trial_after = FIRST_TRIAL_AFTER
        self._base_s: float | None = None
        self._tried_from: _Level | None = None
        self._is_searching = self._doubles = True
        # What refusals taught: the lowest limit that met one, and the highest that did not.
        self._refused_at: int | None = None
        self._highest_accepted = 0
        self._is_calm = True
        self._patience = FIRST_PATIENCE
        self._groups_held = 0
        self._ends = 0
        self._refusals: deque[int] = deque(maxlen=CHANCE_REFUSALS + 1)

    @property
    def limit(self) -> int:
        """Requests that may be under way at once now."""
        return self._limit

    def begin(self, under_way: int) -> Ticket:
        """Begin a request; `under_way` includes it."""
        member = under_way >= self._limit and self._group.join()
        return Ticket(self._generation, self._group.number if member else None)

    def note_answer(self, ticket: Ticket, latency_s: float) -> None:
        """Note an answered request."""
        self._end_request(ticket, latency_s)

    def note_failure(self, ticket: Ticket) -> None:
        """Note a request whose outcome is unrelated to the limit: it was cancelled or rejected for its content."""
        self._end_request(ticket, None)

    def note_refusal(self, ticket: Ticket, *, again: bool = False) -> None:
        """Note a refused request. Requests that began together count as one reason."""
        self._end_request(ticket, None)
        # A refusal from before the last jump was of the old limit. Isolated ones happen with any number under way.
        if ticket.generation != self._generation or (self._may_be_chance() and not again):
            return
        if self._is_calm:
            self._patience = min(2 * self._patience, LONGEST_PATIENCE)
        self._is_calm = self._doubles = False
        self._refused_at = min(self._limit, self._refused_at or self._limit)
        self._groups_held = 0
        self._tried_from = None
        if 0 < self._highest_accepted < self._limit:
            # The last step up was one too many, and the level before it is known to work.
            self._move_to(self._highest_accepted)
        else:
            self._move_to(int(self._limit * (AFTER_REFUSAL if self._highest_accepted else AFTER_FIRST_REFUSAL)))

    def _may_be_chance(self) -> bool:
        self._refusals.append(self._ends)
        return len(self._refusals) <= CHANCE_REFUSALS or self._ends - self._refusals[0] >= AMONG_ENDED

    def _end_request(self, ticket: Ticket, latency_s: float | None) -> None:
        group = self._group
        self._ends += ticket.generation == self._generation
        if ticket.generation != self._generation or ticket.group != group.number:
            return
        group.leave(latency_s)
        # A trial that clearly costs throughput ends at once instead of after its whole group.
        before = self._tried_from
        if before is not None and group.surely_exceeds(_slowest_that_carries(before, self._limit), before.spread_s):
            self._take_back(before, group.mean_s)
            return
        if not group.is_complete:
            return
        seen = group.level(self._limit)
        self._group = _Group(self._limit, group.number + 1)
        if seen is None:
            return
        self._note_accepted(seen.limit)
        if self._tried_from is not None:
            self._judge(self._tried_from, seen)
        else:
            self._decide(seen)

    def _decide(self, seen: _Level) -> None:
        base_s = self._base_s = _towards_lower(self._base_s, seen.latency_s)
        self._groups_since_trial += 1
        # The standard error is subtracted, so that chance alone rarely starts a trial.
        slower = seen.latency_s - seen.error_s > TOLERANCE * base_s
        if slower:
            self._try(seen, math.ceil(HEADROOM * seen.limit * base_s / seen.latency_s))
        elif self._is_searching or self._groups_since_trial >= self._trial_after:
            self._try(seen, seen.limit // 2)
        else:
            self._grow()

    def _try(self, seen: _Level, limit: int) -> None:
        if seen.limit == 1:
            self._is_searching = False
            return
        self._tried_from = seen
        self._groups_since_trial = 0
        self._move_to(min(limit, seen.limit - 1))

    def _judge(self, before: _Level, seen: _Level) -> None:
        """End a trial: keep the lower limit if it carries as much as the one before, else take it back."""
        if seen.latency_s + seen.error_s > _slowest_that_carries(before, seen.limit):
            self._take_back(before, seen.latency_s)
            return
        self._tried_from = None
        self._doubles = False
        self._highest_accepted = seen.limit
        self._base_s = _towards_lower(self._base_s, seen.latency_s)
        if self._is_searching:
            self._try(seen, seen.limit // 2)

    def _take_back(self, before: _Level, latency_s: float) -> None:
        """End a trial in which fewer carried less."""
        self._tried_from = None
        self._is_searching = False
        self._trial_after = min(2 * self._trial_after, LONGEST_TRIAL_AFTER)
        self._base_s = latency_s
        self._move_to(before.limit)

    def _note_accepted(self, limit: int) -> None:
        self._is_calm = True
        if limit > self._highest_accepted:
            self._highest_accepted = limit
            if self._refused_at is None:
                self._patience = FIRST_PATIENCE

    def _grow(self) -> None:
        # Stay below a level that met refusals until patience runs out, then forget it: the server may have changed.
        if self._refused_at is not None and self._limit + 1 >= self._refused_at:
            self._groups_held += 1
            if self._groups_held < self._patience:
                return
            self._refused_at = None
        self._groups_held = 0
        # Doubling is for a first search and for levels that worked before; everywhere else one step at a time.
        doubled = 2 * self._limit
        is_known_to_work = doubled <= self._highest_accepted and (
            self._refused_at is None or doubled < self._refused_at
        )
        if self._doubles or is_known_to_work:
            self._move_to(doubled)
        else:
            self._limit = min(self._limit + 1, self._ceiling)

    def _move_to(self, limit: int) -> None:
        """Jump to a limit. A new generation begins, since earlier requests are no evidence about the new limit."""
        self._limit = min(max(limit, 1), self._ceiling)
        self._generation += 1
        self._refusals.clear()
        self._group = _Group(self._limit, self._group.number + 1)


class _Group:
    """Requests that began one after the other, and their latencies."""

    def __init__(self, limit: int, number: int = 0) -> None:
        self.number = number
        self._size = max(limit, min(TURNS * limit, USUAL_GROUP), SMALLEST_GROUP)
        self._turn = max(limit, FEWEST_ANSWERED)
        self._began = self._left = 0
        self._latencies_s: list[float] = []

    def join(self) -> bool:
        """Return whether there was room."""
        if self._began == self._size:
            return False
        self._began += 1
        return True

    def leave(self, latency_s: float | None) -> None:
        self._left += 1
        if latency_s is not None:
            self._latencies_s.append(max(latency_s, 1e-6))

    @property
    def is_complete(self) -> bool:
        return self._left >= self._size

    @property
    def mean_s(self) -> float:
        return sum(self._latencies_s) / len(self._latencies_s)

    def surely_exceeds(self, latency_s: float, spread_s: float) -> bool:
        """Return whether the outcome is known already.

        From a turn at the least, since the first may wait for those before them.
        """
        count = len(self._latencies_s)
        return count >= self._turn and self.mean_s - spread_s / math.sqrt(count) > latency_s

    def level(self, limit: int) -> _Level | None:
        """Return what the group observed; None if too few were answered."""
        count = len(self._latencies_s)
        if count < self._size // 2:
            return None
        mean_s = self.mean_s
        spread_s = math.sqrt(sum((latency_s - mean_s) ** 2 for latency_s in self._latencies_s) / (count - 1))
        return _Level(limit, mean_s, spread_s / math.sqrt(count), spread_s)


def _towards_lower(base_s: float | None, seen_s: float) -> float:
    # Halfway: one lucky group is not the rule.
    return seen_s if base_s is None else base_s - max(0.0, base_s - seen_s) / 2
