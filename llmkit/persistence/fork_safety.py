"""Forking with an SQLite database open: close it before, reopen it on both sides after.

SQLite keeps a table of open files and their locks in the process. A child inherits the table but not the locks, so even
a connection that it opens itself believes in locks that it does not hold, and what it commits can be lost when the
parent closes the file. The only sound way is that nothing is open at the moment of the fork
(https://sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork_).
"""

from __future__ import annotations

import os
from threading import Condition, Lock
from types import TracebackType
from typing import Final, Protocol
from weakref import WeakSet

__all__ = ["ForkLock", "Pausable", "pause_around_forks"]

# Longer than a batch takes; a writer that waits for a lock of another program may be longer, see `pause`.
PATIENCE_S: Final = 5.0


class ForkLock:
    """A lock that many threads share until a fork blocks it for all. Not reentrant."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._condition = Condition(self._lock)
        self._inside = 0
        self._is_blocked = False

    def __enter__(self) -> None:
        with self._lock:  # the lock itself: entering the condition costs a microsecond more, on every read
            while self._is_blocked:
                self._condition.wait()
            self._inside += 1

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._inside -= 1
            # Only `block` waits for the number, so the many uses without a fork wake no thread.
            if self._is_blocked:
                self._condition.notify_all()

    def block(self, patience_s: float) -> bool:
        """Block new users, and return whether the present ones left in time."""
        with self._condition:
            self._is_blocked = True
            return self._condition.wait_for(lambda: self._inside == 0, patience_s)

    def unblock(self) -> None:
        """Admit users again."""
        with self._condition:
            self._is_blocked = False
            self._condition.notify_all()


class Pausable(Protocol):
    """Something that can close its files for the moment of a fork."""

    def pause(self, patience_s: float) -> None:
        """Close them, and remember whether that worked in time."""
        ...

    def resume(self) -> None:
        """Go on in the parent."""
        ...


class _Forks:
    """Everything to be paused, and the hooks of the interpreter, installed with the first of them."""

    def __init__(self) -> None:
        self._members: WeakSet[Pausable] = WeakSet()
        self._lock = Lock()
        self._hooked = False

    def add(self, member: Pausable) -> None:
        with self._lock:
            self._members.add(member)
            if not self._hooked and hasattr(os, "register_at_fork"):
                os.register_at_fork(before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child)
                self._hooked = True

    def _before(self) -> None:
        # Held until after the fork, so that the child finds the set whole.
        self._lock.acquire()
        # One that cannot close in time does not stop the fork: the interpreter has no way to refuse it. The member
        # remembers, and refuses its use in the child.
        for member in self._members:
            member.pause(PATIENCE_S)

    def _in_parent(self) -> None:
        for member in self._members:
            member.resume()
        self._lock.release()

    def _in_child(self) -> None:
        # Each member opens files of the child's own when it is used there, and then adds itself again.
        self._members = WeakSet()
        self._lock.release()


_FORKS: Final = _Forks()


def pause_around_forks(member: Pausable) -> None:
    """Call `pause` before every fork of this process and `resume` after it, as long as the member lives."""
    _FORKS.add(member)
