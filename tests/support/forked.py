"""Processes of their own that have everything imported: each is forked from one that did nothing else."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable

__all__ = ["FORKED", "IGNORE_FORK_WARNING", "run_in_child"]

# An argument of `-W`: from Python 3.12 a fork beside other threads warns, and what happens to a store then is tested.
IGNORE_FORK_WARNING = "ignore:This process:DeprecationWarning"

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["llmkit.persistence.journal", "llmkit.persistence.migrate", "llmkit.persistence.repo", "psycopg", "pytest"]
)


def run_in_child(work: Callable[[], None]) -> int:
    """Return the exit code of a forked child that does the work: 0 when it raised nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
