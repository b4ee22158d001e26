"""What a session knows of models, and how it finds out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmkit.notebook.options import route_of
from llmkit.notebook.runtime import Face
from llmkit.types import LLMRequest, RequestContext

if TYPE_CHECKING:
    from llmkit.providers.model_facts import ModelFacts

__all__ = ["KnowingFace"]


class KnowingFace(Face):
    """Tells what is known of a model, and tries one out."""

    _context: RequestContext

    def facts(self, route: str) -> ModelFacts:
        """What is known of a model: tools, schema, images, context in tokens, digest; each with source and time.

        Asks the server when that is Ollama; sends nothing to a model.

        Args:
            route: `provider/model`.

        Raises:
            LLMBadRequest: It is not written so.
        """
        return self._open.run(self._facts(route))

    async def afacts(self, route: str) -> ModelFacts:
        """`facts` for async code, in any event loop."""
        return await self._open.hop(self._facts(route))

    async def _facts(self, route: str) -> ModelFacts:
        service, parsed = self._open.runtime().service, route_of(route)
        await service.learn(LLMRequest(messages="?", route=parsed))
        return service.router.facts(parsed)

    def probe(self, route: str) -> ModelFacts:
        """Try out whether a model's answers are held to a schema: one small request, billed and recorded as any other.

        What it shows is used from now on, in other processes too when the cache is on, until the model's digest
        changes, for 30 days at most.

        Args:
            route: `provider/model`.

        Raises:
            LLMBadRequest: It is not written so.
            LLMError: The trial could not be carried out.
        """
        return self._open.run(self._probe(route))

    async def aprobe(self, route: str) -> ModelFacts:
        """`probe` for async code, in any event loop."""
        return await self._open.hop(self._probe(route))

    async def _probe(self, route: str) -> ModelFacts:
        return await self._open.runtime().prober.probe(route_of(route), self._context)
