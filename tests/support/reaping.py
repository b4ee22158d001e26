"""Waiting for what the reaper's thread closes."""

from __future__ import annotations

import gc
import threading

from llmkit.cleanup import close_when_dropped

__all__ = ["wait_for_reaper"]


class _Owner:
    pass


def wait_for_reaper() -> None:
    """Return when everything that was dropped before is closed: the reaper works in the order of its queue."""
    gc.collect()
    is_done = threading.Event()
    close_when_dropped(_Owner(), is_done.set)
    gc.collect()
    assert is_done.wait(60)
