"""A session's model for agents of one's own."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from llmkit.notebook.options import CONTEXT_NAMES, accepting, checked_names, route_of
from llmkit.notebook.runtime import Face
from llmkit.types import RequestContext

if TYPE_CHECKING:
    from llmkit.pydanticai import PydanticAiLiteLLMModel

__all__ = ["AgentFace"]

_NAMES = CONTEXT_NAMES | {"constraints", "parameters", "idempotency_key", "epoch", "use_cache", "settings"}


class AgentFace(Face):
    """Lends its service to agents."""

    @accepting("constraints", "parameters", "idempotency_key", "epoch", "use_cache", "settings", *sorted(CONTEXT_NAMES))
    def model(self, route: str | None = None, **parameters: Any) -> PydanticAiLiteLLMModel:
        """A model for agents of Pydantic AI, every request of which is a call of this session and a row of `runs()`.

        `await Agent(s.model(...)).run(...)` works in a notebook and in any event loop, `run_sync` in a script.

        Args:
            route: A pinned one; None lets the router choose.
            **parameters: `pipeline_run_id` and `stage`, and those of `llmkit.pydanticai.PydanticAiLiteLLMModel`:
                `constraints`, `parameters` (temperature and the like), `idempotency_key`, `epoch`, `use_cache`,
                `settings`.

        Raises:
            LLMBadRequest: The route is not written `provider/model`, or a parameter is unknown.
        """
        from llmkit.notebook.session_model import HoppingModel

        checked_names(parameters, _NAMES)
        pinned = None if route is None else route_of(route)
        context, fields = self._split(parameters)
        return HoppingModel(self._open, self._open.runtime().service, context=context, route=pinned, **fields)

    @abstractmethod
    def _split(self, parameters: dict[str, Any]) -> tuple[RequestContext, dict[str, Any]]:
        """Part what belongs to the context from the rest."""
