"""Completion of routes in a notebook: Tab after `route="` or in the list of `evaluate` lists what can be called."""

from __future__ import annotations

import re
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

from llmkit.errors import LLMError
from llmkit.notebook.pandas_accessor import get_latest_session

if TYPE_CHECKING:
    from llmkit.notebook.core import SessionCore

__all__ = ["find_route_start", "register_completion"]

# Models come and go seldom, and asking Ollama for them takes up to 2 s.
FRESH_S = 60.0
_QUOTED = r"""(?:\s*["'][^"']*["']\s*,)*\s*["']([^"']*)$"""
_ROUTE_PLACE = re.compile(rf"""(?:\broutes?\s*=\s*\[?|\ba?evaluate\([^"'=]*\[){_QUOTED}""")


def register_completion() -> None:
    """Let the running IPython shell complete routes. Idempotent; does nothing outside one."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is not None and _complete not in getattr(shell.Completer, "custom_matchers", [_complete]):
        _complete.matcher_api_version = 2  # type: ignore[attr-defined]  # how IPython tells that it takes a context
        _complete.matcher_identifier = "llmkit.route"  # type: ignore[attr-defined]
        shell.Completer.custom_matchers.append(_complete)


def find_route_start(line: str) -> str | None:
    """Return the part of a route before the cursor; None where no route is expected.

    Args:
        line: The line up to the cursor.
    """
    found = _ROUTE_PLACE.search(line)
    return None if found is None else found[1]


def _complete(context: Any) -> dict[str, Any]:
    """Return the routes that begin with what is written, in the form of IPython's matchers."""
    from IPython.core.completer import SimpleCompletion

    start = find_route_start(context.line_with_cursor[: context.cursor_position])
    if start is None:
        return {"completions": []}
    try:
        core: SessionCore = get_latest_session()._core  # type: ignore[attr-defined]  # noqa: SLF001 - of this package
        routes = _list_routes(core)
    except LLMError:  # no session yet
        return {"completions": []}
    # IPython replaces its own token, which begins after the last delimiter.
    skipped = len(start) - len(context.token) if start.endswith(context.token) else 0
    matches = [SimpleCompletion(route[skipped:], type="route") for route in routes if route.startswith(start)]
    return {"completions": matches, "suppress": bool(matches)}


# The time until which they are fresh, and the routes, by the addresses of all servers.
_known: dict[str, tuple[float, tuple[str, ...]]] = {}


def _list_routes(core: SessionCore) -> tuple[str, ...]:
    from llmkit.bootstrap import list_routes

    own = [f"{name} {each.api_base}" for name, each in core.settings.endpoints.items()]
    address = "\n".join([str(core.settings.ollama_api_base), *own])
    fresh_until_s, routes = _known.get(address, (0.0, ()))
    if monotonic() >= fresh_until_s:
        routes = core.loop.run(list_routes(core.settings))
        _known[address] = monotonic() + FRESH_S, routes
    return routes
