"""A stdout that is reserved for one JSON document, whatever the user's code prints."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from contextvars import ContextVar
from functools import wraps
from typing import Any, TextIO

__all__ = ["find_document_stream", "reserve_stdout"]

_DOCUMENT: ContextVar[TextIO | None] = ContextVar("llmkit_json_document", default=None)


def find_document_stream() -> TextIO:
    """Return the stream for a JSON document: the reserved stdout, if it is reserved."""
    return _DOCUMENT.get() or sys.stdout


def reserve_stdout(command: Callable[..., None]) -> Callable[..., None]:
    """Let a command print its JSON document only. It runs code of the user's, which may print or start programs."""

    @wraps(command)
    def run_command(**arguments: Any) -> None:
        with _redirect() if arguments["as_json"] else nullcontext():
            command(**arguments)

    return run_command


@contextmanager
def _redirect() -> Iterator[None]:
    """Send everything but the document to stderr."""
    stdout = document = sys.stdout
    with ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))
        try:
            number, error_number = stdout.fileno(), sys.stderr.fileno()
        except OSError:  # io.UnsupportedOperation too: no file is behind the stream, so no program inherits it
            pass
        else:
            stdout.flush()
            document = os.fdopen(os.dup(number), "w", encoding=stdout.encoding, errors=stdout.errors)
            stack.enter_context(document)
            os.dup2(error_number, number)
            stack.callback(_give_back, stdout, number, document)
        token = _DOCUMENT.set(document)
        stack.callback(_DOCUMENT.reset, token)
        yield


def _give_back(stdout: TextIO, number: int, document: TextIO) -> None:
    # Text in the buffer was printed through a reference to the old stream, and belongs to stderr like the rest.
    stdout.flush()
    # Imported here: most commands do without evaluations.
    from llmkit.evals.scorers.apply import SCORER_THREAD

    # A scorer that was abandoned goes on in its thread, and may print after the document.
    if not any(thread.name == SCORER_THREAD for thread in threading.enumerate()):
        os.dup2(document.fileno(), number)
