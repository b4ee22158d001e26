"""Ollama: models on this machine or on your own server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from llmkit.canonical_json import json_object
from llmkit.endpoints.tables import EndpointSettings
from llmkit.providers.base import (
    LLAMA_CPP_UNENFORCED,
    CallArguments,
    ProviderKind,
    ProviderSpec,
    ReadEndpoint,
    ReplyFacts,
    StreamForm,
    build_openai_arguments,
    find_key_problem,
    find_url_passwords,
    make_hints,
    make_policy_ranks,
    read_error,
    read_token_count,
    read_token_logprobs,
    remember_last,
    strip_credentials,
)
from llmkit.providers.checks import Check, CheckState, ServerState
from llmkit.providers.model_facts import NOTHING_KNOWN, Fact, ModelFacts
from llmkit.providers.prompt_tokens import TOKENS_OF_A_TEMPLATE, compute_max_prompt_tokens, estimate_prompt_tokens
from llmkit.redaction import redact
from llmkit.settings import LLMSettings
from llmkit.types import LLMProfile, LLMProvider, LLMRequest, ProviderCaps, Route

__all__ = ["KIND", "SPEC", "add_tag", "choose_context_window", "read_facts"]

LITELLM_PREFIX = "ollama_chat"
DEFAULT_API_BASE = "http://localhost:11434"

SMALLEST_CONTEXT_TOKENS = 4096
# Loading the model reserves memory for its whole window; few models can read more than this.
LARGEST_CONTEXT_TOKENS = 131_072
ROOM_FOR_ANSWER_TOKENS = 1024


def choose_context_window(request: LLMRequest) -> int:
    """Return the `num_ctx` to ask for: prompt and answer, rounded up to a power of two, from 4,096 to 131,072 tokens.

    Older servers silently cut a prompt that is longer than the window, whose default is 2,048 or 4,096.
    """
    room = request.max_output_tokens or ROOM_FOR_ANSWER_TOKENS
    if compute_max_prompt_tokens(request) + room <= SMALLEST_CONTEXT_TOKENS:
        return SMALLEST_CONTEXT_TOKENS  # Most prompts: the estimate would take longer than all other arguments.
    return _round_window(estimate_prompt_tokens(request) + TOKENS_OF_A_TEMPLATE + room)


def _round_window(tokens: int) -> int:
    """Round up to a power of two: every change of the window makes the server load the model again."""
    return min(max(1 << (tokens - 1).bit_length(), SMALLEST_CONTEXT_TOKENS), LARGEST_CONTEXT_TOKENS)


def _resize_window(arguments: CallArguments, tokens: int) -> CallArguments:
    """Ask for another window, at most the model's own: a server would silently reduce it and then cut the prompt."""
    window = min(_round_window(tokens), arguments.model_context_tokens or LARGEST_CONTEXT_TOKENS)
    if window == arguments.context_tokens:
        return arguments
    return replace(arguments, kwargs={**arguments.kwargs, "num_ctx": window}, context_tokens=window)


def add_tag(model: str) -> str:
    """Return the model's name as Ollama lists it: `latest` unless it has a tag."""
    return model if ":" in model.rsplit("/", 1)[-1] else f"{model}:latest"


def read_facts(shown: Mapping[str, Any], listed: Mapping[str, Any], at_utc: datetime) -> ModelFacts:
    """Read the facts that Ollama reports about a model. Missing or malformed ones stay unknown.

    Args:
        shown: The answer of `/api/show`. Servers before 0.6.4 list no `capabilities`.
        listed: The model's entry in the answer of `/api/tags`, or nothing.
        at_utc: When the server was queried.
    """
    capabilities, window, digest = (
        shown.get("capabilities"),
        _read_window(shown.get("model_info")),
        listed.get("digest"),
    )
    facts = NOTHING_KNOWN
    if isinstance(capabilities, list):
        facts = ModelFacts(
            tools=Fact("tools" in capabilities, "reported", at_utc),
            images=Fact("vision" in capabilities, "reported", at_utc),
        )
    return replace(
        facts,
        context_tokens=None if window is None else Fact(window, "reported", at_utc),
        digest=Fact(digest, "reported", at_utc) if isinstance(digest, str) and digest else None,
    )


def _read_window(model_info: Any) -> int | None:
    info = model_info if isinstance(model_info, Mapping) else {}
    window = info.get(f"{info.get('general.architecture')}.context_length")
    return window if isinstance(window, int) and not isinstance(window, bool) and window > 0 else None


def _is_cloud_model(model: str) -> bool:
    """Return whether the tag names a cloud model (`gpt-oss:120b-cloud`), whose prompts a local server forwards."""
    tag = model.rpartition("/")[2].partition(":")[2]
    return tag == "cloud" or tag.endswith("-cloud")


def _build_call_arguments(endpoint: EndpointSettings, route: Route, request: LLMRequest) -> CallArguments:
    model = f"{LITELLM_PREFIX}/{route.model}"
    window = choose_context_window(request)
    own = {
        "model": model,
        "api_base": endpoint.api_base.rstrip("/"),
        # Without a key of ours LiteLLM sends OLLAMA_API_KEY from the environment to whatever address this is.
        "api_key": endpoint.api_key or "none",
        "num_ctx": window,
        # A server since 0.12.5 then refuses a prompt that does not fit, with a clear 400; older ones ignore it and cut.
        "extra_body": {"truncate": False}
        | ({} if request.thinking is None else {"think": request.thinking})
        | ({"logprobs": True} if request.logprobs else {}),
        # LiteLLM labels the body application/octet-stream.
        "extra_headers": {"Content-Type": "application/json", **endpoint.headers},
    }
    return CallArguments(
        kwargs={**build_openai_arguments(request), **own},
        address=strip_credentials(endpoint.api_base),
        context_tokens=window,
        send_key=bool(endpoint.api_key),
        price_entry={model: _PRICE_ENTRY},
    )


# Without an entry LiteLLM asks the server with a blocking call on the event loop; without this provider in it, it takes
# `responses/x` for the model `x` behind another API, and calls that past our transport.
_PRICE_ENTRY: Mapping[str, Any] = MappingProxyType(
    {"litellm_provider": LITELLM_PREFIX, "mode": "chat", "input_cost_per_token": 0.0, "output_cost_per_token": 0.0}
)


def _read_reply_facts(reply: Mapping[str, Any]) -> ReplyFacts:
    prompt_tokens = _read_prompt_count(reply)
    return ReplyFacts(
        unreadable=_explain_no_content(reply),
        counts_reported=prompt_tokens is not None and read_token_count(reply.get("eval_count")) is not None,
        prompt_tokens=prompt_tokens,
        error=read_error(reply.get("error")),
        token_logprobs=read_token_logprobs(reply.get("logprobs")),
    )


def _read_prompt_count(reply: Mapping[str, Any]) -> int | None:
    """Return the tokens of the prompt; None for 0 too, which a server reports for one that its cache already had."""
    return read_token_count(reply.get("prompt_eval_count")) or None


def _explain_no_content(reply: Mapping[str, Any]) -> str | None:
    message = reply.get("message")
    if not isinstance(message, Mapping):
        return "the reply contains no message"
    if message.get("thinking") and not message.get("content") and not message.get("tool_calls"):
        return "the model wrote only hidden reasoning (thinking) and no answer after it"
    return None


# The other fields that are read. LiteLLM fails on surprises in more, which must not cost a paid answer.
_REPLY_FIELDS: Mapping[str, type] = {"model": str, "done": bool, "done_reason": str, "error": object}


def _mend_reply(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """Adapt a reply to what LiteLLM reads.

    Counts of 0, and what is no count, are dropped, so that LiteLLM estimates them. Some models put the requested JSON
    into `thinking` and leave `content` empty (https://github.com/ollama/ollama/issues/14645): a whole JSON object
    there, with nothing else, is the answer.
    """
    mended = {
        name: reply[name]
        for name, kind in _REPLY_FIELDS.items()
        if reply.get(name) is not None and isinstance(reply[name], kind)
    }
    counts = {"prompt_eval_count": _read_prompt_count(reply), "eval_count": read_token_count(reply.get("eval_count"))}
    mended |= {name: count for name, count in counts.items() if count is not None}
    message = reply.get("message")
    if message is not None:
        mended["message"] = _mend_message(message) if isinstance(message, Mapping) else message
    return mended


def _mend_message(message: Mapping[str, Any]) -> Mapping[str, Any]:
    calls, thinking = message.get("tool_calls"), message.get("thinking")
    mended = {"role": "assistant", "content": message.get("content") or ""}
    if isinstance(thinking, str):
        mended["thinking"] = thinking
    calls = [call for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []
    if calls:
        mended["tool_calls"] = [_mend_call(call) for call in calls]
    elif not mended["content"] and isinstance(thinking, str) and _is_json_object(thinking):
        mended.update(content=thinking.strip(), thinking="")
    return mended


def _is_json_object(text: str) -> bool:
    return json_object(text.encode(errors="replace")) is not None


def _mend_call(call: Any) -> Any:
    """Add the arguments that a call of a tool without parameters may lack; those that are no object become text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or isinstance(function.get("arguments"), str | dict):
        return call
    given = function.get("arguments")
    return {**call, "function": {**function, "arguments": {} if given is None else json.dumps(given)}}


def _find_schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    schema = body.get("format")
    return schema if isinstance(schema, Mapping) else None


def _check(endpoint: EndpointSettings, start: str, server: ServerState | None) -> Iterator[Check]:
    name, base = endpoint.name, redact(endpoint.api_base.rstrip("/"))
    if server is None:
        yield Check(name, CheckState.ABSENT, f"nothing answers at {base}", start)
        return
    wanted, names = endpoint.model, [model.name for model in server.models]
    listed, where = ", ".join(names) or "none", f"{server.version} at {base}"
    if add_tag(wanted) in names:
        yield Check(name, CheckState.OK, f"{where}; models: {listed}", route=f"{name}/{wanted}")
    else:
        detail = f"{where}; model {wanted} is not pulled (there: {listed})"
        usable = f"{name}/{names[0].removesuffix(':latest')}" if names else None
        yield Check(name, CheckState.ABSENT, detail, f"ollama pull {wanted}", route=usable)
    for model in server.models:
        size = f"; {model.size_bytes / 10**6:,.0f} MB" if model.size_bytes else ""
        detail = f"{str(model.facts) or 'the server reports no details'}{size}"
        yield Check(f"{name}/{model.name}", CheckState.OK, detail, facts=model.facts.as_dict())


@remember_last
def _read_settings(settings: LLMSettings) -> EndpointSettings:
    return EndpointSettings(
        name=LLMProvider.OLLAMA,
        kind="ollama",
        model=settings.ollama_model,
        source="LLM_OLLAMA_API_BASE",
        api_base=str(settings.ollama_api_base),
        requests_per_minute=settings.ollama_requests_per_minute,
        tokens_per_minute=settings.ollama_tokens_per_minute,
    )


def _load_stream_form() -> StreamForm:
    # Imported here: only a streamed answer needs it.
    from llmkit.providers.ollama_stream import OLLAMA_STREAM

    return OLLAMA_STREAM


def _make_spec(
    read: ReadEndpoint,
    name: LLMProvider,
    label: str,
    hints: Mapping[str, str],
    profiles: frozenset[LLMProfile],
    *,
    start: str,
    local: bool | None = None,
) -> ProviderSpec:
    return ProviderSpec(
        provider=name,
        kind="ollama",
        label=label,
        caps=ProviderCaps(
            # It depends on the model, so it is not declared; a pinned model is asked anyway.
            supports_tools=False,
            supports_json=True,
            supports_json_schema=True,
            max_context_tokens=None,
            preferred_for_profiles=profiles,
            is_local=local is not False,
            # This depends on the model too.
            supports_images=False,
            # Since 0.12.11; older servers ignore the option, and the answer then has a warning.
            supports_logprobs=True,
            unenforced_schema_keywords=LLAMA_CPP_UNENFORCED,
        ),
        default_model=lambda settings: read(settings).model,
        context_tokens=lambda _settings, _model: None,
        address=lambda settings: strip_credentials(read(settings).api_base),
        configuration_problem=lambda settings: find_key_problem(read(settings)),
        check=lambda settings, server: _check(read(settings), start, server),
        call_arguments=lambda settings, route, request, _server: _build_call_arguments(read(settings), route, request),
        reply_facts=_read_reply_facts,
        sent_schema=_find_schema,
        mend_reply=_mend_reply,
        resize_window=_resize_window,
        secrets=lambda settings: (read(settings).api_key, *find_url_passwords(read(settings).api_base)),
        tools_depend_on_model=True,
        images_depend_on_model=True,
        # Older servers cannot read it, and LiteLLM makes a JPEG of it where Pillow happens to be installed.
        unread_media_types=frozenset({"image/webp"}),
        estimates_missing_counts=True,
        writes_reasoning_tags=True,
        runs_elsewhere=(lambda _model: True) if local is False else _is_cloud_model,
        per_minute=lambda settings: (read(settings).requests_per_minute, read(settings).tokens_per_minute),
        litellm_prefix=LITELLM_PREFIX,
        policy_ranks=make_policy_ranks(is_local=local is not False),
        schema_fix="curl -fsSL https://ollama.com/install.sh | sh",
        hints=hints,
        is_declared_local=bool(local),
        server_address=lambda settings: read(settings).api_base,
        stream=_load_stream_form,
    )


_PATH_HINT = " to its address, without the path of an API such as /v1"

SPEC = _make_spec(
    _read_settings,
    LLMProvider.OLLAMA,
    "Ollama",
    {
        "set_up": "start Ollama with `ollama serve` (https://ollama.com)"
        " and pull a model, for example `ollama pull llama3.2`",
        "start": "start it with `ollama serve`, or set LLM_OLLAMA_API_BASE to where it runs",
        "key": "put user and password into LLM_OLLAMA_API_BASE, or set it to a server that needs no login",
        "permission": "check the proxy in front of it",
        "model": "run `ollama pull {model}`, or set LLM_OLLAMA_MODEL to one that `ollama list` shows",
        "limit": "lower LLM_CONCURRENCY_LIMIT, or try again later",
        "address": "set LLM_OLLAMA_API_BASE",
        "cut": "raise max_output_tokens, or ask for less",
        "logprobs": "update Ollama to 0.12.11 or later",
        "path": f"set LLM_OLLAMA_API_BASE{_PATH_HINT}",
    },
    frozenset({LLMProfile.FAST, LLMProfile.BALANCED}),
    start="start it with `ollama serve`, or set LLM_OLLAMA_API_BASE",
)


def _make_named_spec(endpoint: EndpointSettings) -> ProviderSpec:
    own = endpoint if endpoint.api_base else replace(endpoint, api_base=DEFAULT_API_BASE)
    place = f"[endpoints.{own.name}] of {own.source}"
    hints = make_hints(
        own,
        start=f"start it with `ollama serve`, or correct api_base in {place}",
        model=f"run `ollama pull {{model}}` on its server, or correct model in {place}",
        path=f"set api_base in {place}{_PATH_HINT}",
        logprobs="update Ollama to 0.12.11 or later",
    )
    return _make_spec(
        lambda _settings: own, own.name, str(own.name), hints, own.profiles, start=hints["start"], local=own.local
    )


def _find_address_problem(address: str) -> str | None:
    path = urlsplit(address).path.rstrip("/")
    if urlsplit(address).query:
        return "must not have a query (?); remove it"
    if path.endswith(("/api", "/api/chat")):
        return "must end before /api; remove it"
    return "must not end with /v1: remove it, or set kind to openai" if path.endswith("/v1") else None


KIND = ProviderKind("ollama", _make_named_spec, _find_address_problem)
