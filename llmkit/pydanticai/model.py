"""A Pydantic AI model that asks `LLMService`: store, cache, router and idempotency come with it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic_ai.exceptions import UserError
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import Model, ModelRequestParameters, check_allow_model_requests
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition as AgentToolDefinition

from llmkit.pydanticai.messages import as_messages, as_model_response
from llmkit.service import LLMService
from llmkit.types import (
    MAX_KEY_LENGTH,
    LLMConstraints,
    LLMRequest,
    LLMResponse,
    NamedToolChoice,
    RequestContext,
    ResponseFormat,
    Route,
    ToolDefinition,
)

__all__ = ["PydanticAiLiteLLMModel"]

ToolChoice = Literal["auto", "none", "required"] | NamedToolChoice

_PROFILE = ModelProfile(
    supports_tools=True,
    supports_json_schema_output=True,
    supports_json_object_output=True,
    supports_image_input=False,
    default_structured_output_mode="native",
)
_CARRIED_SETTINGS = frozenset(
    {"max_tokens", "temperature", "timeout", "seed", "stop_sequences", "tool_choice", "request_timeout"}
)


class PydanticAiLiteLLMModel(Model[Any]):
    """Sends every model request of an agent through the service, as one `llm_runs` row each.

    Args:
        service: Who answers.
        context: Workspace, pipeline run and stage of every request.
        route: A pinned route; None lets the router choose.
        constraints: What a route must fulfil.
        parameters: Further fields of `LLMRequest` (profile, temperature, max_output_tokens, seed, timeout_s);
            the agent's own settings win.
        idempotency_key: Names the agent's run; the number of the model request within it is appended, so that a run
            that is repeated replays its finished steps. Use one key for one conversation.
        epoch: Number of the repeat in an evaluation.
        use_cache: Whether the content cache may answer.
        settings: Pydantic AI's own model settings.

    Attributes:
        responses: The answers so far, in order.
    """

    unsupported_settings: ClassVar[frozenset[Any]] = frozenset(ModelSettings.__annotations__) - _CARRIED_SETTINGS
    _announces_lookalike_notes: ClassVar[bool] = False

    def __init__(  # noqa: PLR0913 - the fields of a request, all by name
        self,
        service: LLMService,
        *,
        context: RequestContext | None = None,
        route: Route | None = None,
        constraints: LLMConstraints | None = None,
        parameters: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        epoch: int = 0,
        use_cache: bool = True,
        settings: ModelSettings | None = None,
    ) -> None:
        super().__init__(settings=settings, profile=_PROFILE)
        self._service = service
        self._context = context
        self._fields: dict[str, Any] = {
            **(parameters or {}),
            "route": route,
            "constraints": constraints or LLMConstraints(),
            "epoch": epoch,
            "use_cache": use_cache,
        }
        self._idempotency_key = idempotency_key
        self.responses: list[LLMResponse] = []

    @property
    def model_name(self) -> str:
        """The pinned route, or `routed`."""
        return str(self._fields["route"] or "routed")

    @property
    def system(self) -> str:
        """Name of this model's provider for Pydantic AI."""
        return "llmkit"

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Answer one step of an agent.

        Raises:
            LLMError: As `LLMService.chat`.
            LLMUnsupported: A part of the conversation cannot be sent.
        """
        check_allow_model_requests()
        model_settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        instructions = self._get_instruction_parts(messages, parameters)
        step = sum(isinstance(message, ModelResponse) for message in messages)
        tools, tool_choice = _tools(model_settings, parameters)
        request = LLMRequest(
            **self._fields
            | _settings(model_settings)
            | {
                "messages": as_messages(messages, instructions),
                "tools": tools,
                "tool_choice": tool_choice,
                "response_format": _response_format(parameters, has_tools=bool(tools)),
                "idempotency_key": _step_key(self._idempotency_key, step),
            }
        )
        response = await self._service.chat(request, self._context)
        self.responses.append(response)
        return as_model_response(response)


def _step_key(key: str | None, step: int) -> str | None:
    """The run's key with the number of the request in it; a long one is shortened by its hash."""
    if key is None:
        return None
    whole = f"{key}#{step}"
    if len(whole) <= MAX_KEY_LENGTH:
        return whole
    return f"{key[:150]}~{hashlib.sha256(key.encode()).hexdigest()}#{step}"


def _settings(settings: ModelSettings | None) -> dict[str, Any]:
    """Pydantic AI's names for our fields."""
    given = settings or {}
    timeout = given.get("timeout")
    fields: dict[str, Any] = {
        "temperature": given.get("temperature"),
        "max_output_tokens": given.get("max_tokens"),
        "seed": given.get("seed"),
        "stop": tuple(given["stop_sequences"]) if given.get("stop_sequences") else None,
        "timeout_s": float(timeout) if isinstance(timeout, int | float) else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _response_format(parameters: ModelRequestParameters, *, has_tools: bool) -> ResponseFormat | None:
    output = parameters.output_object
    if parameters.output_mode == "native" and output is not None:
        return ResponseFormat(name=_name(output.name), json_schema=output.json_schema)
    if parameters.output_mode == "prompted" and not has_tools:
        return ResponseFormat()
    return None


def _name(name: str | None) -> str:
    clean = "".join(char if char.isascii() and (char.isalnum() or char in "_-") else "_" for char in name or "output")
    return clean[:60] if clean[:1].isalpha() or clean[:1] == "_" else f"_{clean[:60]}"


def _tools(
    settings: ModelSettings | None, parameters: ModelRequestParameters
) -> tuple[tuple[ToolDefinition, ...], ToolChoice | None]:
    """The tools to send and the choice among them.

    A choice of several by name is carried out by sending only those, as no provider of ours can be told it.
    """
    available = parameters.declared_tool_defs
    wanted = (settings or {}).get("tool_choice")
    can_answer_in_text = parameters.allow_text_output or parameters.output_mode in {"native", "prompted"}
    choice: ToolChoice = "auto" if can_answer_in_text else "required"
    if isinstance(wanted, list) and wanted:
        available = _named(available, wanted)
        choice = NamedToolChoice(name=wanted[0]) if len(wanted) == 1 else "required"
    elif wanted == "required":
        choice = "required"
    elif wanted in ("none", []):
        available = {tool.name: tool for tool in parameters.output_tools}
    elif wanted not in (None, "auto"):
        raise UserError(
            f"llmkit cannot carry tool_choice={wanted!r}; use 'auto', 'none', 'required' or a list of names"
        )
    tools = tuple(_tool(tool) for tool in available.values())
    return tools, choice if tools else None


def _named(available: Mapping[str, AgentToolDefinition], names: Sequence[str]) -> dict[str, AgentToolDefinition]:
    unknown = sorted(set(names) - set(available))
    if unknown:
        raise UserError(
            f"tool_choice names unknown tools: {', '.join(unknown)}; known: {', '.join(available) or 'none'}"
        )
    return {name: available[name] for name in names}


def _tool(tool: AgentToolDefinition) -> ToolDefinition:
    return ToolDefinition(name=tool.name, description=tool.description or "", parameters=tool.parameters_json_schema)
