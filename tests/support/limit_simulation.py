"""A server with a queue, as arithmetic: events in order of time, and no clock but its own."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from llmkit.transport.limits.adaptive_concurrency import AdaptiveLimit, Ticket


@dataclass
class Outcome:
    """Result of a run: `limits` after every answer, `seconds` of the simulation, refusals."""

    seconds: float = 0.0
    refusals: int = 0
    limits: list[int] = field(default_factory=list)

    def late(self) -> list[int]:
        return self.limits[len(self.limits) // 2 :]


def simulate(
    limit: AdaptiveLimit,
    *,
    calls: int,
    capacity: int | None,
    service_s: Callable[[random.Random, int], float] = lambda _random, _number: 1.0,
    max_queue: int | None = None,
    seed: int = 0,
) -> Outcome:
    """Send calls, all waiting from the start, through the limit to the server; a refused one is tried again."""
    rng, outcome = random.Random(seed), Outcome()
    ends: list[tuple[float, int, float, Ticket]] = []
    queue: deque[tuple[float, Ticket]] = deque()
    now, under_way, started, done = 0.0, 0, 0, 0

    def serve(arrived: float, ticket: Ticket) -> None:
        nonlocal started
        started += 1
        heapq.heappush(ends, (now + service_s(rng, started), started, arrived, ticket))

    while done < calls:
        room = 0
        while under_way < limit.limit and under_way + done < calls and room < 10_000:
            room += 1
            ticket = limit.begin(under_way + 1)
            if capacity is None or len(ends) < capacity:
                under_way += 1
                serve(now, ticket)
            elif max_queue is None or len(queue) < max_queue:
                under_way += 1
                queue.append((now, ticket))
            else:
                outcome.refusals += 1
                limit.note_refusal(ticket)
                if under_way >= limit.limit or under_way >= (capacity or 0) + (max_queue or 0):
                    break
        now, _, arrived, ticket = heapq.heappop(ends)
        under_way -= 1
        done += 1
        limit.note_answer(ticket, now - arrived)
        outcome.limits.append(limit.limit)
        if queue:
            serve(*queue.popleft())
    outcome.seconds = now
    return outcome
