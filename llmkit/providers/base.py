"""Interface of a provider module, and the translation that all providers share. Pure: no I/O, no state."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from llmkit.ports import Endpoint
from llmkit.providers.checks import Check, ServerState
from llmkit.settings import LLMSettings, RouterPolicy, is_loopback
from llmkit.types import (
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
    "ProviderSpec",
    "ReplyFacts",
    "answers_on_this_machine",
    "build_openai_arguments",
    "find_url_passwords",
    "read_error",
    "strip_credentials",
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
        send_key: Whether the provider gets a key. LiteLLM would otherwise send one that it finds in the environment.
        price_entry: An entry for LiteLLM's price list, so that it does not query the server about the model.
        model_digest: Identifies the model's weights when known; not sent.
        model_context_tokens: The model's own context window, in tokens; None when it is not known.
    """

    kwargs: Mapping[str, Any] = field(repr=False)
    address: str
    context_tokens: int | None = None
    send_key: bool = True
    price_entry: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: MappingProxyType({}))
    model_digest: str | None = None
    model_context_tokens: int | None = None

    def own_kwargs(self) -> dict[str, Any]:
        """Return a copy of the arguments that the callee may change: LiteLLM rewrites tool schemas in place."""
        copy: dict[str, Any] = _copy_containers(dict(self.kwargs))
        return copy


def read_error(value: Any) -> str | None:
    """Return the message of an error field, which is a string, or an object with one."""
    message = value.get("message") if isinstance(value, Mapping) else value
    return str(message) if message else None


def _copy_containers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy_containers(inner) for key, inner in value.items()}
    return [_copy_containers(inner) for inner in value] if isinstance(value, list) else value


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
    """

    counts_reported: bool = True
    blocked: str | None = None
    ended_by: str | None = None
    unreadable: str | None = None
    prompt_tokens: int | None = None
    error: str | None = None
    model_version: str | None = None


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """Everything that differs between providers, as data and pure functions.

    Attributes:
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
            `permission`, `model`, `limit`, `address`, `cut` (an answer, at its limit).
        tools_depend_on_model: Whether a pinned model is worth asking although `supports_tools` is not declared.
        calls_tools_beside_json: Whether a model can call tools in a request that also asks for JSON.
        images_depend_on_model: The same for `supports_images`.
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
    """

    provider: LLMProvider
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


def answers_on_this_machine(spec: ProviderSpec, settings: LLMSettings) -> bool:
    """Return whether a request to this provider stays on this machine: by what it is and by where it is called."""
    address = spec.address(settings)
    return spec.caps.is_local and (address is None or is_loopback(address))


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
