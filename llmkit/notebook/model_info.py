"""Facts about models, and how a session finds them out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkit.errors import LLMBadRequest
from llmkit.notebook.arguments import parse_route
from llmkit.notebook.core import SessionCore
from llmkit.providers import load_endpoints
from llmkit.types import LLMRequest

if TYPE_CHECKING:
    from llmkit.providers.model_facts import ModelFacts

__all__ = ["probe_model", "read_facts"]


async def read_facts(core: SessionCore, route: str) -> ModelFacts:
    """Ask the route's server what it reports of the model, and return all known facts."""
    parsed = parse_route(route)
    await core.service.discover(LLMRequest(messages="?", route=parsed))
    return core.service.router.facts(parsed)


async def probe_model(core: SessionCore, route: str, *, paid: bool) -> ModelFacts:
    """Send the probe's requests and return all known facts."""
    parsed = parse_route(route)
    spec = load_endpoints(core.settings).get(parsed.provider)
    if spec is not None and spec.runs_elsewhere(parsed.model) and not paid:
        raise LLMBadRequest(
            f"A probe of {parsed} sends up to 8 small requests, which may be billed: pass paid=True to send them"
        )
    return await core.runtime.open().prober.probe(parsed, core.context)
