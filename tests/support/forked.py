"""Processes of their own that have everything imported: each is forked from one that did nothing else."""

from __future__ import annotations

import multiprocessing

__all__ = ["FORKED"]

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(
    ["llmkit.persistence.journal", "llmkit.persistence.migrate", "llmkit.persistence.repo", "psycopg", "pytest"]
)
