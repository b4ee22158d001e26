"""The model that a solve function gets, bound to variant, run, sample and epoch: a sync and an async face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, overload

from pydantic import ValidationError

from llmkit.attachment import Attachment, collect_attachments
from llmkit.errors import LLMBadRequest, describe_validation
from llmkit.evals.solve.steps import Steps, StepService
from llmkit.types import LLMConstraints, LLMRequest, LLMResponse, Message, Route

if TYPE_CHECKING:
    from collections.abc import Callable
    from os import PathLike

    from pydantic_ai import Agent, Tool
    from typing_extensions import Unpack

    from llmkit.types import ResponseFormat, ToolDefinition

__all__ = [
    "AsyncBoundConversation",
    "AsyncBoundModel",
    "BoundConversation",
    "BoundModel",
    "StepOptions",
]

Prompt = str | Sequence[Message | Mapping[str, Any]]
T = TypeVar("T")


class StepOptions(TypedDict, total=False):
    """Options of one call, on top of the parameters of the variant.

    Attributes:
        step: Name of the step: for the report, and for equal calls that are under way at the same time.
        route: `"ollama/llama3.2"` pins another model than the variant's.
        system: System message, sent before the prompt.
        temperature: From 0 to 2.
        max_output_tokens: Longest answer.
        seed: For providers that take one.
        stop: Strings at which the answer ends.
        thinking: Whether a model that can reason before it answers should.
        timeout_s: Longest time for one request, in seconds.
        images: Images to send with the last message: paths, bytes or `Attachment`.
        files: PDF to send with the last message, as `images`.
        tools: Tools that the model may call; the answer then has `tool_calls`.
        tool_choice: `auto`, `none` or `required`.
        response_format: JSON, optionally with a schema. `extract` sets it for you.
        metadata: JSON values to store with the call.
    """

    step: str | None
    route: str | Route | None
    system: str | None
    temperature: float | None
    max_output_tokens: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    thinking: bool | None
    timeout_s: float | None
    images: str | PathLike[str] | bytes | Attachment | Sequence[str | PathLike[str] | bytes | Attachment] | None
    files: str | PathLike[str] | bytes | Attachment | Sequence[str | PathLike[str] | bytes | Attachment] | None
    tools: Sequence[ToolDefinition] | None
    tool_choice: Literal["auto", "none", "required"] | None
    response_format: ResponseFormat | None
    metadata: Mapping[str, Any] | None


# Spelled out, because the annotations above are names of types that are not loaded at run time.
_OPTIONS = frozenset(StepOptions.__annotations__)
_NOT_OF_EXTRACT = frozenset({"tools", "tool_choice", "response_format"})


class _CallMaker:
    """Requests of a function, made of what it passes and of what its sample's calls are bound to."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def __repr__(self) -> str:
        binding = self._steps.binding
        return f"{type(self).__name__}({str(binding.route) if binding.route else 'routed'!r}, epoch={binding.epoch})"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            # Names that other libraries have. A type checker must go on refusing them.
            raise AttributeError(f"{type(self).__name__} has no {name!r}: it has chat, extract, conversation and agent")

    def _fields(self, given: Mapping[str, Any], refused: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return the fields of a request: the variant's, and on top of them those that were given."""
        known = _OPTIONS - refused
        for name in given:
            if name not in known:
                raise LLMBadRequest(f"{name}: unknown option; there are: {', '.join(sorted(known))}")
        binding = self._steps.binding
        fields = {**binding.parameters, "route": binding.route, "constraints": binding.constraints}
        fields |= {name: value for name, value in given.items() if value is not None and name != "step"}
        if given.get("route") is not None:
            # Another model than the one that is evaluated: it must not fall back to it.
            fields["constraints"] = LLMConstraints(allow_fallback=False)
            try:
                fields["route"] = Route.parse(given["route"]) if isinstance(given["route"], str) else given["route"]
            except ValidationError as error:
                raise LLMBadRequest("; ".join(describe_validation(error))) from None
        return fields

    async def _chat(self, prompt: Prompt, given: Mapping[str, Any]) -> LLMResponse:
        fields = self._fields(given)
        attachments = _read_attachments(fields)
        messages = _read_messages(prompt, attachments)
        system = fields.pop("system", None)
        if system is not None:
            messages = ({"role": "system", "content": system}, *messages)
        try:
            request = LLMRequest(messages=messages, **fields)
        except ValidationError as error:
            raise LLMBadRequest("; ".join(describe_validation(error))) from None
        return await self._steps.send(request, given.get("step"))

    async def _extract(
        self,
        output_type: Any,
        text: Prompt,
        instructions: str | None,
        examples: Sequence[tuple[str, Any]],
        reasks: int | None,
        given: Mapping[str, Any],
    ) -> Any:
        from llmkit.pydanticai.extraction import extract
        from llmkit.pydanticai.extraction_prompt import extraction_prompt

        fields = self._fields(given, _NOT_OF_EXTRACT)
        attachments = _read_attachments(fields)
        system = fields.pop("system", None)
        if isinstance(text, str):
            messages = extraction_prompt(
                output_type, text, examples=examples, instructions=instructions, attachments=attachments
            )
        else:
            messages = tuple(Message.model_validate(each) for each in _read_messages(text, attachments))
        if system is not None:
            messages = (Message(role="system", content=system), *messages)
        route, constraints = fields.pop("route"), fields.pop("constraints")
        extraction = await extract(
            StepService(self._steps, given.get("step")),
            output_type,
            messages,
            route=route,
            constraints=constraints,
            parameters=fields,
            epoch=self._steps.binding.epoch,
            use_cache=False,
            reasks=self._steps.binding.reasks if reasks is None else reasks,
        )
        return extraction.value

    def agent(
        self,
        output_type: Any = str,
        *,
        tools: Sequence[Tool[Any] | Callable[..., Any]] = (),
        instructions: str | None = None,
        step: str | None = None,
        route: str | Route | None = None,
        **options: Any,
    ) -> Agent[Any, Any]:
        """Return an agent of Pydantic AI whose requests are steps of this sample.

        Its tools run again when a run is resumed; its requests come from the store while the tools return the same.

        Args:
            output_type: The type of its output.
            tools: Functions that it may call.
            instructions: Its instructions.
            step: Name of its steps; needed only where two agents that begin with the same request run in parallel.
            route: Another model than the variant's.
            **options: Any further argument of `pydantic_ai.Agent`, such as `deps_type` or `retries`.
        """
        from pydantic_ai import Agent

        from llmkit.pydanticai.model import PydanticAiLiteLLMModel

        fields = self._fields({} if route is None else {"route": route})
        pinned, constraints = fields.pop("route"), fields.pop("constraints")
        model = PydanticAiLiteLLMModel(
            StepService(self._steps, step),
            route=pinned,
            constraints=constraints,
            parameters=fields,
            epoch=self._steps.binding.epoch,
            use_cache=False,
        )
        return Agent(model, output_type=output_type, tools=tools, instructions=instructions, **options)


class BoundModel(_CallMaker):
    """The model of a sync solve function. Each call waits for its answer; threads of the function may call it too.

    Example:
        >>> from llmkit.evals import BoundModel, Sample, Task
        >>> def solve(sample: Sample, model: BoundModel) -> str:
        ...     draft = model.chat(f"Draft an answer: {sample.input}").text
        ...     return model.chat(f"Shorten this: {draft}", max_output_tokens=50).text
        >>> Task("answers", [Sample("Why is the sky blue?")], solve=solve)
        Task('answers', solve=solve, scorers=[])
    """

    def chat(self, prompt: Prompt, **options: Unpack[StepOptions]) -> LLMResponse:
        """Send a prompt and return the answer.

        Args:
            prompt: A string, or messages such as `{"role": "user", "content": "..."}`.
            **options: See `StepOptions`.

        Raises:
            LLMError: As `Session.chat`.
        """
        return self._steps.wait(self._chat(prompt, options))

    @overload
    def extract(
        self,
        output_type: type[T],
        text: Prompt,
        *,
        instructions: str | None = None,
        examples: Sequence[tuple[str, Any]] = (),
        reasks: int | None = None,
        **options: Unpack[StepOptions],
    ) -> T: ...
    @overload
    def extract(
        self,
        output_type: Any,
        text: Prompt,
        *,
        instructions: str | None = None,
        examples: Sequence[tuple[str, Any]] = (),
        reasks: int | None = None,
        **options: Unpack[StepOptions],
    ) -> Any: ...
    def extract(
        self,
        output_type: Any,
        text: Prompt,
        *,
        instructions: str | None = None,
        examples: Sequence[tuple[str, Any]] = (),
        reasks: int | None = None,
        **options: Unpack[StepOptions],
    ) -> Any:
        """Read a value of a type out of a text, as `Session.extract`.

        Args:
            output_type: A Pydantic model, or any type that Pydantic can validate.
            text: The text, or a conversation that asks for the value.
            instructions: Replaces the sentence in front of the text.
            examples: Pairs of a text and its value.
            reasks: How often to ask the model again, with its validation errors; default the evaluation's.
            **options: See `StepOptions`.

        Raises:
            LLMInvalidOutput: No answer fitted the type.
            LLMError: As `Session.extract`.
        """
        return self._steps.wait(self._extract(output_type, text, instructions, examples, reasks, options))

    def conversation(self, **options: Unpack[StepOptions]) -> BoundConversation:
        """Begin a conversation, whose every turn sees those before it.

        Args:
            **options: Of all turns, and the system message; see `StepOptions`.
        """
        return BoundConversation(self, options)


class AsyncBoundModel(_CallMaker):
    """The model of an async solve function. Calls are awaited, and may be gathered.

    Example:
        >>> import asyncio
        >>> from llmkit.evals import AsyncBoundModel, Sample, Task
        >>> async def solve(sample: Sample, model: AsyncBoundModel) -> str:
        ...     questions = ["What is good about it?", "What is bad about it?"]
        ...     answers = await asyncio.gather(*[model.chat(f"{sample.input} {each}") for each in questions])
        ...     return " ".join(answer.text for answer in answers)
        >>> Task("reviews", [Sample("The soup was cold.")], solve=solve)
        Task('reviews', solve=solve, scorers=[])
    """

    async def chat(self, prompt: Prompt, **options: Unpack[StepOptions]) -> LLMResponse:
        """Send a prompt and return the answer; see `BoundModel.chat`."""
        return await self._chat(prompt, options)

    @overload
    async def extract(
        self,
        output_type: type[T],
        text: Prompt,
        *,
        instructions: str | None = None,
        examples: Sequence[tuple[str, Any]] = (),
        reasks: int | None = None,
        **options: Unpack[StepOptions],
    ) -> T: ...
    @overload
    async def extract(
        self,
        output_type: Any,
        text: Prompt,
        *,
        instructions: str | None = None,
        examples: Sequence[tuple[str, Any]] = (),
        reasks: int | None = None,
        **options: Unpack[StepOptions],
    ) -> Any: ...
    async def extract(
        self,
        output_type: Any,
        text: Prompt,
        *,
        instructions: str | None = None,
        examples: Sequence[tuple[str, Any]] = (),
        reasks: int | None = None,
        **options: Unpack[StepOptions],
    ) -> Any:
        """Read a value of a type out of a text; see `BoundModel.extract`."""
        return await self._extract(output_type, text, instructions, examples, reasks, options)

    def conversation(self, **options: Unpack[StepOptions]) -> AsyncBoundConversation:
        """Begin a conversation; see `BoundModel.conversation`."""
        return AsyncBoundConversation(self, options)


class _Turns:
    """Turns of a conversation of a solve function.

    Attributes:
        messages: All messages so far.
    """

    def __init__(self, model: _CallMaker, options: Mapping[str, Any]) -> None:
        self._model = model
        self._options = {name: value for name, value in options.items() if name != "system"}
        system = options.get("system")
        self.messages: tuple[Message, ...] = () if system is None else (Message(role="system", content=system),)

    async def _say(self, text: str, options: Mapping[str, Any]) -> LLMResponse:
        if not isinstance(text, str) or not text.strip():
            raise LLMBadRequest("say takes a string that is not empty")
        if options.get("system") is not None:
            raise LLMBadRequest("system belongs to the conversation: model.conversation(system=...)")
        asked = (*self.messages, Message(role="user", content=text))
        answer = await self._model._chat(asked, {**self._options, **options})  # noqa: SLF001
        self.messages = (*asked, Message(role="assistant", content=answer.text))
        return answer


class BoundConversation(_Turns):
    """A conversation of a sync solve function. A turn that fails leaves it as it was."""

    def say(self, text: str, **options: Unpack[StepOptions]) -> LLMResponse:
        """Send a message and return the answer.

        Args:
            text: The message.
            **options: Of this turn, on top of the conversation's.

        Raises:
            LLMError: As `BoundModel.chat`.
        """
        return self._model._steps.wait(self._say(text, options))  # noqa: SLF001


class AsyncBoundConversation(_Turns):
    """A conversation of an async solve function. A turn that fails leaves it as it was."""

    async def say(self, text: str, **options: Unpack[StepOptions]) -> LLMResponse:
        """Send a message and return the answer; see `BoundConversation.say`."""
        return await self._say(text, options)


def _read_attachments(fields: dict[str, Any]) -> tuple[Attachment, ...]:
    given = {name: fields.pop(name) for name in ("images", "files") if fields.get(name) is not None}
    try:
        return collect_attachments(**given)
    except (OSError, ValueError, TypeError) as error:
        raise LLMBadRequest(f"{' and '.join(given)}: {error}") from None


def _read_messages(prompt: Any, attachments: tuple[Attachment, ...]) -> tuple[Any, ...]:
    if isinstance(prompt, str):
        if not prompt.strip() and not attachments:
            raise LLMBadRequest("The prompt is empty; write some text")
        return ({"role": "user", "content": prompt, "attachments": attachments},)
    if (
        not isinstance(prompt, Sequence)
        or not all(isinstance(each, Message | Mapping) for each in prompt)
        or not prompt
    ):
        raise LLMBadRequest(
            'The prompt must be a string, or a list of messages such as {"role": "user", "content": "..."}; got '
            f"{type(prompt).__name__}"
        )
    if not attachments:
        return tuple(prompt)
    try:
        last = Message.model_validate(prompt[-1])
    except ValidationError as error:
        raise LLMBadRequest("; ".join(describe_validation(error))) from None
    return (*prompt[:-1], last.model_copy(update={"attachments": last.attachments + attachments}))
