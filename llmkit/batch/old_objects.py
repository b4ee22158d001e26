"""Garbage collection during a batch: objects that were there before it are left out."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

__all__ = ["skip_old_objects"]

_lock = Lock()
_batches = 0


@contextmanager
def skip_old_objects() -> Iterator[None]:
    """Keep the garbage collector from visiting what exists already, until the last such block of the process ends.

    The libraries of a session are half a million objects. A batch makes the collector visit all of them about once for
    500 samples, although none of them can have become garbage: that was a sixth of the processor time of an evaluation.

    Garbage that is in a cycle and older than the block is collected after it. A process that has frozen its objects
    itself, as servers do before they fork, keeps them frozen.
    """
    global _batches  # noqa: PLW0603
    with _lock:
        is_ours = _batches > 0 or gc.get_freeze_count() == 0
        if is_ours:
            _batches += 1
            if _batches == 1:
                gc.freeze()
    try:
        yield
    finally:
        if is_ours:
            with _lock:
                _batches -= 1
                if _batches == 0:
                    gc.unfreeze()
