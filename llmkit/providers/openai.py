"""Chat Completions: OpenAI, and all servers that speak its protocol (vLLM, LM Studio, llama.cpp, OpenRouter, Groq)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
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
    read_token_counts,
    read_token_logprobs,
    remember_last,
    strip_credentials,
)
from llmkit.providers.checks import Check, ServerState
from llmkit.settings import LLMSettings
from llmkit.types import LLMProfile, LLMProvider, LLMRequest, ProviderCaps, Route

__all__ = ["KIND", "SPEC", "make_strict"]

LITELLM_PREFIX = "openai"
DEFAULT_API_BASE = "https://api.openai.com/v1"

# Models that think before they answer, by their names at OpenAI; elsewhere the maker's name comes first.
_REASONING_MODEL = re.compile(r"(?:openai/)?(?:o[1-9]|gpt-5|gpt-6)(?![0-9a-z])")
# Hosts that hold an answer to a schema only when `strict` is set, and then take OpenAI's form of it alone.
_STRICT_HOSTS = ("api.openai.com", ".openai.azure.com", "openrouter.ai", "api.groq.com")
_OPENAI_HOSTS = ("api.openai.com", ".openai.azure.com")


def _is_one_of(address: str, hosts: tuple[str, ...]) -> bool:
    host = urlsplit(address).hostname or ""
    return any(host == each.lstrip(".") or host.endswith(f".{each.lstrip('.')}") for each in hosts)


def make_strict(schema: Any) -> Any:
    """Return OpenAI's strict form of a schema: no other properties than those listed, and all of them required.

    See https://platform.openai.com/docs/guides/structured-outputs. A property that may be left out becomes one that
    must be written, which every validation of the answer accepts.

    Raises:
        ValueError: An object allows any property, for which strict mode has no form.
    """
    if isinstance(schema, list):
        return [make_strict(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    strict: dict[str, Any] = {}
    for name, value in schema.items():
        if name in {"properties", "$defs", "definitions"} and isinstance(value, Mapping):
            strict[name] = {key: make_strict(each) for key, each in value.items()}
        elif name in {"enum", "const", "examples"}:  # values, not schemas
            strict[name] = value
        elif name != "default":  # refused: every property is written
            strict[name] = make_strict(value)
    if schema.get("type") == "object" or "properties" in schema:
        if schema.get("additionalProperties") not in (None, False) or not isinstance(schema.get("properties"), Mapping):
            raise ValueError("an object with free properties")
        strict |= {"required": list(schema["properties"]), "additionalProperties": False}
    return strict


def _build_call_arguments(
    endpoint: EndpointSettings, route: Route, request: LLMRequest, *, is_openai: bool
) -> CallArguments:
    base = endpoint.api_base or DEFAULT_API_BASE
    arguments = build_openai_arguments(request)
    is_openai = is_openai or _is_one_of(base, _OPENAI_HOSTS)
    reasons = _REASONING_MODEL.match(route.model) is not None
    if "max_tokens" in arguments and (is_openai or reasons):
        # OpenAI's reasoning models refuse the older name, which is all that most other servers know.
        arguments["max_completion_tokens"] = arguments.pop("max_tokens")
    wanted = arguments.get("response_format")
    if wanted is not None and "json_schema" in wanted and (is_openai or _is_one_of(base, _STRICT_HOSTS)):
        arguments["response_format"] = {"type": "json_schema", "json_schema": _strict_format(wanted["json_schema"])}
    extra: dict[str, Any] = {}
    if request.thinking is not None and is_openai and reasons:
        extra["reasoning_effort"] = "medium" if request.thinking else "low"
    elif request.thinking is not None and not is_openai:
        # vLLM, SGLang and llama.cpp hand this to the template of the model.
        extra["chat_template_kwargs"] = {"enable_thinking": request.thinking}
    if request.logprobs:
        extra["logprobs"] = True
        if not is_openai:
            # Without this field, llama.cpp lists twenty alternatives to every token.
            extra["top_logprobs"] = 1
    own: dict[str, Any] = {
        "model": f"{LITELLM_PREFIX}/{route.model}",
        "api_base": strip_query(base),
        # Without one LiteLLM sends OPENAI_API_KEY from the environment to whatever address this is.
        "api_key": endpoint.api_key or "none",
    }
    if extra:
        own["extra_body"] = extra
    headers = dict(endpoint.headers)
    if endpoint.api_key and "/openai/deployments/" in base:
        # Azure's older addresses take a key in this header alone; the pool then sends no other.
        headers["api-key"] = endpoint.api_key
    if headers:
        own["extra_headers"] = headers
    return CallArguments(
        kwargs={**arguments, **own},
        address=strip_credentials(strip_query(base)),
        query=urlsplit(base).query,
        send_key=bool(endpoint.api_key),
    )


def strip_query(url: str) -> str:
    """Return an address without its query, to which a path can be appended."""
    return url.partition("?")[0].rstrip("/")


def _strict_format(named: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return {**named, "schema": make_strict(named["schema"]), "strict": True}
    except (ValueError, RecursionError):
        return named


def _read_reply_facts(reply: Mapping[str, Any]) -> ReplyFacts:
    choices = reply.get("choices")
    choice = as_mapping(choices[0]) if isinstance(choices, list) and choices else {}
    usage = as_mapping(reply.get("usage"))
    refusal = as_mapping(choice.get("message")).get("refusal")
    # OpenRouter names who answered; OpenAI and llama.cpp name the build.
    versions = [str(reply[name]) for name in ("provider", "system_fingerprint") if isinstance(reply.get(name), str)]
    return ReplyFacts(
        counts_reported=all(
            read_token_count(usage.get(name)) is not None for name in ("prompt_tokens", "completion_tokens")
        ),
        blocked="the model refuses" if isinstance(refusal, str) and refusal else None,
        unreadable=None if choice else "the reply contains no choice",
        prompt_tokens=read_token_count(usage.get("prompt_tokens")),
        error=read_error(reply.get("error")) or read_error(choice.get("error")),
        model_version="/".join(versions)[:255] or None,
        token_logprobs=read_token_logprobs(as_mapping(choice.get("logprobs")).get("content")),
    )


# The fields that LiteLLM reads. It fails on surprises in others, such as log-probabilities, which are read here; they
# must not cost a paid answer.
_REPLY_FIELDS: Mapping[str, type] = {"id": str, "model": str, "system_fingerprint": str, "error": object}
_MESSAGE_FIELDS: Mapping[str, type] = {
    "content": object, "tool_calls": list, "function_call": dict, "reasoning_content": str, "reasoning": str,
}  # fmt: skip


def _mend_reply(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """Adapt a reply to what LiteLLM reads: a usage without counts counts as none."""
    mended = _pick_fields(reply, _REPLY_FIELDS)
    usage, choices = read_token_counts(reply.get("usage")), reply.get("choices")
    if {"prompt_tokens", "completion_tokens"} <= usage.keys():
        mended["usage"] = usage
    if isinstance(choices, list):
        # One choice was asked for, and only the first one is read.
        mended["choices"] = [_mend_choice(each) for each in choices[:1]]
    elif choices is not None:
        mended["choices"] = choices
    return mended


def _mend_choice(choice: Any) -> Any:
    if not isinstance(choice, Mapping) or not isinstance(choice.get("message"), Mapping):
        return choice
    message = {"role": "assistant", "content": None, **_pick_fields(choice["message"], _MESSAGE_FIELDS)}
    if "tool_calls" in message:
        message["tool_calls"] = [_mend_call(call) for call in message["tool_calls"] if isinstance(call, Mapping)]
    return {"index": 0, "message": message, **_pick_fields(choice, {"finish_reason": str})}


def _mend_call(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a call with the fields that are read; arguments that are not text yet become their JSON."""
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        # OpenAI's client would print it in a warning before LiteLLM fails on it.
        raise TypeError("a tool call has no name")
    given = function.get("arguments")
    arguments = given if isinstance(given, str) else json.dumps({} if given is None else given)
    call_id = call.get("id")
    return {
        "id": call_id if isinstance(call_id, str) else "",
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def _pick_fields(values: Mapping[str, Any], fields: Mapping[str, type]) -> dict[str, Any]:
    return {
        name: values[name]
        for name, kind in fields.items()
        if values.get(name) is not None and isinstance(values[name], kind)
    }


def _find_schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    named = as_mapping(as_mapping(body.get("response_format")).get("json_schema"))
    schema = named.get("schema")
    return schema if isinstance(schema, Mapping) else None


def _find_model_problem(_settings: LLMSettings, model: str) -> str | None:
    # LiteLLM would call the model behind the prefix by another API.
    return f"No model is called {model!r}: check the name." if model.startswith("responses/") else None


@remember_last
def _read_settings(settings: LLMSettings) -> EndpointSettings:
    key = settings.openai_api_key
    return EndpointSettings(
        name=LLMProvider.OPENAI,
        kind="openai",
        model=settings.openai_model,
        source="LLM_OPENAI_API_KEY",
        api_base=str(settings.openai_api_base or ""),
        api_key=key.get_secret_value().strip() if key is not None else "",
        requests_per_minute=settings.openai_requests_per_minute,
        tokens_per_minute=settings.openai_tokens_per_minute,
    )


def _load_stream_form() -> StreamForm:
    # Imported here: only a streamed answer needs it.
    from llmkit.providers.openai_stream import OPENAI_STREAM

    return OPENAI_STREAM


def _make_spec(
    read: ReadEndpoint,
    template: EndpointSettings,
    label: str,
    hints: Mapping[str, str],
    problem: Callable[[LLMSettings], str | None],
    *,
    is_openai: bool = False,
) -> ProviderSpec:
    is_local = bool(template.local)

    def build(settings: LLMSettings, route: Route, request: LLMRequest, _server: object) -> CallArguments:
        return _build_call_arguments(read(settings), route, request, is_openai=is_openai)

    def check(settings: LLMSettings, _server: ServerState | None) -> Iterator[Check]:
        endpoint = read(settings)
        return check_key(endpoint, endpoint.api_base or DEFAULT_API_BASE, problem(settings), hints["key"])

    return ProviderSpec(
        provider=template.name,
        kind="openai",
        label=label,
        caps=ProviderCaps(
            supports_tools=True,
            supports_json=True,
            supports_json_schema=True,
            max_context_tokens=None,
            preferred_for_profiles=template.profiles,
            is_local=is_local,
            supports_images=is_openai,
            supports_files=is_openai,
        ),
        default_model=lambda settings: read(settings).model,
        context_tokens=lambda _settings, _model: None,
        address=lambda settings: strip_credentials(strip_query(read(settings).api_base or DEFAULT_API_BASE)),
        configuration_problem=problem,
        check=check,
        model_problem=_find_model_problem,
        call_arguments=build,
        calls_tools_beside_json=lambda _model: True,
        reply_facts=_read_reply_facts,
        sent_schema=_find_schema,
        mend_reply=_mend_reply,
        secrets=lambda settings: (read(settings).api_key, *find_url_passwords(read(settings).api_base)),
        images_depend_on_model=not is_openai,
        logprobs_depend_on_model=True,
        # OpenAI's models do not, but LLM_OPENAI_API_BASE may be another server.
        writes_reasoning_tags=True,
        reports_cost=is_openai,
        runs_elsewhere=lambda _model: not is_local,
        per_minute=lambda settings: (read(settings).requests_per_minute, read(settings).tokens_per_minute),
        litellm_prefix=LITELLM_PREFIX,
        policy_ranks=make_policy_ranks(is_local=is_local),
        schema_fix="use a model or a server that can hold its answers to a schema",
        hints=hints,
        is_declared_local=is_local,
        stream=_load_stream_form,
    )


SPEC = _make_spec(
    _read_settings,
    EndpointSettings(LLMProvider.OPENAI, "openai", "", "LLM_OPENAI_API_KEY", profiles=frozenset({LLMProfile.QUALITY})),
    "OpenAI",
    {
        "set_up": "set LLM_OPENAI_API_KEY to a key from https://platform.openai.com/api-keys",
        "start": "check the network connection, or LLM_OPENAI_API_BASE if it is set",
        "key": "check LLM_OPENAI_API_KEY",
        "permission": "check what the key in LLM_OPENAI_API_KEY may do, and from where",
        "model": "check the name, or set LLM_OPENAI_MODEL to one that your key can use",
        "limit": "lower LLM_CONCURRENCY_LIMIT, or try again later",
        "address": "set LLM_OPENAI_API_BASE",
        "cut": "raise max_output_tokens, or ask for less",
        "path": "set LLM_OPENAI_API_BASE to its address up to /v1",
        "logprobs": "use a model that has them",
    },
    lambda settings: None if _read_settings(settings).api_key else "no key: set LLM_OPENAI_API_KEY",
    is_openai=True,
)


def _make_named_spec(endpoint: EndpointSettings) -> ProviderSpec:
    own = endpoint if endpoint.api_base else replace(endpoint, api_base=DEFAULT_API_BASE)
    place = f"[endpoints.{own.name}] of {own.source}"
    hints = make_hints(own, path=f"set api_base in {place} to what its documentation calls base URL, mostly up to /v1")
    key_problem = find_key_problem(own)
    return _make_spec(lambda _settings: own, own, str(own.name), hints, lambda _settings: key_problem)


def _find_address_problem(address: str) -> str | None:
    path = urlsplit(address).path.rstrip("/")
    for suffix in ("/chat/completions", "/completions", "/models", "/responses"):
        if path.endswith(suffix):
            return f"must end before {suffix}, mostly with /v1"
    return "is Ollama's own API: end it with /v1, or set kind to ollama" if path.endswith("/api/chat") else None


KIND = ProviderKind("openai", _make_named_spec, _find_address_problem)
