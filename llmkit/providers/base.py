"""Interface of a provider module, and the translation that all providers share. Pure: no I/O.

A *kind* is one module that speaks one protocol. Its `KIND` makes a `ProviderSpec` for each endpoint of that kind: all
other code knows endpoints only by their specs.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

from llmkit.endpoints.tables import EndpointSettings, is_loopback
from llmkit.ports import Endpoint, StreamPiece
from llmkit.providers.checks import Check, CheckState, ServerState
from llmkit.redaction import redact
from llmkit.settings import LLMSettings, RouterPolicy
from llmkit.types import (
    MOST_TOKENS,
    Attachment,
    LLMProvider,
    LLMRequest,
    Message,
    NamedToolChoice,
    ProviderCaps,
    ResponseFormat,
    Route,
)

__all__ = [
    "LLAMA_CPP_UNENFORCED",
    "CallArguments",
    "ProviderKind",
    "ProviderSpec",
    "ReadEndpoint",
    "ReplyFacts",
    "ReplyFolder",
    "StreamForm",
    "TokenLogprob",
    "answers_on_this_machine",
    "as_mapping",
    "build_openai_arguments",
    "check_key",
    "find_key_problem",
    "find_url_passwords",
    "list_capabilities",
    "make_hints",
    "make_policy_ranks",
    "read_error",
    "read_index",
    "read_token_count",
    "read_token_counts",
    "read_token_logprobs",
    "remember_last",
    "strip_credentials",
    "update_known",
]

# The grammars of llama.cpp count digits, so they can bound only integers.
LLAMA_CPP_UNENFORCED = frozenset({"number.minimum", "number.maximum"})


@dataclass(frozen=True, slots=True)
class CallArguments:
    """One request in LiteLLM's terms.

    Attributes:
        kwargs: Keyword arguments of `litellm.acompletion`. Never shown: they contain the prompt and perhaps a key.
        address: Where the request goes, without credentials; the transport refuses any other address.
        context_tokens: The context window that the request asks for, in tokens; None when it sets none.
        query: Query of the address, which the transport appends to the path.
        send_key: Whether the provider gets a key. LiteLLM would otherwise send one that it finds in the environment.
        price_entry: An entry for LiteLLM's price list, so that it does not query the server about the model.
        model_digest: Identifies the model's weights when known; not sent.
        model_context_tokens: The model's own context window, in tokens; None when it is not known.
    """

    kwargs: Mapping[str, Any] = field(repr=False)
    address: str
    context_tokens: int | None = None
    query: str = ""
    send_key: bool = True
    price_entry: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    model_digest: str | None = None
    model_context_tokens: int | None = None

    def own_kwargs(self) -> dict[str, Any]:
        """Return a copy of the arguments that the callee may change: LiteLLM rewrites tool schemas in place."""
        copy: dict[str, Any] = _copy_containers(dict(self.kwargs))
        return copy


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return an object of JSON, or an empty one for anything else: a server may send anything."""
    return value if isinstance(value, Mapping) else {}


def update_known(target: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Take over values of a later event; one that is null replaces none."""
    # A loop, as this runs for every event of a stream: with `update` and a generator folding one took 8.0 us, not 4.7.
    for name, value in given.items():
        if value is not None or name not in target:
            target[name] = value


def read_error(value: Any) -> str | None:
    """Return the message of an error field, which is a string, or an object with one."""
    message = value.get("message") if isinstance(value, Mapping) else value
    return str(message) if message else None


# More answers than this are in no reply.
MOST_ANSWERS = 1000


def read_token_count(value: Any) -> int | None:
    """Return a count of tokens, which some proxies write as 12.0; None for anything that cannot be one."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None


def read_index(value: Any) -> int:
    """Return the index of an answer in a reply; 0 for anything that is no index: whole replies are read so too."""
    return value if type(value) is int and 0 <= value <= MOST_ANSWERS else 0


def read_token_counts(usage: Any) -> dict[str, Any]:
    """Return the counts in a usage, and in the details inside it, that are counts."""
    if not isinstance(usage, Mapping):
        return {}
    found = {
        name: read_token_counts(value) if name.endswith("_details") else read_token_count(value)
        for name, value in usage.items()
    }
    return {name: count for name, count in found.items() if count not in (None, {})}


def _copy_containers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy_containers(inner) for key, inner in value.items()}
    return [_copy_containers(inner) for inner in value] if isinstance(value, list) else value


class TokenLogprob(NamedTuple):
    """One token of an answer: its bytes, and the natural logarithm of its probability."""

    text: bytes
    logprob: float


# Rounding puts a certain token a little above 0.
_MOST_LOGPROB = 1e-3


def read_token_logprobs(
    entries: Any, *, text_field: str = "token", logprob_field: str = "logprob"
) -> tuple[TokenLogprob, ...]:
    """Read a server's list of tokens; () when there is none, or when one of them has no possible log-probability.

    Args:
        entries: Objects with the text and the log-probability of each token. Their field `bytes` is used where it is a
            list of numbers: a token may be a part of a character.
        text_field: The name of the text.
        logprob_field: The name of the log-probability.
    """
    tokens = []
    for entry in entries if isinstance(entries, list) else ():
        known: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
        text, logprob, raw = known.get(text_field), known.get(logprob_field), known.get("bytes")
        if not isinstance(text, str) or not isinstance(logprob, int | float) or isinstance(logprob, bool):
            return ()
        if not math.isfinite(logprob) or logprob > _MOST_LOGPROB:
            return ()
        token = text.encode(errors="replace")
        if isinstance(raw, list) and raw and all(type(each) is int and 0 <= each < 256 for each in raw):
            token = bytes(raw)
        tokens.append(TokenLogprob(token, min(float(logprob), 0.0)))
    return tuple(tokens)


@dataclass(frozen=True, slots=True)
class ReplyFacts:
    """Facts in a provider's reply that LiteLLM discards.

    Attributes:
        counts_reported: Whether the provider reported the token counts.
        blocked: Why a filter of the provider blocked prompt or answer.
        ended_by: The provider's own reason for the end of the answer, where LiteLLM takes it for something else.
        unreadable: Why an answer without content is unusable, worded to follow "answered without content:".
        prompt_tokens: Tokens of the prompt that the provider really read.
        error: The provider's error message; some come with status 200.
        model_version: The version of the model that answered, where the provider names one.
        token_logprobs: The tokens that the model wrote, with their log-probabilities; () when they were not sent.
    """

    counts_reported: bool = True
    blocked: str | None = None
    ended_by: str | None = None
    unreadable: str | None = None
    prompt_tokens: int | None = None
    error: str | None = None
    model_version: str | None = None
    token_logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)


class ReplyFolder(Protocol):
    """Puts the events of one streamed answer together again.

    A server may send anything: an event of an unknown shape adds nothing, and nothing raises. An event that reports an
    error ends the answer.
    """

    def add(self, event: Mapping[str, Any]) -> Sequence[StreamPiece]:
        """Take the next event, and return the pieces of the answer that it brings."""
        ...

    @property
    def is_complete(self) -> bool:
        """Whether the answer has been seen to end: a connection that closes before has broken it."""
        ...

    def fold(self) -> Mapping[str, Any]:
        """Return the reply to the same request without streaming, as far as it has arrived.

        All code that reads replies reads this one: what an event said of tokens, of the end or of an error is in it.
        An error is in `error`, as a string or an object; where that has an HTTP status, it is its `code`.
        """
        ...


@dataclass(frozen=True, slots=True)
class StreamForm:
    """How a kind sends an answer while it is being written.

    Streaming changes how a request travels and not what it asks: the transport makes the streamed request out of the
    plain one, and a plain reply out of the events.

    Attributes:
        framing: How events are separated: server-sent events, or one JSON object in each line.
        ask: Makes address and body of the streamed request out of those of the plain one.
        open_folder: Makes the folder of one answer.
        simpler: The form for a server that refuses this one; None where it can only be asked for a plain answer.
    """

    framing: Literal["sse", "ndjson"]
    ask: Callable[[str, bytes], tuple[str, bytes]]
    open_folder: Callable[[], ReplyFolder]
    simpler: StreamForm | None = None


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """Everything that differs between endpoints, as data and pure functions.

    Attributes:
        provider: Name of the endpoint: first part of its routes, and key of everything that is kept for each endpoint.
        kind: Name of the kind that made it.
        label: The name in messages.
        default_model: Model of unpinned calls.
        context_tokens: Context window of a model, in tokens; None when it is not known beforehand.
        address: Where it is called; None for a server that llmkit runs on this machine.
        configuration_problem: What is missing and how to get it; None when it can be called.
        check: Checks of the set-up for `llmkit doctor`: of the settings, and of the state that the server reported.
        model_problem: Why the provider cannot have this model, and the remedy; None when only the provider can tell.
        call_arguments: The request for LiteLLM. `endpoint` is given for a server that llmkit runs.
        reply_facts: Reads the provider's JSON.
        sent_schema: The output schema in the JSON that was really sent; None when there is none.
        mend_reply: Adapts the provider's JSON to what LiteLLM can read.
        resize_window: Asks for a context window with room for this many tokens, at most the model's own.
        secrets: Keys that must never be shown.
        telemetry_name: Its name in the OpenTelemetry GenAI conventions; None when that is the provider's own name.
        policy_ranks: Its place in the order of each router policy, smallest first.
        is_last_resort: Whether it is worth a call only when every other provider is out.
        litellm_prefix: The prefix of a model's name by which LiteLLM selects its translation.
        schema_fix: The command or setting that replaces a server which ignores schemas.
        hints: What to do, by situation: `set_up` (an item of the list of all ways to get a model), `start`, `key`,
            `permission`, `model`, `limit`, `address`, `cut` (an answer, at its limit), `path` (of the address),
            `logprobs` (that were not sent).
        tools_depend_on_model: Whether a pinned model is worth asking although `supports_tools` is not declared.
        calls_tools_beside_json: Whether a model can call tools in a request that also asks for JSON.
        images_depend_on_model: The same for `supports_images`.
        logprobs_depend_on_model: The same for `supports_logprobs`.
        unread_media_types: Kinds of images that no model there can be sent.
        estimates_missing_counts: Whether LiteLLM counts tokens itself when the provider does not.
        writes_reasoning_tags: Whether answers may contain a model's reasoning, up to a `</think>`.
        retries_timeouts: Whether a request that took too long is worth another try in the same call.
        reports_cost: Whether LiteLLM's price for an answer is reliable.
        parallel: Most concurrent requests, in addition to the overall limit; None for no separate limit.
        runs_elsewhere: Whether a third party runs this model and charges for it, whatever the address.
        per_minute: Most requests and most tokens in any minute; None for no limit.
        answers_count: Whether the tokens of answers count for `per_minute`, beside those of prompts.
        quota_zone: The time zone at whose midnight a daily quota resets.
        is_declared_local: Whether the user declares that requests stay on machines of their own, whatever the address.
        server_address: Where the server of this kind reports its state, credentials included; None where it cannot.
        stream: Loads how it streams; None where it does not, so that an answer comes as one piece.
    """

    provider: LLMProvider
    kind: str
    label: str
    caps: ProviderCaps
    default_model: Callable[[LLMSettings], str]
    context_tokens: Callable[[LLMSettings, str], int | None]
    address: Callable[[LLMSettings], str | None]
    configuration_problem: Callable[[LLMSettings], str | None]
    check: Callable[[LLMSettings, ServerState | None], Iterable[Check]]
    call_arguments: Callable[[LLMSettings, Route, LLMRequest, Endpoint | None], CallArguments]
    reply_facts: Callable[[Mapping[str, Any]], ReplyFacts]
    sent_schema: Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
    hints: Mapping[str, str]
    litellm_prefix: str
    policy_ranks: Mapping[RouterPolicy, int]
    schema_fix: str
    is_last_resort: bool = False
    telemetry_name: str | None = None
    model_problem: Callable[[LLMSettings, str], str | None] = lambda _settings, _model: None
    mend_reply: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda reply: reply
    resize_window: Callable[[CallArguments, int], CallArguments] = lambda arguments, _tokens: arguments
    secrets: Callable[[LLMSettings], tuple[str, ...]] = lambda _settings: ()
    tools_depend_on_model: bool = False
    calls_tools_beside_json: Callable[[str], bool] = lambda _model: False
    images_depend_on_model: bool = False
    logprobs_depend_on_model: bool = False
    unread_media_types: frozenset[str] = frozenset()
    estimates_missing_counts: bool = False
    writes_reasoning_tags: bool = False
    retries_timeouts: bool = True
    reports_cost: bool = False
    parallel: Callable[[LLMSettings], int | None] = lambda _settings: None
    runs_elsewhere: Callable[[str], bool] = lambda _model: False
    per_minute: Callable[[LLMSettings], tuple[int | None, int | None]] = lambda _settings: (None, None)
    answers_count: bool = True
    quota_zone: str = "UTC"
    is_declared_local: bool = False
    server_address: Callable[[LLMSettings], str] | None = None
    stream: Callable[[], StreamForm] | None = None


@dataclass(frozen=True, slots=True)
class ProviderKind:
    """One protocol, and how an endpoint that speaks it is called. Other packages add kinds: see `llmkit.providers`.

    Attributes:
        name: What `kind` says in the table of an endpoint.
        make_spec: Makes the spec of one endpoint.
        find_address_problem: Why an address cannot be one of this kind, and the remedy; None when it can. It is given
            an empty string for an endpoint without one.
    """

    name: str
    make_spec: Callable[[EndpointSettings], ProviderSpec]
    find_address_problem: Callable[[str], str | None] = lambda _address: None


ReadEndpoint = Callable[[LLMSettings], EndpointSettings]


def remember_last(read: ReadEndpoint) -> ReadEndpoint:
    """Return the function with its last result kept: settings are frozen, and a process has few of them."""
    last: tuple[LLMSettings, EndpointSettings] | None = None

    def read_or_recall(settings: LLMSettings) -> EndpointSettings:
        nonlocal last
        known = last
        if known is None or known[0] is not settings:
            known = last = settings, read(settings)
        return known[1]

    return read_or_recall


def make_policy_ranks(*, is_local: bool) -> Mapping[RouterPolicy, int]:
    """Return the place of an endpoint of the user's in each policy: beside Ollama's, or beside Gemini's."""
    if is_local:
        return {"by_profile": 0, "prefer_local": 0, "prefer_cloud": 1, "cheapest_known": 0}
    return {"by_profile": 1, "prefer_local": 2, "prefer_cloud": 0, "cheapest_known": 1}


def make_hints(endpoint: EndpointSettings, **kind: str) -> Mapping[str, str]:
    """Return what to do about an endpoint of the user's, by situation: what its kind says, and where it is described.

    Args:
        endpoint: The endpoint.
        **kind: Hints that the kind words itself.
    """
    place = f"[endpoints.{endpoint.name}] of {endpoint.source}"
    key = f"check the variable {endpoint.api_key_env}" if endpoint.api_key_env else f"set api_key_env in {place}"
    return {
        "set_up": f"start the server of {endpoint.name}, or correct {place}",
        "start": f"start its server, or correct api_base in {place}",
        "key": key,
        "permission": f"{key}, and what its owner may do",
        "model": f"check the name, or set model in {place} to one that it has",
        "limit": f"set requests_per_minute in {place}, or try again later",
        "address": f"set api_base in {place}",
        "cut": "raise max_output_tokens, or ask for less",
        "path": f"set api_base in {place}",
        "logprobs": "use a model that has them",
        **kind,
    }


def list_capabilities(spec: ProviderSpec) -> list[str]:
    """Return what the endpoint's models can do, as its kind declares it, in words."""
    caps = spec.caps
    found = {
        "tools": caps.supports_tools,
        "tools by model": spec.tools_depend_on_model and not caps.supports_tools,
        "JSON": caps.supports_json,
        "schema": caps.supports_json_schema,
        "images": caps.supports_images,
        "images by model": spec.images_depend_on_model and not caps.supports_images,
        "documents": caps.supports_files,
        "log-probabilities": caps.supports_logprobs,
        "log-probabilities by model": spec.logprobs_depend_on_model and not caps.supports_logprobs,
        "local": caps.is_local,
    }
    return [name for name, is_there in found.items() if is_there]


def find_key_problem(endpoint: EndpointSettings) -> str | None:
    """Return that the variable with the key is empty, and where it is named."""
    if not endpoint.api_key_env or endpoint.api_key:
        return None
    return f"{endpoint.place}, api_key_env: the variable {endpoint.api_key_env} is empty; set it"


def answers_on_this_machine(spec: ProviderSpec, settings: LLMSettings) -> bool:
    """Return whether a request to this endpoint stays on this machine, or on machines that the user declares as own."""
    address = spec.address(settings)
    return spec.is_declared_local or (spec.caps.is_local and (address is None or is_loopback(address)))


def check_key(endpoint: EndpointSettings, address: str, problem: str | None, fix: str) -> Iterator[Check]:
    """Yield the doctor's check of an endpoint that is not called to try it: its key, and where it would be called."""
    if problem is not None:
        yield Check(endpoint.name, CheckState.ABSENT, problem, fix)
        return
    key, where = "key is set" if endpoint.api_key else "no key", redact(strip_credentials(address))
    yield Check(
        endpoint.name, CheckState.OK, f"{key} (not tried) at {where}", route=f"{endpoint.name}/{endpoint.model}"
    )


# Cached: there are few addresses, and every call needs one.
@lru_cache(maxsize=256)
def strip_credentials(url: str) -> str:
    """Return the URL as it may be shown: without user and password, and without a slash at its end."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")


def find_url_passwords(url: str) -> tuple[str, ...]:
    """Return the password in a URL as it is written and decoded, since a server may quote either; () without one."""
    password = urlsplit(url).password
    return tuple(dict.fromkeys((password, unquote(password)))) if password else ()


def build_openai_arguments(request: LLMRequest) -> dict[str, Any]:
    """Return the part of the arguments that is the same for every provider.

    Options that the request does not set are left out.
    """
    arguments: dict[str, Any] = {
        "messages": [_build_message(message) for message in request.messages],
        "temperature": request.temperature,
        "max_tokens": request.max_output_tokens,
        "seed": request.seed,
        "stop": list(request.stop) or None,
        "tools": _build_tools(request) or None,
        "tool_choice": _build_tool_choice(request),
        "response_format": _build_response_format(request.response_format),
    }
    return {name: value for name, value in arguments.items() if value is not None}


def _build_message(message: Message) -> dict[str, Any]:
    # `content` is always there: LiteLLM's Ollama translation fails on a message without it.
    shaped: dict[str, Any] = {"role": message.role, "content": _build_content(message)}
    if message.tool_calls:
        shaped["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.role == "tool":
        shaped["tool_call_id"] = message.tool_call_id
        if message.tool_name is not None:
            shaped["name"] = message.tool_name
    return shaped


def _build_content(message: Message) -> str | list[dict[str, Any]]:
    if not message.attachments:
        return message.content
    parts = [_build_part(attachment) for attachment in message.attachments]
    # Google's servers refuse an empty text part.
    return [*parts, {"type": "text", "text": message.content}] if message.content else parts


def _build_part(attachment: Attachment) -> dict[str, Any]:
    url = f"data:{attachment.media_type};base64,{base64.b64encode(attachment.data).decode()}"
    if attachment.is_image:
        return {"type": "image_url", "image_url": {"url": url}}
    return {"type": "file", "file": {"file_data": url}}


def _build_tools(request: LLMRequest) -> Sequence[Mapping[str, Any]]:
    return [
        {
            "type": "function",
            "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters},
        }
        for tool in request.tools
    ]


def _build_tool_choice(request: LLMRequest) -> str | Mapping[str, Any] | None:
    if isinstance(request.tool_choice, NamedToolChoice):
        return {"type": "function", "function": {"name": request.tool_choice.name}}
    return request.tool_choice


def _build_response_format(wanted: ResponseFormat | None) -> Mapping[str, Any] | None:
    if wanted is None:
        return None
    if wanted.json_schema is None:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": wanted.name, "schema": wanted.json_schema}}
