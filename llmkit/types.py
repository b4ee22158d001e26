"""The values that travel through llmkit: frozen, validated when built, equal by content.

Nothing here does I/O or imports another module of the package, except attachments and the escaping of foreign text
for HTML and terminals.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar, cast
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    model_validator,
)

from llmkit.attachment import MAX_ATTACHED_BYTES, Attachment
from llmkit.display.html import render_card, render_table
from llmkit.display.terminal_text import escape_controls

__all__ = [
    "WARM_UP_STAGE",
    "Attachment",
    "Attempt",
    "AttemptStatus",
    "FinishReason",
    "LLMConstraints",
    "LLMProfile",
    "LLMProvider",
    "LLMRequest",
    "LLMResponse",
    "Logprobs",
    "Message",
    "NamedToolChoice",
    "PlanEntry",
    "ProviderCaps",
    "RequestContext",
    "ResponseFormat",
    "Route",
    "RoutePlan",
    "RunStatus",
    "ServedFrom",
    "TokenUsage",
    "ToolCall",
    "ToolDefinition",
    "Value",
    "copy_with",
    "utc_now",
]

MAX_KEY_LENGTH = 255
# Longest part of an answer in its `repr`, in characters.
REPR_CHARS = 60
RESERVED_METADATA_KEYS = ("workspace_id", "pipeline_run_id", "stage")
# The stage of calls that load a model and whose answers are discarded.
WARM_UP_STAGE = "warm_up"

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "unknown"]
NAME_PATTERN = r"^\S(.*\S)?$"
# Short enough for every column and safe in a URL, a file name and a metric.
ENDPOINT_NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}"
Name = Annotated[str, Field(min_length=1, max_length=MAX_KEY_LENGTH, pattern=NAME_PATTERN)]


def utc_now() -> datetime:
    """Return the current time, aware, in UTC."""
    return datetime.now(UTC)


class Value(BaseModel):
    """Base of every value: immutable, and an unknown field is an error instead of a silent loss."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


ValueT = TypeVar("ValueT", bound=Value)


def copy_with(value: ValueT, **changes: Any) -> ValueT:
    """Return a copy of a value with some fields replaced. The new values are not validated.

    The same as `model_copy(update=changes)`, which takes 6.2 us where this takes 1.3: 5 % of an answer from the store
    ("replay by idempotency key" in `benchmarks/service.py`).
    """
    copied = object.__new__(type(value))
    # The four slots of a pydantic model; a test compares with `model_copy`.
    object.__setattr__(copied, "__dict__", {**value.__dict__, **changes})
    object.__setattr__(copied, "__pydantic_fields_set__", value.__pydantic_fields_set__ | changes.keys())
    object.__setattr__(copied, "__pydantic_extra__", value.__pydantic_extra__)
    object.__setattr__(copied, "__pydantic_private__", value.__pydantic_private__)
    return copied


class LLMProvider(StrEnum):
    """The party that answers: the name of an endpoint.

    The members are built in. Any other name of the right form is a provider too, `LLMProvider("lab")`: whether an
    endpoint has that name depends on the settings, and stored runs outlive the endpoints that they name. Iterating
    lists the members only.
    """

    OLLAMA = "ollama"
    GEMINI = "gemini"
    LOCAL = "local"
    OPENAI = "openai"
    ANTHROPIC = "anthropic"

    @classmethod
    def _missing_(cls, value: object) -> LLMProvider | None:
        if not isinstance(value, str) or re.fullmatch(ENDPOINT_NAME_PATTERN, value) is None:
            return None
        named = str.__new__(cls, value)
        named._name_ = value.upper()
        named._value_ = value
        # One object for each name, so that names can be compared with `is` and found without this method.
        return cast("LLMProvider", cls._value2member_map_.setdefault(value, named))


class LLMProfile(StrEnum):
    """Priority of a request; the router turns it into an order of providers."""

    FAST = "fast"
    BALANCED = "balanced"
    QUALITY = "quality"


class RunStatus(StrEnum):
    """State of one logical call in the store."""

    STARTED = "STARTED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


class AttemptStatus(StrEnum):
    """Outcome of one request to a provider. A cancelled one may have been billed."""

    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class ServedFrom(StrEnum):
    """Source of an answer; only `PROVIDER` costs anything."""

    PROVIDER = "provider"
    CACHE = "cache"
    REPLAY = "replay"
    SHARED = "shared"


class Route(Value):
    """One model at one endpoint, written `endpoint/model` and split at the first slash."""

    provider: LLMProvider
    model: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return cls._split(value) if isinstance(value, str) else value

    @staticmethod
    def _split(text: str) -> dict[str, str]:
        provider, slash, model = text.lstrip().partition("/")
        if not slash or not model.strip():
            raise ValueError(f"a route is written provider/model, for example ollama/llama3.2; got {text!r}")
        if re.fullmatch(ENDPOINT_NAME_PATTERN, provider) is None:
            raise ValueError(
                f"{provider!r} in route {text!r} cannot be an endpoint: a name has up to 64 letters, digits and _ . -"
            )
        return {"provider": provider, "model": model}

    @classmethod
    def parse(cls, text: str) -> Route:
        """Read `provider/model`.

        Raises:
            ValidationError: The text has no slash or no model, or its first part cannot be the name of an endpoint. It
                is a `ValueError`.
        """
        return cls.model_validate(text)

    # Routes are keys of many tables, and pydantic's own hash and comparison take longer than the rest of a look-up.
    def __hash__(self) -> int:
        return hash(self.model)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Route):
            return NotImplemented
        return self.model == other.model and self.provider is other.provider

    def __str__(self) -> str:
        # A StrEnum is a string; its `value` is a property that takes half a microsecond.
        return "/".join((self.provider, self.model))

    def __repr__(self) -> str:
        return f"Route({str(self)!r})"


class ToolCall(Value):
    """A model's request to call a tool. `arguments` is JSON as the model wrote it; `id` is opaque and kept whole."""

    id: str
    name: str
    arguments: str = "{}"


class ToolDefinition(Value):
    """A tool that a model may call; `parameters` is a JSON schema of an object."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z_][A-Za-z0-9_.\-]*$")
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})


class NamedToolChoice(Value):
    """The model must call the tool of this name."""

    name: str


class Message(Value):
    """One turn of a conversation. A `tool` message answers the call whose id is `tool_call_id`.

    `attachments` are images and documents of a `user` message; they are sent in their order, before the text.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    attachments: tuple[Attachment, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    tool_name: str | None = None

    @model_validator(mode="after")
    def _tool_message_names_its_call(self) -> Message:
        if self.role == "tool" and not self.tool_call_id:
            raise ValueError("a tool message needs tool_call_id, the id of the call that it answers")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant message can carry tool_calls")
        if self.attachments and self.role != "user":
            raise ValueError("only a user message can carry attachments")
        return self


class ResponseFormat(Value):
    """The required form of the answer: any JSON object, or JSON that fits `json_schema`."""

    name: str = Field(default="output", pattern=r"^[A-Za-z_][A-Za-z0-9_\-]{0,63}$")
    json_schema: dict[str, Any] | None = None


class LLMConstraints(Value):
    """Requirements on candidate routes. What the request itself needs (tools, JSON) is derived from it.

    Attributes:
        local_only: Send nothing to other machines, even when every local route fails. An endpoint with `local = true`
            counts as this machine.
        allowed_providers: Only these; None allows all.
        allow_fallback: Whether a retryable failure may move on to the next candidate.
        min_context_tokens: Smallest acceptable context window, when it is known.
    """

    local_only: bool = False
    allowed_providers: frozenset[LLMProvider] | None = None
    allow_fallback: bool = True
    min_context_tokens: int | None = Field(default=None, gt=0)


class RequestContext(Value):
    """Workspace and labels of a web request, job or notebook: the preferred carrier of the workspace."""

    workspace_id: Name
    pipeline_run_id: Name | None = None
    stage: Name | None = None


def _messages(value: Any) -> Any:
    """Accept a string where a conversation is expected."""
    return (Message(role="user", content=value),) if isinstance(value, str) else value


def _stop(value: Any) -> Any:
    """Accept one string to stop at where several may stand, as providers do."""
    return (value,) if isinstance(value, str) else value


class LLMRequest(Value):
    """The request of one logical call.

    Attributes:
        messages: The conversation, oldest first; a string is one user message. Attachments may have 15 MB in all.
        route: A pinned `provider/model`; None lets the router choose.
        profile: Priority of the request; None takes the default of the settings.
        temperature: 0 to 2; None leaves it to the provider.
        max_output_tokens: Limit of the answer, hidden reasoning included where the provider counts it so.
        tools: What the model may call.
        tool_choice: `auto`, `none`, `required`, or one tool by name.
        response_format: The required JSON form; None for text.
        seed: For providers that take one.
        stop: Strings that end the answer, or one.
        thinking: Whether a model that can reason before it answers should; False for as little as the model allows.
            None leaves it to the model. Models without it ignore False.
        logprobs: Whether the answer comes with the log-probabilities of its tokens.
        timeout_s: Longest time one request to a provider may take, in seconds; None takes the default.
        idempotency_key: Unique name of this call within its workspace: the same key is never paid twice.
        epoch: Number of the repeat in an evaluation; different epochs never share a cached answer.
        use_cache: Whether a stored answer may be served and this one be stored.
        constraints: What a route must fulfil.
        metadata: Free JSON kept with the run. `workspace_id`, `pipeline_run_id` and `stage` are reserved.
    """

    messages: Annotated[tuple[Message, ...], BeforeValidator(_messages), Field(min_length=1)]
    route: Route | None = None
    profile: LLMProfile | None = None
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    max_output_tokens: int | None = Field(default=None, gt=0)
    tools: tuple[ToolDefinition, ...] = ()
    tool_choice: Literal["auto", "none", "required"] | NamedToolChoice | None = None
    response_format: ResponseFormat | None = None
    seed: int | None = None
    stop: Annotated[tuple[str, ...], BeforeValidator(_stop)] = ()
    thinking: bool | None = None
    logprobs: bool = False
    timeout_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    idempotency_key: Name | None = None
    epoch: int = Field(default=0, ge=0)
    use_cache: bool = True
    constraints: LLMConstraints = LLMConstraints()
    metadata: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _attachments_fit(self) -> LLMRequest:
        size = sum(len(attachment.data) for attachment in self.attachments)
        if size > MAX_ATTACHED_BYTES:
            raise ValueError(
                f"the attachments of all messages have {size / 1e6:.1f} MB, and may have "
                f"{MAX_ATTACHED_BYTES / 1e6:.0f} MB; scale them down, or ask about fewer at once"
            )
        return self

    @property
    def attachments(self) -> tuple[Attachment, ...]:
        """The attachments of all messages."""
        found: list[Attachment] = []
        for message in self.messages:  # asked for on every call, and nearly always for nothing
            if message.attachments:
                found += message.attachments
        return tuple(found)

    def __repr__(self) -> str:
        # A prompt may hold personal data and a repr ends up in logs.
        where = f"route={str(self.route)!r}" if self.route else f"profile={self.profile and str(self.profile)!r}"
        return f"LLMRequest({len(self.messages)} messages, {where}, idempotency_key={self.idempotency_key!r})"

    __str__ = __repr__


class TokenUsage(Value):
    """Tokens of one request or of several added up; unknown is None, never 0.

    `input_tokens` includes cached ones, `output_tokens` includes hidden reasoning. `estimated` marks counts that
    the provider did not send.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_input_tokens: int | None = None
    reasoning_tokens: int | None = None
    estimated: bool = False

    @classmethod
    def total(cls, usages: Iterable[TokenUsage]) -> TokenUsage:
        """Return the sum. A count that is unknown in one part is unknown in the sum."""
        parts = tuple(usages)
        if len(parts) == 1:
            return parts[0]
        counts = {name: _sum(getattr(part, name) for part in parts) for name in cls.model_fields if name != "estimated"}
        return cls(estimated=any(part.estimated for part in parts), **counts)


def _sum(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if not known or None in known else sum(count for count in known if count is not None)


# No request has more. Larger counts are server errors, and some do not fit into a database column.
MOST_TOKENS = 10**9


def drop_impossible_counts(usage: TokenUsage) -> TokenUsage:
    """Return the usage of one request with its impossible counts unknown."""
    counts = (
        usage.input_tokens,
        usage.output_tokens,
        usage.total_tokens,
        usage.cached_input_tokens,
        usage.reasoning_tokens,
    )
    for count in counts:
        if count is not None and not 0 <= count <= MOST_TOKENS:
            known = usage.model_dump(exclude={"estimated"}, exclude_none=True).items()
            return usage.model_copy(update={name: None for name, each in known if not 0 <= each <= MOST_TOKENS})
    return usage


class Attempt(Value):
    """One request that was really sent to a provider.

    `params_sha256` is a hash of the parameters as sent, `schema_sha256` of the output schema alone. `first_token_ms` is
    the time from sending to the first piece of a streamed answer; None for one that was not streamed. `host` is the
    name of the machine that sent it.
    """

    route: Route
    number: int = Field(ge=1)
    status: AttemptStatus
    started_at_utc: datetime
    latency_ms: float
    first_token_ms: float | None = None
    params_sha256: str | None = None
    schema_sha256: str | None = None
    # Of one request: the sum over an evaluation may be larger.
    usage: Annotated[TokenUsage, AfterValidator(drop_impossible_counts)] = TokenUsage()
    finish_reason: FinishReason | None = None
    response_model: str | None = None
    model_digest: str | None = None
    cost_usd: float | None = None
    status_code: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    host: str | None = None


class PlanEntry(Value):
    """One route that was considered.

    Attributes:
        reason: The rule that gave the route its place.
        excluded_because: The reason for its exclusion; None for a candidate.
        facts: Facts about the model and their sources, in words.
    """

    route: Route
    reason: str
    excluded_because: str | None = None
    facts: str = ""


class RoutePlan(Value):
    """The router's decision: every route considered, candidates first and in the order in which they are tried."""

    policy: str
    entries: tuple[PlanEntry, ...]

    @cached_property
    def candidates(self) -> tuple[Route, ...]:
        """The routes that will be tried, in order."""
        return tuple(entry.route for entry in self.entries if entry.excluded_because is None)

    @cached_property
    def as_json(self) -> Mapping[str, Any]:
        """JSON-serializable form: `policy`, `candidates` with route and reason, `excluded` with route and why.

        Do not change it: all calls with this plan share it.
        """
        return {
            "policy": self.policy,
            "candidates": [
                {"route": str(entry.route), "reason": entry.reason}
                for entry in self.entries
                if entry.excluded_because is None
            ],
            "excluded": [
                {"route": str(entry.route), "because": entry.excluded_because}
                for entry in self.entries
                if entry.excluded_because is not None
            ],
        }

    def __str__(self) -> str:
        rows = [
            (
                f"{number}. {entry.route}: {entry.reason}"
                if entry.excluded_because is None
                else f"-  {entry.route}: excluded, {entry.excluded_because}"
            )
            + (f" [{entry.facts}]" if entry.facts else "")
            for number, entry in enumerate(self.entries, start=1)
        ]
        return "\n".join([f"policy {self.policy}", *rows])

    def __repr__(self) -> str:
        candidates = ", ".join(map(str, self.candidates)) or "no candidates"
        return f"RoutePlan({candidates}; {len(self.entries) - len(self.candidates)} excluded)"

    def _repr_html_(self) -> str:
        places = {route: number for number, route in enumerate(self.candidates, start=1)}
        rows = [
            (places.get(entry.route, ""), str(entry.route), entry.reason, entry.excluded_because or "")
            for entry in self.entries
        ]
        return render_table(("", "route", "why", "excluded because"), rows, caption=f"policy {self.policy}")


class ProviderCaps(Value):
    """Capabilities of a provider, and the profiles that prefer it.

    Attributes:
        supports_tools: Takes tool definitions and answers with tool calls.
        supports_json: Can be restricted to JSON answers.
        supports_json_schema: Constrains its output to a schema while it decodes.
        max_context_tokens: Size of the context window; None when it depends on the model.
        preferred_for_profiles: Profiles that put this provider first.
        is_local: Answers on this machine or one the user runs; `local_only` also checks the address.
        supports_images: Reads images.
        supports_files: Reads documents (PDF).
        supports_seed: Takes a seed.
        supports_logprobs: Sends the log-probabilities of the answer's tokens when they are requested.
        unenforced_schema_keywords: Parts of a schema that it accepts and does not enforce; `number.minimum` is
            the bound of a number that need not be whole.
    """

    supports_tools: bool
    supports_json: bool
    supports_json_schema: bool
    max_context_tokens: int | None
    preferred_for_profiles: frozenset[LLMProfile]
    is_local: bool
    supports_images: bool = False
    supports_files: bool = False
    supports_logprobs: bool = False
    supports_seed: bool = True
    unenforced_schema_keywords: frozenset[str] = frozenset()


class Logprobs(Value):
    """Natural logarithms of the probabilities that the model gave to the tokens of a text.

    Attributes:
        mean: Mean over the tokens; `exp(mean)` is the geometric mean of their probabilities.
        min: That of the least probable token.
        tokens: How many tokens they are of.
        fields: The same for each value in a JSON answer, by its dotted path, where tokens can be matched to values.
    """

    mean: float
    min: float
    tokens: int
    fields: dict[str, Logprobs] = Field(default_factory=dict)


class LLMResponse(Value):
    """An answer, with its cost, route and record.

    Attributes:
        text: What the model wrote; empty when it only called tools.
        run_id: Row of this call in `llm_runs`; None when runs are not persisted.
        route: The route that answered.
        requested_route: The route that was pinned, if one was.
        response_model: The model name that the provider reported.
        latency_ms: Wall time of the billed call with its retries and fallbacks, without the time it waited for our own
            limits, or for the reader of a stream. A stored answer keeps that of its origin.
        first_token_ms: The part of that before the first piece of a streamed answer; None if it was not streamed.
        served_from: `provider` was billed now; `cache`, `replay` and `shared` cost nothing.
        source_run_id: For an answer that cost nothing: the run that was billed for it.
        logprobs: Log-probabilities of the answer's tokens; None unless they were requested and sent.
        attempts: Every request that was sent for this call, in order.
        warnings: Facts that the caller should know and that the text does not show.
    """

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason = "unknown"
    usage: TokenUsage = TokenUsage()
    route: Route
    requested_route: Route | None = None
    response_model: str | None = None
    latency_ms: float = 0.0
    first_token_ms: float | None = None
    cost_usd: float | None = None
    run_id: UUID | None = None
    served_from: ServedFrom = ServedFrom.PROVIDER
    source_run_id: UUID | None = None
    logprobs: Logprobs | None = None
    attempts: tuple[Attempt, ...] = ()
    plan: RoutePlan | None = None
    warnings: tuple[str, ...] = ()

    def as_stored(self) -> str:
        """Return the answer as JSON, without what belongs to the call that got it: attempts, plan and pinned route."""
        return self.model_dump_json(exclude={"attempts", "plan", "requested_route"}, exclude_defaults=True)

    @property
    def billed(self) -> bool:
        """Whether this call sent at least one request to a provider."""
        return self.served_from is ServedFrom.PROVIDER

    @property
    def facts(self) -> tuple[str, ...]:
        """Describe the answer in words: route, tokens, milliseconds, and whether it was billed."""
        counts = (
            "?" if count is None else f"{count:,}" for count in (self.usage.input_tokens, self.usage.output_tokens)
        )
        served = "billed" if self.billed else f"from {self.served_from}, not billed"
        if self.billed and self.route.provider is LLMProvider.LOCAL:
            served = "free, on this machine"
        first_token = () if self.first_token_ms is None else (f"first token after {self.first_token_ms:,.0f} ms",)
        latency = f"{self.latency_ms:,.0f} ms"
        return (str(self.route), "{} + {} tokens".format(*counts), *first_token, latency, served)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        start = self.text if len(self.text) <= REPR_CHARS else f"{self.text[:REPR_CHARS]}…"
        return f"LLMResponse({start!r}, {', '.join(self.facts)})"

    def _repr_pretty_(self, printer: Any, _cycle: bool) -> None:
        """Print the text in IPython."""
        lines = [self.text, *(f"warning: {each}" for each in self.warnings), f"[{', '.join(self.facts)}]"]
        printer.text(escape_controls("\n".join(lines)))

    def _repr_html_(self) -> str:
        calls = "".join(f"\n{call.name}({call.arguments})" for call in self.tool_calls)
        return render_card(f"{self.text}{calls}".strip(), self.facts, self.warnings)
