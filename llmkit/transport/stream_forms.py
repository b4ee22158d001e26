"""How each route streams, as far as its server's refusals have shown."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmkit.providers.base import ProviderSpec, StreamForm
    from llmkit.transport.http.exchange import Exchange
    from llmkit.types import Route

__all__ = ["StreamForms"]

_REFUSALS = frozenset({400, 404, 405, 422, 501})
# Servers word it in many ways, but name the field that they refuse, or the method.
_ABOUT_STREAMS = re.compile(rb"\b(stream(ed|ing|_options|generatecontent)?|include_usage)\b", re.IGNORECASE)
_ABOUT_OPTIONS = re.compile(rb"stream_options|include_usage", re.IGNORECASE)
_READ_BYTES = 4_096


class StreamForms:
    """The form in which each route is asked to stream, kept for the life of a client.

    Some servers refuse the option for counts, and some models cannot stream: a refusal costs one request, once.
    """

    def __init__(self) -> None:
        self._known: dict[Route, StreamForm | None] = {}

    def choose(self, spec: ProviderSpec, route: Route) -> StreamForm | None:
        """Return the form to ask for; None to ask for a plain answer."""
        if route not in self._known:
            self._known[route] = None if spec.stream is None else spec.stream()
        return self._known[route]

    def note_refusal(self, route: Route, exchange: Exchange) -> bool:
        """Take a simpler form from now on if the server refused the one of this request; return whether it did."""
        body = exchange.body[:_READ_BYTES]
        if exchange.stream is None or exchange.status not in _REFUSALS or not _ABOUT_STREAMS.search(body):
            return False
        self._known[route] = exchange.stream.simpler if _ABOUT_OPTIONS.search(body) else None
        return True
