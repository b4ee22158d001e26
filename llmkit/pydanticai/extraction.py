"""Typed extraction: request a type, validate the answer, and reask with the validation errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, Literal, TypeVar

import pydantic_ai
from pydantic import ValidationError
from pydantic_ai import Agent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.exceptions import AgentRunError, UnexpectedModelBehavior, UserError

from llmkit.errors import LLMBadRequest, LLMError, LLMInvalidOutput, LLMUnavailable, describe_validation
from llmkit.pydanticai.direct_request import Asker
from llmkit.pydanticai.model import PydanticAiLiteLLMModel
from llmkit.pydanticai.output_reader import Reader
from llmkit.pydanticai.output_shape import OutputShape
from llmkit.service import ChatService
from llmkit.types import (
    Attempt,
    LLMConstraints,
    LLMRequest,
    LLMResponse,
    Message,
    RequestContext,
    ResponseFormat,
    Route,
    TokenUsage,
    ToolDefinition,
)

__all__ = ["Extraction", "Outcome", "OutputMode", "ask_text", "extract"]

# It would print a page about itself in the middle of our progress bar.
pydantic_ai.BANNER_ENABLED = False

OutputMode = Literal["schema", "tool", "prompted", "text"]
Outcome = Literal["first_try", "repaired", "reasked"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Extraction(Generic[T]):
    """A validated value, and what it took to get it.

    Attributes:
        value: An instance of the output type.
        mode: How the type was requested: constrained by a schema, as a tool call, or in the prompt; `text` for free
            text, for which no JSON was requested.
        valid_first_try: Whether the raw first answer fitted as it was.
        responses: Every model request, in order; `served_from` shows which of them were paid for now.
        usage: Tokens of all of them.
        latency_ms: That of all of them together; stored ones count what they took originally.
        outcome: `first_try`; `repaired`, when the first answer fitted once fences, prose or a stray comma were gone;
            `reasked`, when the model had to answer again.
        schema_sha256: Hash of the output schema that the answering provider got; None when it got none. Two routes
            that differ in it got different requests.
        answer_json: The JSON text that was validated: an object, with the value in `response` where the type is none.
        warnings: What the caller should know: parts of the schema that only validation enforces on the route that
            answered, and that an answer was repaired.
        lost_attempts: Requests of a policy's earlier calls that gave no answer. They are part of `usage`.
    """

    value: T
    mode: OutputMode
    valid_first_try: bool
    responses: tuple[LLMResponse, ...]
    usage: TokenUsage
    latency_ms: float
    outcome: Outcome = "first_try"
    schema_sha256: str | None = None
    warnings: tuple[str, ...] = ()
    answer_json: str | None = None
    lost_attempts: tuple[Attempt, ...] = ()


async def extract(  # noqa: PLR0913 - the fields of a request, all by name
    service: ChatService,
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
    reasks: int = 1,
) -> Extraction[T]:
    """Ask for an instance of a type.

    Args:
        service: Who answers.
        output_type: A Pydantic model, a dataclass, or any type Pydantic can validate.
        messages: The prompt, or a conversation that ends with a user message.
        context: Workspace, pipeline run and stage.
        route: A pinned route; None lets the router choose.
        constraints: What a route must fulfil.
        parameters: Further fields of `LLMRequest`: profile, temperature, max_output_tokens, seed, stop, timeout_s,
            metadata.
        idempotency_key: Names this extraction; the number of each model request in it is appended.
        epoch: Number of the repeat in an evaluation.
        use_cache: Whether the content cache may answer.
        reasks: How many times the model is called again with its validation errors.

    Raises:
        LLMInvalidOutput: No answer fitted the type; `raw_text`, `validation_errors` and `attempts` tell more.
        LLMBadRequest: The output type cannot be a schema, or a parameter is unknown or bad.
        LLMError: As `LLMService.chat`.
    """
    answer: OutputShape[T] = OutputShape.of(output_type)
    task = _ExtractionTask(answer, _conversation(messages), reasks)
    request = {"context": context, "parameters": parameters, "epoch": epoch, "use_cache": use_cache}
    earlier: LLMError | None = None
    own = constraints or LLMConstraints()
    strongest = task.probe(_MODES[0], route, own)
    candidates = service.router.explain(strongest).candidates
    if not candidates:
        # The weaker modes depend on what the model supports, which no call has looked up yet.
        await service.discover(task.probe("tool", route, own))
        candidates = service.router.explain(strongest).candidates
    for mode, allowed in _modes(service, task, route, own, candidates):
        key = idempotency_key if earlier is None or idempotency_key is None else f"{idempotency_key}~{mode}"
        model = PydanticAiLiteLLMModel(service, route=route, constraints=allowed, idempotency_key=key, **request)  # type: ignore[arg-type]
        try:
            return await task.run(service, model, mode)
        except LLMError as error:
            if earlier is not None:
                error.attempts = earlier.attempts + error.attempts
            is_last = constraints is not None and not constraints.allow_fallback
            if is_last or error.has_begun or not error.retryable:
                raise
            earlier = error
    raise earlier or LLMUnavailable("No route answers at the moment")


async def ask_text(  # noqa: PLR0913 - the arguments of `extract`
    service: ChatService,
    _output_type: type[str],
    messages: str | Sequence[Message],
    *,
    context: RequestContext | None = None,
    route: Route | None = None,
    constraints: LLMConstraints | None = None,
    parameters: Mapping[str, Any] | None = None,
    idempotency_key: str | None = None,
    epoch: int = 0,
    use_cache: bool = True,
    reasks: int = 1,  # noqa: ARG001 (any text is valid, so that nothing is asked again)
) -> Extraction[str]:
    """Ask for free text, with the arguments and the result of `extract`.

    Raises:
        LLMError: As `LLMService.chat`.
    """
    fields = {**(parameters or {}), "route": route, "constraints": constraints or LLMConstraints()}
    fields |= {"epoch": epoch, "use_cache": use_cache}
    # Numbered as the requests of an extraction are.
    fields["idempotency_key"] = None if idempotency_key is None else f"{idempotency_key}#0"
    try:
        request = LLMRequest(messages=_conversation(messages), **fields)
    except ValidationError as error:
        raise LLMBadRequest("; ".join(describe_validation(error))) from None
    response = await service.chat(request, context)
    return Extraction(
        value=response.text,
        mode="text",
        valid_first_try=True,
        responses=(response,),
        usage=response.usage,
        latency_ms=response.latency_ms,
    )


def _conversation(messages: str | Sequence[Message]) -> tuple[Message, ...]:
    conversation = (Message(role="user", content=messages),) if isinstance(messages, str) else tuple(messages)
    if not conversation or conversation[-1].role != "user":
        raise LLMBadRequest("an extraction's conversation ends with a user message")
    return conversation


# --- the strongest mode -------------------------------------------------------------------------------------------

_MODES: tuple[OutputMode, ...] = ("schema", "tool", "prompted")
_OUTPUTS: Mapping[OutputMode, Any] = {"schema": NativeOutput, "tool": ToolOutput, "prompted": PromptedOutput}
_EMPTY: dict[str, Any] = {"type": "object", "properties": {}}
_NEEDS: Mapping[OutputMode, dict[str, Any]] = {
    "schema": {"response_format": ResponseFormat(json_schema=_EMPTY)},
    "tool": {"tools": (ToolDefinition(name="final_result", parameters=_EMPTY),)},
    "prompted": {"response_format": ResponseFormat()},
}


def _modes(
    service: ChatService, task: _ExtractionTask[T], route: Route | None, own: LLMConstraints, strongest: Sequence[Route]
) -> Iterator[tuple[OutputMode, LLMConstraints]]:
    """Return the strongest mode that some route has.

    Then, for when those routes fail, weaker ones of routes that lack it.
    """
    seen: set[Route] = set()
    for mode in _MODES:
        able = strongest if mode == _MODES[0] else service.router.explain(task.probe(mode, route, own)).candidates
        fresh = [candidate for candidate in able if candidate not in seen]
        if fresh:
            # The routes of stronger modes had their turn, so the others answer now.
            providers = frozenset(candidate.provider for candidate in fresh)
            yield mode, own.model_copy(update={"allowed_providers": providers}) if seen else own
        seen.update(fresh)
    if not seen:
        yield "schema", own  # the service raises with the reason for each route


# --- one run ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _ExtractionTask(Generic[T]):
    """Request for a typed output, in any mode."""

    answer: OutputShape[T]
    conversation: tuple[Message, ...]
    reasks: int

    def probe(self, mode: OutputMode, route: Route | None, constraints: LLMConstraints) -> LLMRequest:
        """Return a request that needs of a route what the mode needs."""
        return LLMRequest(messages=self.conversation, route=route, constraints=constraints, **_NEEDS[mode])

    async def run(self, service: ChatService, model: PydanticAiLiteLLMModel, mode: OutputMode) -> Extraction[T]:
        """Ask in one mode."""
        reader = _AskingReader(model)
        found = await self._extract_output(model, reader, _asker(self.answer.wire_type, mode))
        outcome: Outcome = "reasked" if len(model.responses) > 1 else "repaired" if reader.is_repaired else "first_try"
        last = model.responses[-1]
        warnings = _warnings(service, model, last, is_repaired=reader.is_repaired)
        if warnings:
            last = last.model_copy(update={"warnings": last.warnings + warnings})
        responses = (*model.responses[:-1], last)
        return Extraction(
            value=self.answer.value(found),
            mode=mode,
            valid_first_try=outcome == "first_try",
            responses=responses,
            usage=TokenUsage.total(response.usage for response in responses),
            latency_ms=sum(response.latency_ms for response in responses),
            outcome=outcome,
            schema_sha256=_schema_sha256(model, mode),
            warnings=warnings,
            answer_json=reader.answer_json,
        )

    async def _extract_output(self, model: PydanticAiLiteLLMModel, reader: Reader, asker: Asker) -> Any:
        try:
            return await asker.ask(model, self.conversation, self.answer, reader, self.reasks)
        except LLMError as error:
            raise _with_earlier(error, model.responses) from None
        except UnexpectedModelBehavior as error:
            if isinstance(error.__cause__, LLMError):
                raise _with_earlier(error.__cause__, model.responses) from None
            problems = reader.problems or (str(error),)
            if model.responses:
                await model.annotate(str(model.responses[-1].run_id), never_fitted=list(problems))
            raise self._invalid(model.responses, problems) from None
        except ValidationError as error:
            raise LLMBadRequest("; ".join(describe_validation(error))) from None
        except UserError as error:
            raise LLMBadRequest(str(error)) from None
        except AgentRunError as error:
            raise LLMUnavailable(f"Pydantic AI gave up: {error}") from None

    def _invalid(self, responses: Sequence[LLMResponse], problems: tuple[str, ...]) -> LLMError:
        last = responses[-1] if responses else None
        raw_text = last.text if last else ""
        if last and not raw_text and last.tool_calls:
            raw_text = last.tool_calls[0].arguments
        invalid = LLMInvalidOutput(
            f"No answer fitted {self.answer.name} in {len(responses)} tries: {problems[0]}",
            raw_text=raw_text,
            validation_errors=problems,
            provider=last.route.provider if last else None,
            model=last.route.model if last else None,
        )
        invalid.run_id = last.run_id if last else None
        invalid.responses = tuple(responses)
        return _with_earlier(invalid, responses)


class _AskingReader(Reader):
    """Notes in the record of the next request why there is one."""

    def __init__(self, model: PydanticAiLiteLLMModel) -> None:
        super().__init__()
        self._model = model

    def _refusal(self, problems: tuple[str, ...]) -> Any:
        refusal = super()._refusal(problems)
        self._model.remarks = {"asked_again_because": list(self.problems)}
        return refusal


@lru_cache(maxsize=128)
def _asker(wire_type: Any, mode: OutputMode) -> Asker:
    """Make the agent for a type. It takes milliseconds to build and keeps no state of a run."""
    return Asker(Agent(output_type=_OUTPUTS[mode](wire_type)), answers_in_text=mode != "tool")


def _with_earlier(error: LLMError, earlier: Sequence[LLMResponse]) -> LLMError:
    error.attempts = tuple(attempt for response in earlier for attempt in response.attempts) + error.attempts
    return error


def _warnings(
    service: ChatService, model: PydanticAiLiteLLMModel, last: LLMResponse, *, is_repaired: bool
) -> tuple[str, ...]:
    caps = service.router.capabilities(last.route)
    loose = model.schema.list_unenforced(caps) if model.schema else ()
    warnings = (
        [f"{last.route.provider} does not enforce all of the schema; validation enforces: {', '.join(loose)}"]
        if loose
        else []
    )
    if is_repaired:
        warnings.append("The answer was not valid JSON and was repaired.")
    return tuple(warnings)


def _schema_sha256(model: PydanticAiLiteLLMModel, mode: OutputMode) -> str | None:
    """Return the hash of the schema that was sent. A stored answer has no attempts but was sent the same one."""
    sent = model.responses[-1].attempts
    if mode == "schema" and sent and sent[-1].params_sha256 is not None:
        return sent[-1].schema_sha256
    return model.schema.sha256 if model.schema else None
