"""Processes of their own that have everything imported: each is forked from one that did nothing else."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Callable

__all__ = ["FORKED", "run_in_child"]

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["llmkit.persistence.journal", "llmkit.persistence.migrate", "llmkit.persistence.repo", "psycopg", "pytest"]
)


def run_in_child(work: Callable[[], None]) -> int:
    """Return the exit code of a forked child that does the work: 0 when it raised nothing."""
    with warnings.catch_warnings():
        # From Python 3.12 a fork beside other threads warns; what happens to a store then is what the tests are about.
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
