"""Options of the session's methods: one class declares their names, types, defaults and documentation.

Type checkers read the classes through `**options: Unpack[ChatOptions]`, notebooks through the signature and docstring
that `accept_options` derives, and the run-time check of names through `list_option_names`. The module imports nothing
heavy, because `llmkit.Session` must be cheap to load: types of other modules are written as strings. A default other
than None is metadata: `Annotated[int, {"default": 1}]`.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Annotated, Any, ForwardRef, Literal, TypedDict, TypeVar, get_args

from llmkit.evals.run.options import EvaluateOptions

if TYPE_CHECKING:
    from pydantic_ai.settings import ModelSettings

    from llmkit.types import (
        Attachment,
        LLMConstraints,
        LLMProfile,
        NamedToolChoice,
        ResponseFormat,
        Route,
        ToolDefinition,
    )

__all__ = [
    "CallOptions",
    "ChatOptions",
    "ConversationOptions",
    "ExtractOptions",
    "MapOptions",
    "ModelOptions",
    "ReadingOptions",
    "SharedEvaluateOptions",
    "TurnOptions",
    "accept_options",
    "list_option_names",
    "read_option_docs",
]

F = TypeVar("F", bound=Callable[..., Any])


class TurnOptions(TypedDict, total=False):
    """Options of one turn of a conversation. All are optional, and None is the same as leaving one out.

    Attributes:
        route: `"ollama/llama3.2"` pins a model, `"policy:NAME"` follows a policy (see `Session.policy`); by default the
            router chooses.
        profile: `fast`, `balanced` or `quality`; default `LLM_DEFAULT_PROFILE`.
        temperature: From 0 to 2; default the provider's.
        max_output_tokens: Longest answer. Text that reaches it is cut, with a warning; an answer that must be complete,
            such as JSON, is an error. Default the provider's; 512 for the local model.
        seed: Default none.
        stop: A string, or several, at which the answer ends.
        thinking: Whether a model that can reason before it answers should; False for as little as it allows, which is
            faster and leaves the output limit to the answer. Default the model's.
        logprobs: Whether the answer has `logprobs`: mean and minimum of the log-probabilities of its tokens.
        timeout_s: Longest time for one request, in seconds; default `LLM_DEFAULT_TIMEOUT_S`.
        images: PNG, JPEG or WebP to send with the last message: one or several, each a path, bytes or an `Attachment`,
            15 MB in total with `files`.
        files: PDF to send with the last message, as `images`.
        use_cache: Whether the content cache may answer.
        constraints: Requirements on the route, such as `LLMConstraints(local_only=True)`.
        stage: Label of the step in a pipeline; stored with the run.
        metadata: JSON values to store with the run.
        tools: Tools that the model may call; the answer then has `tool_calls`.
        tool_choice: `auto`, `none`, `required`, or one tool by name.
        response_format: JSON, optionally with a schema. `extract` sets it for you.
        epoch: Number of a repeat; other epochs have their own cache entries.
    """

    route: "str | Route | None"
    profile: "Literal['fast', 'balanced', 'quality'] | LLMProfile | None"
    temperature: float | None
    max_output_tokens: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    thinking: bool | None
    logprobs: Annotated[bool | None, {"default": False}]
    timeout_s: float | None
    images: "str | PathLike[str] | bytes | Attachment | Sequence[str | PathLike[str] | bytes | Attachment] | None"
    files: "str | PathLike[str] | bytes | Attachment | Sequence[str | PathLike[str] | bytes | Attachment] | None"
    use_cache: Annotated[bool | None, {"default": True}]
    constraints: "LLMConstraints | None"
    stage: str | None
    metadata: Mapping[str, Any] | None
    tools: "Sequence[ToolDefinition] | None"
    tool_choice: "Literal['auto', 'none', 'required'] | NamedToolChoice | None"
    response_format: "ResponseFormat | None"
    epoch: Annotated[int | None, {"default": 0}]


class CallOptions(TurnOptions, total=False):
    """Options of any single call.

    Attributes:
        system: System message, sent before the prompt.
        pipeline_run_id: Groups runs, for `runs(pipeline_run_id=...)`.
    """

    system: str | None
    pipeline_run_id: str | None


class ChatOptions(CallOptions, total=False):
    """Options of `chat`.

    Attributes:
        idempotency_key: Names the call: one with the same key is sent only once.
    """

    idempotency_key: str | None


class ReadingOptions(TypedDict, total=False):
    """Options of typed extraction.

    Attributes:
        instructions: Replaces the sentence in front of the text.
        examples: Pairs of a text and its value: an instance, or data that validates to one.
        reasks: How often to ask the model again, with its validation errors.
    """

    instructions: str | None
    examples: Sequence[tuple[str, Any]] | None
    reasks: Annotated[int | None, {"default": 1}]


class ExtractOptions(ReadingOptions, ChatOptions, total=False):
    """Options of `extract`."""


class MapOptions(ReadingOptions, CallOptions, total=False):
    """Options of `map`.

    Attributes:
        template: Builds the text of a row from its columns, for example `"{title}: {body}"`.
        name: Makes the map resumable, by any process and without the content cache: rows answered under this name are
            not asked again. A changed prompt, type, row or parameter is asked again under the same name.
        concurrency: Most rows in progress at once; default `LLM_CONCURRENCY_LIMIT`.
        progress: Whether to show a progress bar: a widget in Jupyter, a line on stderr elsewhere.
        show_answers: Whether the latest answers are shown below the bar while it runs, failures first, redacted: in a
            notebook or a terminal, nowhere else. Default `LLM_SHOW_ANSWERS`.
        workers: Where rows are asked about: a number of processes on this machine, a `concurrent.futures.Executor` (or
            `(executor, jobs)`), a Dask `Client`, `"dask://host:8786"` or `"dask-local:4"`; default this process alone.
            `concurrency` then applies to each worker.
    """

    template: str | None
    name: str | None
    concurrency: int | None
    progress: Annotated[bool | None, {"default": True}]
    show_answers: bool | None
    workers: Any


class SharedEvaluateOptions(EvaluateOptions, total=False):
    """Options of `Session.evaluate`.

    Attributes:
        workers: Who calls the samples: a number of processes on this machine, a `concurrent.futures.Executor` (or
            `(executor, jobs)`), a Dask `Client`, `"dask://host:8786"` or `"dask-local:4"`; default this process alone.
            `concurrency` then applies to each worker. See `docs/many-machines.md`.
    """

    workers: Any


class ConversationOptions(TurnOptions, total=False):
    """Options of `conversation`: those of its turns, and two of its own.

    Attributes:
        system: System message.
        id: Reopens a stored conversation: its system message and turns come back, its other options do not.
    """

    system: str | None
    id: str | None


class ModelOptions(TypedDict, total=False):
    """Options of `model`.

    Attributes:
        constraints: Requirements on the route.
        parameters: Generation parameters: temperature, seed and other fields of `LLMRequest`.
        idempotency_key: Names the agent's run; the number of each request is appended.
        epoch: Number of a repeat; other epochs have their own cache entries.
        use_cache: Whether the content cache may answer.
        settings: Model settings of Pydantic AI.
        pipeline_run_id: Groups runs, for `runs(pipeline_run_id=...)`.
        stage: Label of the step in a pipeline; stored with the run.
    """

    constraints: "LLMConstraints | None"
    parameters: Mapping[str, Any] | None
    idempotency_key: str | None
    epoch: Annotated[int | None, {"default": 0}]
    use_cache: Annotated[bool | None, {"default": True}]
    settings: "ModelSettings | None"
    pipeline_run_id: str | None
    stage: str | None


def list_option_names(options: Any) -> frozenset[str]:
    """Return the names that a class of options declares, inherited ones included."""
    return frozenset(options.__annotations__)


def accept_options(options: Any) -> Callable[[F], F]:
    """Write the options of a class into the signature and docstring of a function that takes `**options`.

    A notebook then completes their names, and Shift+Tab shows types, defaults and documentation. Calling the function
    stays as it is.
    """

    def describe(function: F) -> F:
        function.__signature__ = _derive_signature(function, options)  # type: ignore[attr-defined]
        if function.__doc__ is not None:  # python -OO strips docstrings
            function.__doc__ = _derive_docstring(function.__doc__, options)
        return function

    return describe


class _TypeText(str):
    """A type as it is written, without quotes in a signature."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _derive_signature(function: Callable[..., Any], options: Any) -> inspect.Signature:
    signature = inspect.signature(function)
    parameters = [
        each.replace(annotation=_TypeText(each.annotation)) if isinstance(each.annotation, str) else each
        for each in signature.parameters.values()
        if each.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    for name, annotation in options.__annotations__.items():
        type_, default = _read_annotation(annotation)
        parameters.append(
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=_TypeText(type_))
        )
    return signature.replace(parameters=parameters, return_annotation=_TypeText(signature.return_annotation))


def _read_annotation(annotation: Any) -> tuple[str, Any]:
    """Return the type as text, and the default."""
    default = None
    if hasattr(annotation, "__metadata__"):
        annotation, metadata = get_args(annotation)
        default = metadata["default"]
    if isinstance(annotation, ForwardRef):
        return annotation.__forward_arg__, default
    return re.sub(r"\b(collections\.abc|typing)\.", "", inspect.formatannotation(annotation)), default


_ENTRY = re.compile(r"^    (\w+): ", re.MULTILINE)


def read_option_docs(options: Any) -> dict[str, str]:
    """Return the documentation of a class's options by name: the entries under "Attributes:", inherited ones first."""
    docs: dict[str, str] = {}
    # A TypedDict does not know its bases, so every class that can be one is read.
    for declaring in (TurnOptions, CallOptions, ChatOptions, ReadingOptions, EvaluateOptions, options):
        _, _, entries = inspect.cleandoc(declaring.__doc__ or "").partition("Attributes:\n")
        pieces = _ENTRY.split(entries)
        docs |= dict(zip(pieces[1::2], map(str.rstrip, pieces[2::2]), strict=True))
    return {name: docs[name] for name in options.__annotations__}


_SECTION_AFTER = re.compile(r"^(Returns|Raises|Examples?):", re.MULTILINE)


def _derive_docstring(docstring: str, options: Any) -> str:
    listed = "\n".join(f"    {name}: {entry}" for name, entry in read_option_docs(options).items())
    text = inspect.cleandoc(docstring)
    place = _SECTION_AFTER.search(text)
    at = len(text) if place is None else place.start()
    return f"{text[:at].rstrip()}\n\nKeyword Args:\n{listed}\n\n{text[at:]}".rstrip() + "\n"
