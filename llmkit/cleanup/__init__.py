"""Closing of objects that nothing refers to any more, and the end of the interpreter."""

from llmkit.cleanup.reaper import close_when_dropped, closes_at_exit, is_exiting, start_reaper

__all__ = ["close_when_dropped", "closes_at_exit", "is_exiting", "start_reaper"]
