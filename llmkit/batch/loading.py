"""The names of what this process is loading at the moment, to tell why a call takes so long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["find_loading", "note_loading"]

# A list, because append, remove and reading the last one are atomic: threads load, and another one shows it.
_NAMES: list[str] = []


@contextmanager
def note_loading(name: str) -> Iterator[None]:
    """Note that something is being loaded inside the block."""
    _NAMES.append(name)
    try:
        yield
    finally:
        _NAMES.remove(name)


def find_loading() -> str | None:
    """Return the name of what began to be loaded last; None if nothing is being loaded."""
    try:
        return _NAMES[-1]
    except IndexError:
        return None
