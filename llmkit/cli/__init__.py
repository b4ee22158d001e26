"""The command line: the session's calls, printed."""

from llmkit.cli.main import app, main

__all__ = ["app", "main"]
