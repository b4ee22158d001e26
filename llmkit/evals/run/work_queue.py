"""Work queue of an evaluation: one byte for each sample, variant and epoch. Pure.

A position is OPEN until a worker takes it, TAKEN while it is run, and SETTLED when there is a result, whichever process
made it. A position that was taken and is not settled stays TAKEN: the runner calls it again by itself, and a later call
of `evaluate` begins with a new queue. Bytes, because a million positions then take a megabyte, and are searched by
`bytearray.find` in less than a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["WorkQueue"]

OPEN, TAKEN, SETTLED = range(3)


class WorkQueue:
    """The states of all positions, and where the walk over the open ones is. At the end it starts again at 0.

    Args:
        total: Number of positions; all are open.
    """

    def __init__(self, total: int) -> None:
        self._states = bytearray(total)
        self._at = 0

    def take(self) -> int | None:
        """Return the next open position, which is then taken; None when there is none."""
        found = self._states.find(OPEN, self._at)
        if found < 0:
            found = self._states.find(OPEN, 0, self._at)
        if found < 0:
            return None
        self._states[found] = TAKEN
        self._at = found + 1
        return found

    def begin_at(self, share: float) -> None:
        """Begin the walk at a part of the way: workers that start in the same second then seldom meet.

        Args:
            share: From 0, the first position, to 1.
        """
        self._at = int(len(self._states) * share)

    def settle(self, position: int) -> None:
        """Note that there is a result."""
        self._states[position] = SETTLED

    def is_settled(self, position: int) -> bool:
        """Return whether there is a result."""
        return self._states[position] == SETTLED

    @property
    def unsettled(self) -> int:
        """Number of positions without a result."""
        return len(self._states) - self._states.count(SETTLED)

    @property
    def open(self) -> int:
        """Number of open positions."""
        return self._states.count(OPEN)

    def move_away(self, occupied: Iterable[int], share: float = 0.5) -> None:
        """Go on in the longest stretch of open positions between those where others are at work.

        They walk in the same direction, so the process behind meets the beginning of the other's part when both are
        done with theirs.

        Args:
            occupied: Where others are; none for no change.
            share: How far into that stretch, from 0 to 1.
        """
        stretches = [(self._open_between(start, end), start) for start, end in _pairs(sorted(set(occupied)))]
        count, start = max(stretches, default=(0, 0))
        if not count:
            return
        self._at = start + 1
        for _ in range(int(count * share)):
            self._skip()

    def _open_between(self, start: int, end: int) -> int:
        if start < end:
            return self._states.count(OPEN, start + 1, end)
        return self._states.count(OPEN, start + 1) + self._states.count(OPEN, 0, end)

    def _skip(self) -> None:
        found = self._states.find(OPEN, self._at)
        self._at = (found if found >= 0 else self._states.find(OPEN)) + 1


def _pairs(places: list[int]) -> Iterable[tuple[int, int]]:
    """Return each position with the next one, and the last with the first."""
    return zip(places, [*places[1:], *places[:1]], strict=True)
