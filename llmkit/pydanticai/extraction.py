"""Typed extraction: ask for a type, validate, ask again with what was wrong, within a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.exceptions import AgentRunError, UnexpectedModelBehavior, UserError

from llmkit.errors import LLMBadRequest, LLMError, LLMInvalidOutput, LLMUnavailable, describe_validation
from llmkit.pydanticai.messages import as_model_messages
from llmkit.pydanticai.model import PydanticAiLiteLLMModel
from llmkit.service import LLMService
from llmkit.types import (
    LLMConstraints,
    LLMRequest,
    LLMResponse,
    Message,
    ProviderCaps,
    RequestContext,
    ResponseFormat,
    Route,
    TokenUsage,
)

__all__ = ["Extraction", "OutputMode", "extract"]

OutputMode = Literal["schema", "tool", "prompted"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Extraction(Generic[T]):
    """A validated value, and what it took to get it.

    Attributes:
        value: An instance of the output type.
        mode: How the shape was asked for: constrained by a schema, as a tool call, or in words.
        valid_first_try: Whether the first answer fitted; False means that the model was asked again.
        responses: Every model request, in order; `served_from` tells which of them cost something now.
        usage: Tokens of all of them.
        latency_ms: That of all of them together; stored ones count what they took originally.
    """

    value: T
    mode: OutputMode
    valid_first_try: bool
    responses: tuple[LLMResponse, ...]
    usage: TokenUsage
    latency_ms: float


async def extract(  # noqa: PLR0913 - the fields of a request, all by name
    service: LLMService,
    output_type: type[T],
    messages: str | Sequence[Message],
    *,
    context: RequestContext | None = None,
    route: Route | None = None,
    constraints: LLMConstraints | None = None,
    parameters: Mapping[str, Any] | None = None,
    idempotency_key: str | None = None,
    epoch: int = 0,
    use_cache: bool = True,
    retries: int = 1,
) -> Extraction[T]:
    """Ask for an instance of a type.

    Args:
        service: Who answers.
        output_type: A Pydantic model, a dataclass, or any type Pydantic can validate.
        messages: The prompt, or a conversation that ends with a user message.
        context: Workspace, pipeline run and stage.
        route: A pinned route; None lets the router choose.
        constraints: What a route must fulfil.
        parameters: Further fields of `LLMRequest`: profile, temperature, max_output_tokens, seed, stop, timeout_s.
        idempotency_key: Names this extraction; the number of each model request in it is appended.
        epoch: Number of the repeat in an evaluation.
        use_cache: Whether the content cache may answer.
        retries: How often the model is asked again with the validation errors.

    Raises:
        LLMInvalidOutput: No answer fitted the type; `raw_text`, `validation_errors` and `attempts` tell more.
        LLMBadRequest: The output type cannot be a schema, or a parameter is unknown or bad.
        LLMError: As `LLMService.chat`.
    """
    conversation = (Message(role="user", content=messages),) if isinstance(messages, str) else tuple(messages)
    schema = _schema(output_type)
    mode = _choose_mode(service, conversation, route, constraints, schema)
    model = PydanticAiLiteLLMModel(
        service,
        context=context,
        route=route,
        constraints=constraints,
        parameters=parameters,
        idempotency_key=idempotency_key,
        epoch=epoch,
        use_cache=use_cache,
    )
    value = await _run(model, output_type, conversation, mode, retries)
    return _extraction(value, mode, tuple(model.responses))


def _schema(output_type: Any) -> dict[str, Any]:
    try:
        return TypeAdapter(output_type).json_schema()
    except Exception as error:  # noqa: BLE001
        # Pydantic raises a dozen classes here, some of them its users' own.
        name = getattr(output_type, "__name__", repr(output_type))
        raise LLMBadRequest(
            f"{name} cannot be an output type, because it has no JSON schema ({type(error).__name__}); "
            "use a Pydantic model, a dataclass, a TypedDict, or a type such as list[str]"
        ) from None


def _choose_mode(
    service: LLMService,
    conversation: tuple[Message, ...],
    route: Route | None,
    constraints: LLMConstraints | None,
    schema: dict[str, Any],
) -> OutputMode:
    """The strongest mode of the route that would be asked first."""
    probe = LLMRequest(
        messages=conversation,
        route=route,
        constraints=constraints or LLMConstraints(),
        response_format=ResponseFormat(json_schema=schema),
    )
    candidates = service.router.explain(probe).candidates
    if not candidates:
        return "schema"  # the service says why there is none
    return _strongest(service.router.capabilities(candidates[0]))


def _strongest(caps: ProviderCaps) -> OutputMode:
    if caps.supports_json_schema:
        return "schema"
    return "tool" if caps.supports_tools else "prompted"


_OUTPUTS: Mapping[OutputMode, Any] = {"schema": NativeOutput, "tool": ToolOutput, "prompted": PromptedOutput}


async def _run(
    model: PydanticAiLiteLLMModel,
    output_type: type[T],
    conversation: tuple[Message, ...],
    mode: OutputMode,
    retries: int,
) -> T:
    if not conversation or conversation[-1].role != "user":
        raise LLMBadRequest("an extraction's conversation ends with a user message")
    agent: Agent[None, T] = Agent(model, output_type=_OUTPUTS[mode](output_type), retries=retries)
    try:
        result = await agent.run(conversation[-1].content, message_history=as_model_messages(conversation[:-1]))
    except LLMError as error:
        _add_earlier_attempts(error, model.responses)
        raise
    except UnexpectedModelBehavior as error:
        raise _invalid(output_type, model.responses, error) from None
    except ValidationError as error:
        raise LLMBadRequest("; ".join(describe_validation(error))) from None
    except UserError as error:
        raise LLMBadRequest(str(error)) from None
    except AgentRunError as error:
        raise LLMUnavailable(f"Pydantic AI gave up: {error}") from None
    return result.output


def _add_earlier_attempts(error: LLMError, earlier: Sequence[LLMResponse]) -> None:
    error.attempts = tuple(attempt for response in earlier for attempt in response.attempts) + error.attempts


def _invalid(output_type: Any, responses: Sequence[LLMResponse], error: Exception) -> LLMInvalidOutput:
    last = responses[-1] if responses else None
    raw = (last.text or (last.tool_calls[0].arguments if last.tool_calls else "")) if last else ""
    problems = _problems(output_type, raw) or (str(error),)
    name = getattr(output_type, "__name__", repr(output_type))
    invalid = LLMInvalidOutput(
        f"No answer fitted {name} in {len(responses)} tries: {problems[0]}",
        raw_text=raw,
        validation_errors=problems,
        provider=last.route.provider if last else None,
        model=last.route.model if last else None,
    )
    invalid.run_id = last.run_id if last else None
    _add_earlier_attempts(invalid, responses)
    return invalid


def _problems(output_type: Any, raw: str) -> tuple[str, ...]:
    try:
        TypeAdapter(output_type).validate_json(raw)
    except ValidationError as error:
        return tuple(describe_validation(error))
    return ()


def _extraction(value: T, mode: OutputMode, responses: tuple[LLMResponse, ...]) -> Extraction[T]:
    return Extraction(
        value=value,
        mode=mode,
        valid_first_try=len(responses) == 1,
        responses=responses,
        usage=TokenUsage.total(response.usage for response in responses),
        latency_ms=sum(response.latency_ms for response in responses),
    )
