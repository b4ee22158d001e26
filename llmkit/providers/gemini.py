"""Gemini, by Google's Generative Language API."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from llmkit.ports import Endpoint
from llmkit.providers.base import (
    CallArguments,
    ProviderSpec,
    ReplyFacts,
    build_openai_arguments,
    find_url_passwords,
    strip_credentials,
)
from llmkit.providers.checks import Check, CheckState, ServerState
from llmkit.redaction import redact
from llmkit.settings import LLMSettings
from llmkit.types import LLMProfile, LLMProvider, LLMRequest, ProviderCaps, Route

__all__ = ["SPEC"]

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


def _get_base(settings: LLMSettings) -> str:
    """Return the base address with its version, which LiteLLM leaves out for an address that is not Google's."""
    if settings.gemini_api_base is None:
        return DEFAULT_API_BASE
    base = str(settings.gemini_api_base).rstrip("/")
    return base if urlsplit(base).path else f"{base}/v1beta"


def _get_address(settings: LLMSettings) -> str:
    return strip_credentials(_get_base(settings))


def _get_key(settings: LLMSettings) -> str:
    return settings.gemini_api_key.get_secret_value().strip() if settings.gemini_api_key else ""


def _list_secrets(settings: LLMSettings) -> tuple[str, ...]:
    return tuple(
        secret for secret in (_get_key(settings), *find_url_passwords(str(settings.gemini_api_base or ""))) if secret
    )


def _find_model_problem(_settings: LLMSettings, model: str) -> str | None:
    # LiteLLM would call the model behind the prefix instead, over a connection that is not ours.
    if not model.startswith("responses/"):
        return None
    return f"Gemini has no model {model!r}: check the name; names begin with gemini-, gemma- or tunedModels/."


def _build_call_arguments(
    settings: LLMSettings, route: Route, request: LLMRequest, _endpoint: Endpoint | None
) -> CallArguments:
    own: dict[str, Any] = {
        "model": f"{LITELLM_PREFIX}/{route.model}",
        "api_base": _get_base(settings),
        "api_key": _get_key(settings),
    }
    thinking = None if request.thinking is None else _choose_thinking(route.model, wanted=request.thinking)
    if thinking is not None:
        own["extra_body"] = {"generationConfig": {"thinkingConfig": thinking}}
    return CallArguments(kwargs={**build_openai_arguments(request), **own}, address=_get_address(settings))


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


def _as_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _read_reply_facts(reply: Mapping[str, Any]) -> ReplyFacts:
    candidates = reply.get("candidates")
    candidate = _as_mapping(candidates[0]) if isinstance(candidates, list) and candidates else {}
    reason = str(candidate.get("finishReason") or "")
    prompt_blocked = _as_mapping(reply.get("promptFeedback")).get("blockReason")
    usage = _as_mapping(reply.get("usageMetadata"))
    return ReplyFacts(
        counts_reported=usage.get("promptTokenCount") is not None,
        blocked=_BLOCKING_REASONS.get(str(prompt_blocked), str(prompt_blocked))
        if prompt_blocked
        else _BLOCKING_REASONS.get(reason),
        ended_by=None
        if reason in _USUAL_REASONS or reason in _BLOCKING_REASONS
        else _OTHER_REASONS.get(reason, f"it stopped for {reason[:40]}"),
        unreadable=None if candidate else "the reply contains no candidate",
        prompt_tokens=usage.get("promptTokenCount"),
        error=_as_mapping(reply.get("error")).get("message"),
        model_version=reply.get("modelVersion") if isinstance(reply.get("modelVersion"), str) else None,
    )


def _mend_reply(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """Adapt a reply to what LiteLLM reads: it fails without counts, and without the arguments of a tool call."""
    usage = reply.get("usageMetadata")
    mended = {name: value for name, value in reply.items() if value is not None}
    mended["usageMetadata"] = (
        {name: count for name, count in usage.items() if count is not None} if isinstance(usage, Mapping) else {}
    )
    candidates = reply.get("candidates")
    if isinstance(candidates, list):
        mended["candidates"] = [_mend_candidate(candidate) for candidate in candidates]
    return mended if mended != reply else reply


def _mend_candidate(candidate: Any) -> Any:
    content = _as_mapping(candidate).get("content")
    if not isinstance(content, Mapping) or "parts" not in content:
        return candidate
    parts = content["parts"]
    mended = [_mend_part(part) for part in parts] if isinstance(parts, list) else parts or []
    return {**candidate, "content": {**content, "parts": mended}}


def _mend_part(part: Any) -> Any:
    call = part.get("functionCall") if isinstance(part, Mapping) else None
    if not isinstance(call, Mapping) or call.get("args") is not None:
        return part
    return {**part, "functionCall": {**call, "args": {}}}


def _find_schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    config = _as_mapping(body.get("generationConfig") or body.get("generation_config"))
    names = ("responseJsonSchema", "response_json_schema", "responseSchema", "response_schema")
    return next((config[name] for name in names if isinstance(config.get(name), Mapping)), None)


def _check(settings: LLMSettings, _server: ServerState | None) -> Iterator[Check]:
    if not _get_key(settings):
        yield Check("gemini", CheckState.ABSENT, "no key", "set LLM_GEMINI_API_KEY")
        return
    where = f" at {redact(str(settings.gemini_api_base))}" if settings.gemini_api_base else ""
    yield Check("gemini", CheckState.OK, f"key is set (not tried){where}", route=f"gemini/{settings.gemini_model}")


SPEC = ProviderSpec(
    provider=LLMProvider.GEMINI,
    label="Gemini",
    caps=ProviderCaps(
        supports_tools=True,
        supports_json=True,
        supports_json_schema=True,
        max_context_tokens=CONTEXT_TOKENS,
        preferred_for_profiles=frozenset({LLMProfile.QUALITY}),
        is_local=False,
        supports_images=True,
        supports_files=True,
        # Not in the list of https://ai.google.dev/api/generate-content for `responseJsonSchema`.
        unenforced_schema_keywords=frozenset({"pattern", "minLength", "maxLength"}),
    ),
    default_model=lambda settings: settings.gemini_model,
    context_tokens=lambda _settings, _model: CONTEXT_TOKENS,
    address=_get_address,
    configuration_problem=lambda settings: None if _get_key(settings) else "no key: set LLM_GEMINI_API_KEY",
    check=_check,
    model_problem=_find_model_problem,
    call_arguments=_build_call_arguments,
    # Earlier models answer 400: "Function calling with a response mime type: 'application/json' is unsupported".
    calls_tools_beside_json=lambda model: not re.match(r"gemini-[012](\D|$)", model),
    reply_facts=_read_reply_facts,
    sent_schema=_find_schema,
    mend_reply=_mend_reply,
    secrets=_list_secrets,
    reports_cost=True,
    runs_elsewhere=lambda _model: True,
    per_minute=lambda settings: (settings.gemini_requests_per_minute, settings.gemini_tokens_per_minute),
    # Both by https://ai.google.dev/gemini-api/docs/rate-limits.
    answers_count=False,
    quota_zone="America/Los_Angeles",
    litellm_prefix=LITELLM_PREFIX,
    policy_ranks={"by_profile": 1, "prefer_local": 2, "prefer_cloud": 0, "cheapest_known": 1},
    schema_fix="set LLM_GEMINI_MODEL=gemini-2.5-flash",
    telemetry_name="gcp.gemini",
    hints={
        "set_up": "set LLM_GEMINI_API_KEY to a key from https://aistudio.google.com/apikey",
        "start": "check the network connection, or LLM_GEMINI_API_BASE if it is set",
        "key": "check LLM_GEMINI_API_KEY",
        "permission": "check what the key in LLM_GEMINI_API_KEY may do, and from where",
        "model": "check the name, or set LLM_GEMINI_MODEL to one that your key can use",
        "limit": "lower LLM_CONCURRENCY_LIMIT, or try again later",
        "address": "set LLM_GEMINI_API_BASE",
        "cut": "raise max_output_tokens, or ask for less",
    },
)
