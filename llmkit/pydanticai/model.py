"""A Pydantic AI model that asks `LLMService`: store, cache, router and idempotency come with it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import JsonValue, ValidationError
from pydantic_ai.exceptions import ContentFilterError, OutputTokenLimitExceeded, UserError
from pydantic_ai.messages import ModelMessage, ModelResponse
from pydantic_ai.models import (
    CompletedStreamedResponse,
    Model,
    ModelRequestParameters,
    StreamedResponse,
    check_allow_model_requests,
)
from pydantic_ai.output import StructuredOutputMode
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.settings import ModelSettings, merge_model_settings

from llmkit.errors import (
    LLMContentBlocked,
    LLMError,
    LLMOutputTruncated,
    LLMReasoningExhausted,
    LLMUnavailable,
    describe_validation,
)
from llmkit.ports import AnswerSink
from llmkit.pydanticai.messages import as_messages, as_model_response, with_instructions
from llmkit.pydanticai.request_fields import (
    find_schema,
    modes_of,
    refuse_settings,
    response_format,
    settings_fields,
    tools_and_choice,
    with_canonical,
)
from llmkit.pydanticai.schema import CanonicalSchema
from llmkit.pydanticai.streamed_answer import LlmkitStreamedResponse, RunningAnswer
from llmkit.service import ChatService
from llmkit.types import MAX_KEY_LENGTH, LLMConstraints, LLMRequest, LLMResponse, Message, RequestContext, Route

if TYPE_CHECKING:
    from pydantic_ai import RunContext

__all__ = ["AgentForm", "PydanticAiLiteLLMModel"]

_PROFILE = ModelProfile(
    supports_tools=True,
    supports_json_schema_output=True,
    supports_json_object_output=True,
    supports_image_input=True,
    supports_document_input=True,
    supported_document_media_types=frozenset({"application/pdf"}),
    supports_audio_file_input=False,
    supports_video_input=False,
    default_structured_output_mode="native",
)


# Builds the messages of a request from its parameters.
MessageBuilder = Callable[[ModelRequestParameters], tuple[Message, ...]]


class _PreparedModel(NamedTuple):
    fields: Mapping[str, Any]
    parameters: ModelRequestParameters
    schema: CanonicalSchema | None


class AgentForm:
    """Settings, tools and output schema of Pydantic AI's requests, translated once for many messages.

    Args:
        settings: Of the request.
        parameters: Tools and output.
    """

    def __init__(self, settings: ModelSettings | None, parameters: ModelRequestParameters) -> None:
        self.settings = settings
        self.parameters = parameters
        self._prepared: dict[StructuredOutputMode, _PreparedModel] = {}

    def is_of(self, settings: ModelSettings | None, parameters: ModelRequestParameters) -> bool:
        """Return whether it is the form of these very objects."""
        return self.settings is settings and self.parameters is parameters

    def prepare(self, model: PydanticAiLiteLLMModel, mode: StructuredOutputMode) -> _PreparedModel:
        """Prepare the request for an output mode, once for models with equal settings.

        Raises:
            UserError: A setting, a schema or a choice cannot be carried; the message names it.
        """
        if mode not in self._prepared:
            self._prepared[mode] = self._make_prepared(model, mode)
        return self._prepared[mode]

    def _make_prepared(self, model: PydanticAiLiteLLMModel, mode: StructuredOutputMode) -> _PreparedModel:
        refuse_settings(merge_model_settings(model.settings, self.settings))
        chosen = self.parameters.with_default_output_mode(mode)
        schema = find_schema(chosen)
        settings, parameters = model.prepare_request(self.settings, chosen)
        tools, tool_choice = tools_and_choice(settings, parameters)
        fields = {
            **settings_fields(settings),
            "tools": tools,
            "tool_choice": tool_choice,
            "response_format": response_format(parameters, has_tools=bool(tools)),
        }
        return _PreparedModel(fields, parameters, schema)


class PydanticAiLiteLLMModel(Model[Any]):
    """Sends every model request of an agent through the service, as one `llm_runs` row each.

    The row's metadata say under `agent` which step of the run it was, the output mode, the hash of the output schema
    and which of its parts only validation enforces. Images and PDF go as `BinaryContent`, to routes that read them.
    Where an agent leaves the output mode open, it is the strongest that some route has: constrained by a schema, or a
    tool beside other tools, else in words; a route that only has a weaker one may still be fallen back to. What llmkit
    cannot carry (addresses of files, provider tools, settings such as `top_p`) is refused by name;
    `docs/structured-output.md` has the list.

    Args:
        service: Who answers.
        context: Workspace, pipeline run and stage of every request.
        route: A pinned route; None lets the router choose.
        constraints: What a route must fulfil.
        parameters: Further fields of `LLMRequest` (profile, temperature, max_output_tokens, seed, timeout_s, metadata);
            the agent's own settings win.
        idempotency_key: Names the agent's run; the number of the model request within it is appended, so that a run
            that is repeated replays its finished steps. Use one key for one conversation.
        epoch: Number of the repeat in an evaluation.
        use_cache: Whether the content cache may answer.
        settings: Pydantic AI's own model settings.

    Attributes:
        responses: The answers so far, in order.
        schema: The output schema of the last request; None for text.
        remarks: Added to the metadata of every further request.
        form: Settings and parameters of the last request of Pydantic AI.
        given: An answer that the next request gets without being sent.
    """

    _announces_lookalike_notes: ClassVar[bool] = False

    def __init__(  # noqa: PLR0913 - the fields of a request, all by name
        self,
        service: ChatService,
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
        self.schema: CanonicalSchema | None = None
        self.remarks: dict[str, JsonValue] = {}
        self.form: AgentForm | None = None
        self.given: ModelResponse | None = None
        # Agents may run side by side on one model: each answer has its row, and what was written there.
        self._rows: dict[str | None, tuple[LLMResponse, LLMRequest]] = {}

    @property
    def model_name(self) -> str:
        """The pinned route, or `routed`."""
        return str(self._fields["route"] or "routed")

    @property
    def system(self) -> str:
        """Name of this model's provider for Pydantic AI."""
        return "llmkit"

    def customize_request_parameters(self, model_request_parameters: ModelRequestParameters) -> ModelRequestParameters:
        """Bring every schema into its canonical form.

        Raises:
            UserError: A schema cannot be sent; the message names the tool.
        """
        return with_canonical(model_request_parameters)

    def prepare_request(
        self, model_settings: ModelSettings | None, model_request_parameters: ModelRequestParameters
    ) -> tuple[ModelSettings | None, ModelRequestParameters]:
        """Prepare a request as Pydantic AI does, but leave an open output mode open.

        `request` picks the strongest each time.
        """
        if model_request_parameters.output_mode == "auto":
            return model_settings, model_request_parameters
        return super().prepare_request(model_settings, model_request_parameters)

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Answer one step of an agent.

        Raises:
            ContentFilterError: A safety filter stopped prompt or answer; its cause is our `LLMContentBlocked`.
            OutputTokenLimitExceeded: The answer was cut at the limit; its cause is our error.
            UserError: A setting, a schema or a value cannot be carried; the message names it.
            LLMUnsupported: A part of the conversation cannot be sent.
            LLMError: Anything else, as `LLMService.chat`.
        """
        if self.given is not None:
            given, self.given = self.given, None
            return given
        form = self._find_form(model_settings, model_request_parameters)
        return as_model_response(await self._answer_agent(messages, form))

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,  # noqa: ARG002 (of Pydantic AI's interface)
    ) -> AsyncGenerator[StreamedResponse]:
        """Answer one step of an agent, while the answer is being written. Its first piece has arrived when this opens.

        To leave before the end closes the connection, and the call is recorded as cancelled. An answer that needs no
        request (replayed, cached) comes in one piece, and one that is waiting in `given` as well.

        Raises:
            LLMError: As `request`, and so are all others that it raises. After the first piece, the loop over the
                events raises them; then nothing is sent again.
        """
        if self.given is not None:
            given, self.given = self.given, None
            yield CompletedStreamedResponse(
                given, model_request_parameters=model_request_parameters, replay_events=True
            )
            return
        form = self._find_form(model_settings, model_request_parameters)
        answer = RunningAnswer(
            form.parameters, lambda answer: self._run_call(lambda: self._answer_agent(messages, form, answer))
        )
        try:
            await answer.wait_for_first_piece()
            yield LlmkitStreamedResponse(answer.parameters, answer=answer, requested_model=self.model_name)
        finally:
            await answer.cancel()

    async def _run_call(self, make_call: Callable[[], Coroutine[Any, Any, LLMResponse]]) -> LLMResponse:
        """Make a call of the service in the event loop that its connections belong to."""
        return await make_call()

    def _find_form(self, settings: ModelSettings | None, parameters: ModelRequestParameters) -> AgentForm:
        if self.form is None or not self.form.is_of(settings, parameters):
            self.form = AgentForm(settings, parameters)
        return self.form

    async def _answer_agent(
        self, messages: list[ModelMessage], form: AgentForm, stream: RunningAnswer | None = None
    ) -> LLMResponse:
        step = sum(isinstance(message, ModelResponse) for message in messages)

        def build_messages(parameters: ModelRequestParameters) -> tuple[Message, ...]:
            return as_messages(messages, self._get_instruction_parts(messages, parameters))

        return await self._call_service(build_messages, step, form, stream)

    async def answer(self, conversation: Sequence[Message], form: AgentForm) -> LLMResponse:
        """Return the response that `request` would get, without Pydantic AI's message types.

        Args:
            conversation: One that Pydantic AI would send as it is, see `is_sent_as_it_is`.
            form: What Pydantic AI would ask it with.

        Raises:
            LLMError: As `request`, and so are all others that it raises.
        """
        self.form = form
        step = sum(message.role == "assistant" for message in conversation)

        def build_messages(parameters: ModelRequestParameters) -> tuple[Message, ...]:
            return with_instructions(conversation, self._get_instruction_parts((), parameters))

        return await self._call_service(build_messages, step, form)

    async def _call_service(
        self, build_messages: MessageBuilder, step: int, form: AgentForm, stream: RunningAnswer | None = None
    ) -> LLMResponse:
        check_allow_model_requests()
        earlier: LLMError | None = None
        sink = stream.sink if stream is not None else None
        for request, prepared in self._build_requests(build_messages, step, form):
            self.schema = prepared.schema
            if stream is not None:
                stream.parameters = prepared.parameters
            try:
                response = await self._send_request(request, sink)
            except LLMError as error:
                if earlier is not None:
                    error.attempts = earlier.attempts + error.attempts
                if error.has_begun or not (error.retryable and request.constraints.allow_fallback):
                    raise
                earlier = error
            else:
                self._keep(response, request)
                return response
        raise earlier or LLMUnavailable("No route answers at the moment")

    async def _send_request(self, request: LLMRequest, sink: AnswerSink | None) -> LLMResponse:
        try:
            return await self._service.chat(request, self._context, sink=sink)
        except LLMContentBlocked as error:
            raise ContentFilterError(str(error)) from error
        except (LLMOutputTruncated, LLMReasoningExhausted) as error:
            raise OutputTokenLimitExceeded(str(error)) from error

    def _keep(self, response: LLMResponse, request: LLMRequest) -> None:
        self.responses.append(response)
        if response.run_id is not None:
            self._rows[str(response.run_id)] = (response, request)

    def _build_requests(
        self, build_messages: MessageBuilder, step: int, form: AgentForm
    ) -> Iterator[tuple[LLMRequest, _PreparedModel]]:
        """Return the request in the output mode that the user chose; else in the strongest that some route has.

        Then, for when those routes fail, in weaker ones for routes that lack the stronger.
        """
        modes = modes_of(form.parameters)
        seen: set[Route] = set()
        first: tuple[LLMRequest, _PreparedModel] | None = None
        for mode in modes:
            prepared = form.prepare(self, mode)
            request = self._build_request(build_messages, step, prepared)
            if len(modes) == 1:
                yield request, prepared
                return
            first = first or (request, prepared)
            fresh = [each for each in self._service.router.explain(request).candidates if each not in seen]
            if fresh:
                yield (request if not seen else _weaker(request, mode, fresh)), prepared
            seen.update(fresh)
        if not seen and first is not None:
            yield first  # the service says why there is no route

    async def annotate(self, run_id: str | None, **remarks: JsonValue) -> None:
        """Add remarks under `agent` in the metadata of an answer's row. This is a separate write, for rare cases.

        Args:
            run_id: That of the answer, which is also the `provider_response_id` of Pydantic AI's; nothing happens for
                one that this model did not give.
            **remarks: What to add.

        Raises:
            LLMStoreError: The database failed.
        """
        if run_id in self._rows:
            response, request = self._rows[run_id]
            own = request.metadata["agent"]
            agent = {**(own if isinstance(own, dict) else {}), **remarks}
            request = request.model_copy(update={"metadata": {**request.metadata, "agent": agent}})
            self._rows[run_id] = (response, request)
            await self._service.annotate(response, request, self._context)

    def _build_request(self, build_messages: MessageBuilder, step: int, prepared: _PreparedModel) -> LLMRequest:
        fields = {
            "messages": build_messages(prepared.parameters),
            # Each request of a run has its own key, made of the run's.
            "idempotency_key": None if self._idempotency_key is None else _short(self._idempotency_key, f"#{step}"),
            "metadata": self._metadata(step, prepared.parameters.output_mode, prepared.schema),
        }
        try:
            return LLMRequest(**{**self._fields, **prepared.fields, **fields})
        except ValidationError as error:
            raise UserError("; ".join(describe_validation(error))) from None

    def _metadata(self, step: int, output_mode: str, schema: CanonicalSchema | None) -> dict[str, JsonValue]:
        agent: dict[str, JsonValue] = {"step": step, "output_mode": output_mode}
        if schema is not None:
            agent["schema_sha256"] = schema.sha256
            if schema.validated_only:
                agent["validated_only"] = list(schema.validated_only)
        return {**self._fields.get("metadata", {}), "agent": {**agent, **self.remarks}}


def _weaker(request: LLMRequest, mode: str, routes: Sequence[Route]) -> LLMRequest:
    """Return the request for these routes only, with its own key, because it differs from the request that failed."""
    allowed = frozenset(route.provider for route in routes)
    key = request.idempotency_key
    changes = {
        "constraints": request.constraints.model_copy(update={"allowed_providers": allowed}),
        "idempotency_key": None if key is None else _short(f"{key}~{mode}"),
    }
    return request.model_copy(update=changes)


def _short(key: str, end: str = "") -> str:
    """Return the key; a long one is shortened by its hash."""
    whole = f"{key}{end}"
    if len(whole) <= MAX_KEY_LENGTH:
        return whole
    return f"{key[:150]}~{hashlib.sha256(key.encode()).hexdigest()}{end}"
