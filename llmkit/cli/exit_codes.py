"""Exit codes of the command line."""

from __future__ import annotations

__all__ = ["EXIT_BAD_INPUT", "EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_OK"]

# A failed gate, check or call is 1. Input that cannot be used is 2, as for options that Typer refuses. An interrupted
# command is 130, as shells report SIGINT.
EXIT_OK, EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 0, 1, 2, 130
