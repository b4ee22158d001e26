"""Regular expressions on text that a model wrote: each search ends in time, and lets other threads run meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from time import monotonic
from typing import Any

__all__ = ["PATTERN_TIMEOUT_S", "compile_pattern", "is_match", "limit_all_searches"]

# A pattern that backtracks without end is given up after this time.
PATTERN_TIMEOUT_S = 1.0
# All searches of one score together: a document may have a thousand strings, each of which takes almost that time.
ALL_PATTERNS_TIMEOUT_S = 10.0

_DEADLINE: ContextVar[float | None] = ContextVar("llmkit_pattern_deadline", default=None)


@contextmanager
def limit_all_searches() -> Iterator[None]:
    """Limit the time of all searches in this block together."""
    token = _DEADLINE.set(monotonic() + ALL_PATTERNS_TIMEOUT_S)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


def is_match(pattern: str, text: str, *, is_whole: bool = False, ignore_case: bool = False) -> bool:
    """Return whether a pattern matches the text, or a part of it.

    Raises:
        TimeoutError: It takes too long.
    """
    compiled = compile_pattern(pattern, ignore_case)
    find = compiled.fullmatch if is_whole else compiled.search
    deadline = _DEADLINE.get()
    limit_s = PATTERN_TIMEOUT_S if deadline is None else max(0.001, min(PATTERN_TIMEOUT_S, deadline - monotonic()))
    try:
        # Concurrent: without it, the engine keeps the interpreter's lock, and not even Ctrl-C is noticed.
        return find(text, timeout=limit_s, concurrent=True) is not None
    except TimeoutError:
        raise TimeoutError(
            f"the pattern {pattern!r:.200} backtracked for more than {PATTERN_TIMEOUT_S:g} s on {len(text):,} "
            "characters; write it without nested repeats"
        ) from None


@lru_cache(maxsize=256)
def compile_pattern(pattern: str, ignore_case: bool = False) -> Any:
    """Compile a pattern of the `regex` package, whose searches have a time limit."""
    import regex

    return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
