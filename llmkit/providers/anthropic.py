"""Messages: Anthropic, and the servers and gateways that speak its protocol."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from llmkit.endpoints.tables import EndpointSettings
from llmkit.providers.base import (
    CallArguments,
    ProviderKind,
    ProviderSpec,
    ReadEndpoint,
    ReplyFacts,
    StreamForm,
    as_mapping,
    build_openai_arguments,
    check_key,
    find_key_problem,
    find_url_passwords,
    make_hints,
    make_policy_ranks,
    read_error,
    read_token_count,
    remember_last,
    strip_credentials,
)
from llmkit.providers.checks import Check, ServerState
from llmkit.settings import LLMSettings
from llmkit.types import LLMProfile, LLMProvider, LLMRequest, ProviderCaps, Route

__all__ = ["KIND", "SPEC"]

LITELLM_PREFIX = "anthropic"
DEFAULT_API_BASE = "https://api.anthropic.com"

# The protocol requires a limit. LiteLLM's would be another one for each model; this is one that every model accepts.
DEFAULT_OUTPUT_TOKENS = 4096
# LiteLLM's name of the tool by which a model without structured outputs is made to answer in a shape.
SCHEMA_TOOL = "json_tool_call"
# The protocol has no mode for any JSON, and LiteLLM would drop the wish.
ASK_FOR_JSON = "Answer with one JSON object and nothing else."
# LiteLLM turns these into sentences of the description: structured outputs refuse them.
_DESCRIBED_KEYWORDS = frozenset({"number.minimum", "number.maximum", "minimum", "maximum", "minLength", "maxLength"})


def _get_base(endpoint: EndpointSettings) -> str:
    """Return the address without `/v1`, which LiteLLM appends."""
    return (endpoint.api_base or DEFAULT_API_BASE).partition("?")[0].rstrip("/").removesuffix("/v1")


def _build_call_arguments(endpoint: EndpointSettings, route: Route, request: LLMRequest) -> CallArguments:
    base = _get_base(endpoint)
    arguments = build_openai_arguments(request)
    # No seed exists here, and the planner keeps requests with one away.
    arguments.pop("seed", None)
    if not request.tools:
        arguments.pop("tool_choice", None)
    messages = arguments["messages"]
    if request.response_format is not None and request.response_format.json_schema is None:
        del arguments["response_format"]
        messages = [*messages, {"role": "system", "content": ASK_FOR_JSON}]
    arguments["messages"] = _order_messages(messages)
    own: dict[str, Any] = {
        "model": f"{LITELLM_PREFIX}/{route.model}",
        "api_base": base,
        # Without one LiteLLM sends ANTHROPIC_API_KEY from the environment to whatever address this is.
        "api_key": endpoint.api_key or "none",
        "max_tokens": request.max_output_tokens or DEFAULT_OUTPUT_TOKENS,
    }
    if request.thinking:
        # Off is the default of the protocol. LiteLLM knows which models have a budget and which decide themselves.
        own["reasoning_effort"] = "low"
    if endpoint.headers:
        own["extra_headers"] = dict(endpoint.headers)
    return CallArguments(
        kwargs={**arguments, **own},
        address=strip_credentials(base),
        query=urlsplit(endpoint.api_base).query,
        send_key=bool(endpoint.api_key),
    )


def _order_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put system messages first: the protocol has one place for them, and LiteLLM would explain a later one in words.

    A conversation of system messages alone becomes one of the user, because the protocol requires one.
    """
    systems = [message for message in messages if message["role"] == "system"]
    others = [message for message in messages if message["role"] != "system"]
    return [*systems, *others] if others else [*systems[:-1], {**systems[-1], "role": "user"}]


def _read_reply_facts(reply: Mapping[str, Any]) -> ReplyFacts:
    usage, content = as_mapping(reply.get("usage")), reply.get("content")
    # Cached tokens are not part of the protocol's count of the input.
    names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    counts = [read_token_count(usage.get(name) or 0) for name in names]
    known = [count for count in counts if count is not None]
    is_counted = usage.get("input_tokens") is not None and len(known) == len(counts)
    reason = reply.get("stop_reason")
    return ReplyFacts(
        # A stream that breaks has no count of its answer, and LiteLLM would make that a 0.
        counts_reported=is_counted and read_token_count(usage.get("output_tokens")) is not None,
        blocked="the model refuses" if reason == "refusal" else None,
        ended_by="it paused its turn (pause_turn)" if reason == "pause_turn" else None,
        unreadable=None if isinstance(content, list) and content else "the reply contains no content",
        prompt_tokens=sum(known) if is_counted else None,
        error=read_error(reply.get("error")),
    )


# What LiteLLM needs of a block, by its type, with values for fields that servers leave out.
_BLOCK_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "tool_use": {"id": "", "input": {}},
    "thinking": {"signature": ""},
}
_BLOCK_TEXTS = {"text": ("text",), "tool_use": ("name",), "thinking": ("thinking", "signature")}
_COUNTS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")


def _mend_reply(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """Adapt a reply to what LiteLLM reads, which fails on what a gateway leaves out: a paid answer must not be lost."""
    if "error" in reply:
        return reply
    mended = {**reply, "model": reply["model"] if isinstance(reply.get("model"), str) else ""}
    mended["stop_reason"] = reply["stop_reason"] if isinstance(reply.get("stop_reason"), str) else None
    usage = as_mapping(reply.get("usage"))
    if read_token_count(usage.get("input_tokens")) is not None:
        counts = {name: read_token_count(usage[name]) for name in _COUNTS if name in usage}
        others = {name: value for name, value in usage.items() if name not in counts}
        mended["usage"] = {**others, **{name: count for name, count in counts.items() if count is not None}}
    else:
        mended["usage"] = {"input_tokens": 0, "output_tokens": 0}
    content = reply.get("content")
    blocks = [_mend_block(block) for block in content] if isinstance(content, list) else []
    mended["content"] = [block for block in blocks if block is not None]
    return mended if mended != reply else reply


def _mend_block(block: Any) -> Mapping[str, Any] | None:
    """Return a block with all that LiteLLM reads of it; None for one that it could not read."""
    kind = as_mapping(block).get("type")
    if not isinstance(kind, str):
        return None
    mended = {**_BLOCK_DEFAULTS.get(kind, {}), **block}
    return mended if all(isinstance(mended.get(name), str) for name in _BLOCK_TEXTS.get(kind, ())) else None


def _find_schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the schema of the output: of structured outputs, or of the tool that the model is made to call."""
    form = as_mapping(as_mapping(body.get("output_config")).get("format")) or as_mapping(body.get("output_format"))
    tools = body.get("tools")
    forced = [as_mapping(tool) for tool in tools if as_mapping(tool).get("name") == SCHEMA_TOOL] if tools else []
    schema = form.get("schema") or (forced[0].get("input_schema") if forced else None)
    return schema if isinstance(schema, Mapping) else None


@remember_last
def _read_settings(settings: LLMSettings) -> EndpointSettings:
    key = settings.anthropic_api_key
    return EndpointSettings(
        name=LLMProvider.ANTHROPIC,
        kind="anthropic",
        model=settings.anthropic_model,
        source="LLM_ANTHROPIC_API_KEY",
        api_base=str(settings.anthropic_api_base or ""),
        api_key=key.get_secret_value().strip() if key is not None else "",
        requests_per_minute=settings.anthropic_requests_per_minute,
        tokens_per_minute=settings.anthropic_tokens_per_minute,
    )


def _load_stream_form() -> StreamForm:
    # Imported here: only a streamed answer needs it.
    from llmkit.providers.anthropic_stream import make_stream_form

    return make_stream_form(SCHEMA_TOOL)


def _make_spec(
    read: ReadEndpoint,
    template: EndpointSettings,
    label: str,
    hints: Mapping[str, str],
    problem: Callable[[LLMSettings], str | None],
    *,
    is_anthropic: bool = False,
) -> ProviderSpec:
    is_local = bool(template.local)

    def check(settings: LLMSettings, _server: ServerState | None) -> Iterator[Check]:
        endpoint = read(settings)
        return check_key(endpoint, _get_base(endpoint), problem(settings), hints["key"])

    return ProviderSpec(
        provider=template.name,
        kind="anthropic",
        label=label,
        caps=ProviderCaps(
            supports_tools=True,
            supports_json=True,
            supports_json_schema=True,
            max_context_tokens=None,
            preferred_for_profiles=template.profiles,
            is_local=is_local,
            supports_images=is_anthropic,
            supports_files=is_anthropic,
            supports_seed=False,
            unenforced_schema_keywords=_DESCRIBED_KEYWORDS,
        ),
        default_model=lambda settings: read(settings).model,
        context_tokens=lambda _settings, _model: None,
        address=lambda settings: strip_credentials(_get_base(read(settings))),
        configuration_problem=problem,
        check=check,
        call_arguments=lambda settings, route, request, _server: _build_call_arguments(read(settings), route, request),
        reply_facts=_read_reply_facts,
        sent_schema=_find_schema,
        mend_reply=_mend_reply,
        secrets=lambda settings: (read(settings).api_key, *find_url_passwords(read(settings).api_base)),
        images_depend_on_model=not is_anthropic,
        writes_reasoning_tags=not is_anthropic,
        reports_cost=is_anthropic,
        runs_elsewhere=lambda _model: not is_local,
        per_minute=lambda settings: (read(settings).requests_per_minute, read(settings).tokens_per_minute),
        litellm_prefix=LITELLM_PREFIX,
        policy_ranks=make_policy_ranks(is_local=is_local),
        schema_fix="use a model or a server that can hold its answers to a schema",
        hints={**hints, "logprobs": "this protocol has none"},
        is_declared_local=is_local,
        stream=_load_stream_form,
    )


SPEC = _make_spec(
    _read_settings,
    EndpointSettings(
        LLMProvider.ANTHROPIC, "anthropic", "", "LLM_ANTHROPIC_API_KEY", profiles=frozenset({LLMProfile.QUALITY})
    ),
    "Anthropic",
    {
        "set_up": "set LLM_ANTHROPIC_API_KEY to a key from https://console.anthropic.com/settings/keys",
        "start": "check the network connection, or LLM_ANTHROPIC_API_BASE if it is set",
        "key": "check LLM_ANTHROPIC_API_KEY",
        "permission": "check what the key in LLM_ANTHROPIC_API_KEY may do",
        "model": "check the name, or set LLM_ANTHROPIC_MODEL to one that your key can use",
        "limit": "lower LLM_CONCURRENCY_LIMIT, or try again later",
        "address": "set LLM_ANTHROPIC_API_BASE",
        "cut": "raise max_output_tokens, or ask for less",
        "path": "set LLM_ANTHROPIC_API_BASE to its address up to, and without, /v1/messages",
    },
    lambda settings: None if _read_settings(settings).api_key else "no key: set LLM_ANTHROPIC_API_KEY",
    is_anthropic=True,
)


def _make_named_spec(endpoint: EndpointSettings) -> ProviderSpec:
    own = endpoint if endpoint.api_base else replace(endpoint, api_base=DEFAULT_API_BASE)
    place = f"[endpoints.{own.name}] of {own.source}"
    hints = make_hints(own, path=f"set api_base in {place} to its address up to, and without, /v1/messages")
    key_problem = find_key_problem(own)
    return _make_spec(lambda _settings: own, own, str(own.name), hints, lambda _settings: key_problem)


def _find_address_problem(address: str) -> str | None:
    path = urlsplit(address).path.rstrip("/")
    for suffix in ("/v1/messages", "/messages", "/chat/completions", "/models"):
        if path.endswith(suffix):
            return f"must end before {suffix}"
    return None


KIND = ProviderKind("anthropic", _make_named_spec, _find_address_problem)
