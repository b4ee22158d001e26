"""Facts about models, and how a session finds them out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkit.notebook.arguments import parse_route
from llmkit.notebook.core import SessionCore
from llmkit.types import LLMRequest

if TYPE_CHECKING:
    from llmkit.providers.model_facts import ModelFacts

__all__ = ["probe_model", "read_facts"]


async def read_facts(core: SessionCore, route: str) -> ModelFacts:
    """Ask the route's server what it reports of the model, and return all known facts."""
    parsed = parse_route(route)
    await core.service.discover(LLMRequest(messages="?", route=parsed))
    return core.service.router.facts(parsed)


async def probe_model(core: SessionCore, route: str) -> ModelFacts:
    """Send the probe request and return all known facts."""
    return await core.runtime.open().prober.probe(parse_route(route), core.context)
