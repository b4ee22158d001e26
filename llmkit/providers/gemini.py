"""Gemini, by Google's Generative Language API."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
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
    find_key_problem,
    find_url_passwords,
    make_hints,
    make_policy_ranks,
    read_token_count,
    read_token_logprobs,
    remember_last,
    strip_credentials,
)
from llmkit.providers.checks import Check, CheckState
from llmkit.redaction import redact
from llmkit.settings import LLMSettings
from llmkit.types import LLMProfile, LLMProvider, LLMRequest, ProviderCaps, Route

__all__ = ["KIND", "SPEC"]

LITELLM_PREFIX = "gemini"

DEFAULT_API_BASE = "https://generativelanguage.googleapis.com/v1beta"
CONTEXT_TOKENS = 1_048_576
LEAST_PRO_BUDGET = 128

_BLOCKING_REASONS = {
    "SAFETY": "SAFETY: a safety filter",
    "RECITATION": "RECITATION: the answer repeats published text",
    "BLOCKLIST": "BLOCKLIST: it contains forbidden terms",
    "PROHIBITED_CONTENT": "PROHIBITED_CONTENT",
    "SPII": "SPII: it contains personal data",
    "IMAGE_SAFETY": "IMAGE_SAFETY: a safety filter for images",
    "IMAGE_PROHIBITED_CONTENT": "IMAGE_PROHIBITED_CONTENT",
    "IMAGE_RECITATION": "IMAGE_RECITATION: the image repeats a published one",
    "ESCALATION": "ESCALATION",
}
# LiteLLM calls several of these a content filter. https://ai.google.dev/api/generate-content#FinishReason
_OTHER_REASONS = {
    "OTHER": "it gives no reason (OTHER)",
    "IMAGE_OTHER": "it gives no reason (IMAGE_OTHER)",
    "NO_IMAGE": "the model made no image (NO_IMAGE)",
    "LANGUAGE": "the model does not know the language (LANGUAGE)",
    "MALFORMED_RESPONSE": "the model wrote a malformed answer (MALFORMED_RESPONSE)",
    "MALFORMED_FUNCTION_CALL": "the model wrote a tool call that is malformed",
    "UNEXPECTED_TOOL_CALL": "the model called a tool that it was not given",
    "MISSING_THOUGHT_SIGNATURE": "a tool call in the history lacks its thought signature",
    "TOO_MANY_TOOL_CALLS": "the model called tools too many times",
}
_USUAL_REASONS = frozenset({"STOP", "MAX_TOKENS", "FINISH_REASON_UNSPECIFIED", ""})


def _get_base(endpoint: EndpointSettings) -> str:
    """Return the base address with its version, which LiteLLM leaves out for an address that is not Google's."""
    if not endpoint.api_base:
        return DEFAULT_API_BASE
    base = endpoint.api_base.rstrip("/")
    return base if urlsplit(base).path else f"{base}/v1beta"


def _find_model_problem(_settings: LLMSettings, model: str) -> str | None:
    # LiteLLM would call the model behind the prefix instead, over a connection that is not ours.
    if not model.startswith("responses/"):
        return None
    return f"Gemini has no model {model!r}: check the name; names begin with gemini-, gemma- or tunedModels/."


def _build_call_arguments(endpoint: EndpointSettings, route: Route, request: LLMRequest) -> CallArguments:
    base = _get_base(endpoint)
    own: dict[str, Any] = {
        "model": f"{LITELLM_PREFIX}/{route.model}",
        "api_base": base,
        # Without one LiteLLM sends GEMINI_API_KEY from the environment to whatever address this is.
        "api_key": endpoint.api_key or "none",
    }
    if endpoint.headers:
        own["extra_headers"] = dict(endpoint.headers)
    thinking = None if request.thinking is None else _choose_thinking(route.model, wanted=request.thinking)
    config: dict[str, Any] = {"responseLogprobs": True} if request.logprobs else {}
    if thinking is not None:
        config["thinkingConfig"] = thinking
    if config:
        own["extra_body"] = {"generationConfig": config}
    return CallArguments(
        kwargs={**build_openai_arguments(request), **own},
        address=strip_credentials(base),
        send_key=bool(endpoint.api_key),
    )


def _choose_thinking(model: str, *, wanted: bool) -> Mapping[str, Any] | None:
    """Return the configuration for thinking or for as little of it as the model allows; None for the model's default.

    See https://ai.google.dev/gemini-api/docs/thinking: 2.5 Pro cannot do without, and 3 has levels instead of a budget.
    """
    version = re.match(r"gemini-(\d+)(?:\.(\d+))?(?!\d)", model)
    generation = (int(version[1]), int(version[2] or 0)) if version is not None and len(version[1]) < 4 else (0, 0)
    if generation >= (3, 0):
        return None if wanted else {"thinkingLevel": "minimal" if "flash" in model else "low"}
    if generation != (2, 5):
        return None
    return {"thinkingBudget": -1 if wanted else LEAST_PRO_BUDGET if "pro" in model else 0}


def _read_reply_facts(reply: Mapping[str, Any]) -> ReplyFacts:
    candidates = reply.get("candidates")
    candidate = as_mapping(candidates[0]) if isinstance(candidates, list) and candidates else {}
    reason = str(candidate.get("finishReason") or "")
    prompt_blocked = as_mapping(reply.get("promptFeedback")).get("blockReason")
    usage = as_mapping(reply.get("usageMetadata"))
    return ReplyFacts(
        counts_reported=read_token_count(usage.get("promptTokenCount")) is not None
        and read_token_count(usage.get("candidatesTokenCount") or 0) is not None,
        blocked=_BLOCKING_REASONS.get(str(prompt_blocked), str(prompt_blocked))
        if prompt_blocked
        else _BLOCKING_REASONS.get(reason),
        ended_by=None
        if reason in _USUAL_REASONS or reason in _BLOCKING_REASONS
        else _OTHER_REASONS.get(reason, f"it stopped for {reason[:40]}"),
        unreadable=None if candidate else "the reply contains no candidate",
        prompt_tokens=read_token_count(usage.get("promptTokenCount")),
        error=as_mapping(reply.get("error")).get("message"),
        model_version=reply.get("modelVersion") if isinstance(reply.get("modelVersion"), str) else None,
        token_logprobs=read_token_logprobs(
            as_mapping(candidate.get("logprobsResult")).get("chosenCandidates"), logprob_field="logProbability"
        ),
    )


# The fields that LiteLLM reads. It fails on surprises in others, such as log-probabilities, which are read here; they
# must not cost a paid answer.
_REPLY_FIELDS: Mapping[str, type] = {"candidates": list, "promptFeedback": dict, "modelVersion": str, "responseId": str}


def _mend_reply(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """Adapt a reply to what LiteLLM reads: it fails without counts, and without the arguments of a tool call."""
    mended = {name: reply[name] for name, kind in _REPLY_FIELDS.items() if isinstance(reply.get(name), kind)}
    mended["usageMetadata"] = _mend_usage(as_mapping(reply.get("usageMetadata")))
    if "candidates" in mended:
        # One candidate was asked for, and only the first one is read.
        mended["candidates"] = [_mend_candidate(candidate) for candidate in mended["candidates"][:1]]
    return mended


def _mend_usage(usage: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the counts that are counts, with the counts of each kind of content where all of them are."""
    mended: dict[str, Any] = {}
    for name, value in usage.items():
        if name.endswith("TokenCount"):
            count = read_token_count(value)
            mended |= {} if count is None else {name: count}
        elif name.endswith("TokensDetails") and isinstance(value, list):
            details = [as_mapping(each) for each in value]
            if all(
                isinstance(each.get("modality"), str) and read_token_count(each.get("tokenCount")) is not None
                for each in details
            ):
                mended[name] = [
                    {"modality": each["modality"], "tokenCount": read_token_count(each["tokenCount"])}
                    for each in details
                ]
    return mended


def _mend_candidate(candidate: Any) -> Any:
    if not isinstance(candidate, Mapping):
        return candidate
    mended = {"finishReason": candidate["finishReason"]} if isinstance(candidate.get("finishReason"), str) else {}
    content = candidate.get("content")
    if not isinstance(content, Mapping):
        return mended
    parts = content.get("parts")
    kept = [_mend_part(part) for part in parts if isinstance(part, Mapping)] if isinstance(parts, list) else []
    return {**mended, "content": {"role": "model", "parts": [part for part in kept if part]}}


_PART_FIELDS: Mapping[str, type] = {"text": str, "thought": bool, "thoughtSignature": str, "functionCall": dict}


def _mend_part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    mended = {name: part[name] for name, kind in _PART_FIELDS.items() if isinstance(part.get(name), kind)}
    call = mended.get("functionCall")
    if call is not None and call.get("args") is None:
        mended["functionCall"] = {**call, "args": {}}
    return mended


def _find_schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    config = as_mapping(body.get("generationConfig") or body.get("generation_config"))
    names = ("responseJsonSchema", "response_json_schema", "responseSchema", "response_schema")
    return next((config[name] for name in names if isinstance(config.get(name), Mapping)), None)


def _check(endpoint: EndpointSettings, fix: str) -> Iterator[Check]:
    name = endpoint.name
    if not endpoint.api_key:
        yield Check(name, CheckState.ABSENT, "no key", fix)
        return
    where = f" at {redact(endpoint.api_base)}" if endpoint.api_base else ""
    yield Check(name, CheckState.OK, f"key is set (not tried){where}", route=f"{name}/{endpoint.model}")


@remember_last
def _read_settings(settings: LLMSettings) -> EndpointSettings:
    key = settings.gemini_api_key
    return EndpointSettings(
        name=LLMProvider.GEMINI,
        kind="gemini",
        model=settings.gemini_model,
        source="LLM_GEMINI_API_KEY",
        api_base=str(settings.gemini_api_base or ""),
        api_key=key.get_secret_value().strip() if key is not None else "",
        requests_per_minute=settings.gemini_requests_per_minute,
        tokens_per_minute=settings.gemini_tokens_per_minute,
    )


def _load_stream_form() -> StreamForm:
    # Imported here: only a streamed answer needs it.
    from llmkit.providers.gemini_stream import STREAM

    return STREAM


def _make_spec(
    read: ReadEndpoint,
    name: LLMProvider,
    label: str,
    hints: Mapping[str, str],
    profiles: frozenset[LLMProfile],
    telemetry_name: str | None,
    problem: Callable[[LLMSettings], str | None],
    fix: str,
) -> ProviderSpec:
    return ProviderSpec(
        provider=name,
        kind="gemini",
        label=label,
        caps=ProviderCaps(
            supports_tools=True,
            supports_json=True,
            supports_json_schema=True,
            max_context_tokens=CONTEXT_TOKENS,
            preferred_for_profiles=profiles,
            is_local=False,
            supports_images=True,
            supports_files=True,
            # Not in the list of https://ai.google.dev/api/generate-content for `responseJsonSchema`.
            unenforced_schema_keywords=frozenset({"pattern", "minLength", "maxLength"}),
        ),
        default_model=lambda settings: read(settings).model,
        context_tokens=lambda _settings, _model: CONTEXT_TOKENS,
        address=lambda settings: strip_credentials(_get_base(read(settings))),
        configuration_problem=problem,
        check=lambda settings, _server: _check(read(settings), fix),
        model_problem=_find_model_problem,
        call_arguments=lambda settings, route, request, _server: _build_call_arguments(read(settings), route, request),
        # Earlier models answer 400: "Function calling with a response mime type: 'application/json' is unsupported".
        calls_tools_beside_json=lambda model: not re.match(r"gemini-[012](\D|$)", model),
        reply_facts=_read_reply_facts,
        sent_schema=_find_schema,
        mend_reply=_mend_reply,
        secrets=lambda settings: (read(settings).api_key, *find_url_passwords(read(settings).api_base)),
        reports_cost=True,
        logprobs_depend_on_model=True,
        runs_elsewhere=lambda _model: True,
        per_minute=lambda settings: (read(settings).requests_per_minute, read(settings).tokens_per_minute),
        # Both by https://ai.google.dev/gemini-api/docs/rate-limits.
        answers_count=False,
        quota_zone="America/Los_Angeles",
        litellm_prefix=LITELLM_PREFIX,
        policy_ranks=make_policy_ranks(is_local=False),
        schema_fix="set LLM_GEMINI_MODEL=gemini-2.5-flash",
        telemetry_name=telemetry_name,
        hints=hints,
        stream=_load_stream_form,
    )


_PATH_HINT = " to its address, without the path of an API such as /v1"

SPEC = _make_spec(
    _read_settings,
    LLMProvider.GEMINI,
    "Gemini",
    {
        "set_up": "set LLM_GEMINI_API_KEY to a key from https://aistudio.google.com/apikey",
        "start": "check the network connection, or LLM_GEMINI_API_BASE if it is set",
        "key": "check LLM_GEMINI_API_KEY",
        "permission": "check what the key in LLM_GEMINI_API_KEY may do, and from where",
        "model": "check the name, or set LLM_GEMINI_MODEL to one that your key can use",
        "limit": "lower LLM_CONCURRENCY_LIMIT, or try again later",
        "address": "set LLM_GEMINI_API_BASE",
        "cut": "raise max_output_tokens, or ask for less",
        "logprobs": "use a model that has them",
        "path": f"set LLM_GEMINI_API_BASE{_PATH_HINT}",
    },
    frozenset({LLMProfile.QUALITY}),
    "gcp.gemini",
    lambda settings: None if _read_settings(settings).api_key else "no key: set LLM_GEMINI_API_KEY",
    "set LLM_GEMINI_API_KEY",
)


def _make_named_spec(endpoint: EndpointSettings) -> ProviderSpec:
    place = f"[endpoints.{endpoint.name}] of {endpoint.source}"
    hints = make_hints(
        endpoint,
        path=f"set api_base in {place}{_PATH_HINT}",
    )
    problem = find_key_problem(endpoint)
    if not endpoint.api_key_env:
        problem = f"{endpoint.place}, api_key_env: is missing; it names the variable with the key"
    return _make_spec(
        lambda _settings: endpoint,
        endpoint.name,
        str(endpoint.name),
        hints,
        endpoint.profiles,
        None,
        lambda _settings: problem,
        hints["key"],
    )


def _find_address_problem(address: str) -> str | None:
    if urlsplit(address).query:
        return "must not have a query (?); remove it"
    return "must end before /models; remove it" if "/models" in urlsplit(address).path else None


KIND = ProviderKind("gemini", _make_named_spec, _find_address_problem)
