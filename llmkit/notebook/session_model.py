"""The model behind `Session.model`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmkit.pydanticai import PydanticAiLiteLLMModel

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.settings import ModelSettings

    from llmkit.notebook.runtime import Opened
    from llmkit.service import LLMService

__all__ = ["HoppingModel"]


class HoppingModel(PydanticAiLiteLLMModel):
    """Asks on the loop of a session, whichever loop the agent runs in: connections live in one loop only."""

    def __init__(self, opened: Opened, service: LLMService, **how: Any) -> None:
        super().__init__(service, **how)
        self._opened = opened

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """As `PydanticAiLiteLLMModel.request`."""
        return await self._opened.hop(super().request(messages, model_settings, model_request_parameters))
