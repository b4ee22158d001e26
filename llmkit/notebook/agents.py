"""The model that a session provides for agents of Pydantic AI."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from llmkit.notebook.arguments import check_names, parse_route
from llmkit.notebook.core import SessionCore
from llmkit.notebook.event_loop import CANCEL_GRACE_S
from llmkit.notebook.options import ModelOptions, list_option_names
from llmkit.pydanticai import PydanticAiLiteLLMModel

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import ModelRequestParameters
    from pydantic_ai.settings import ModelSettings

    from llmkit.types import LLMResponse

__all__ = ["SessionModel", "build_model"]


class SessionModel(PydanticAiLiteLLMModel):
    """A model that asks on the session's loop, whichever loop the agent runs in: connections belong to one loop."""

    def __init__(self, core: SessionCore, **options: Any) -> None:
        super().__init__(core.service, **options)
        self._core = core

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Send one request; see `PydanticAiLiteLLMModel.request`."""
        return await self._core.run_async(super().request(messages, model_settings, model_request_parameters))

    async def _run_call(self, make_call: Callable[[], Coroutine[Any, Any, LLMResponse]]) -> LLMResponse:
        has_ended: Future[None] = Future()

        async def call() -> LLMResponse:
            try:
                return await make_call()
            finally:
                has_ended.set_result(None)

        try:
            return await self._core.run_async(call())
        except asyncio.CancelledError:
            # Who leaves a stream finds it recorded, although the other loop is still about to write.
            await asyncio.wait((asyncio.wrap_future(has_ended),), timeout=CANCEL_GRACE_S)
            raise


def build_model(core: SessionCore, route: str | None, options: Mapping[str, Any]) -> SessionModel:
    """Check the arguments of `Session.model` and build the model.

    Raises:
        LLMBadRequest: The route is not written `provider/model`, or an option is unknown.
    """
    check_names(options, list_option_names(ModelOptions))
    pinned = None if route is None else parse_route(route)
    context, fields = core.split_options(options)
    return SessionModel(core, context=context, route=pinned, **fields)
