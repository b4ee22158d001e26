"""LiteLLM, loaded once and quietly: its public call, and the inner parts of the pinned release that the fast path uses.

The only module that imports litellm, inside functions: importing it takes seconds.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - see `load_library`
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from threading import RLock
from typing import Any

from llmkit.settings import prepare_litellm_environment

__all__ = ["EXPECTED", "LOADING", "RELEASE", "Internals", "Library", "load_internals", "load_library", "surprises"]

RELEASE = "1.106.2"
"""The release whose inner parts are known."""

_UTILS = "litellm.utils"
_OLLAMA = "litellm.llms.ollama.chat.transformation:OllamaChatConfig"
_VLLM = "litellm.llms.hosted_vllm.chat.transformation:HostedVLLMChatConfig"
_GEMINI = "litellm.llms.gemini.chat.transformation:GoogleAIStudioGeminiConfig"
_VERTEX = "litellm.llms.vertex_ai.vertex_llm_base:VertexBase"
_GEMINI_BODY = "litellm.llms.vertex_ai.gemini.transformation:transform_request_body"
_HEADERS = "litellm.llms.custom_httpx.http_handler:get_default_headers"
_RESPONSE = "litellm.types.utils:ModelResponse"
_COST = "litellm.cost_calculator:completion_cost"
_FIX_MESSAGES = f"{_UTILS}:validate_and_fix_openai_messages"
_FIX_STOP = f"{_UTILS}:validate_openai_optional_params"
_IS_GEMINI = f"{_UTILS}:_is_gemini_model"
_WITHOUT_SIGNATURES = f"{_UTILS}:_remove_thought_signatures_from_messages"

_MAP = ("self", "non_default_params", "optional_params", "model", "drop_params")
_ENVIRONMENT = ("self", "headers", "model", "messages", "optional_params", "litellm_params", "api_key", "api_base")
_URL = ("self", "api_base", "api_key", "model", "optional_params", "litellm_params", "stream")
_REQUEST = ("self", "model", "messages", "optional_params", "litellm_params", "headers")
_REPLY = (
    "self", "model", "raw_response", "model_response", "logging_obj", "request_data", "messages", "optional_params",
    "litellm_params", "encoding", "api_key", "json_mode",
)  # fmt: skip

EXPECTED: dict[str, tuple[str, ...]] = {
    **{
        f"{config}.{method}": parameters
        for config in (_OLLAMA, _VLLM)
        for method, parameters in {
            "map_openai_params": _MAP,
            "validate_environment": _ENVIRONMENT,
            "get_complete_url": _URL,
            "transform_request": _REQUEST,
            "transform_response": _REPLY,
        }.items()
    },
    f"{_GEMINI}.map_openai_params": _MAP,
    f"{_GEMINI}.validate_environment": _ENVIRONMENT,
    f"{_GEMINI}.transform_response": _REPLY,
    f"{_VERTEX}.get_token_and_url": (
        "self", "model", "auth_header", "gemini_api_key", "vertex_project", "vertex_location", "vertex_credentials",
        "stream", "custom_llm_provider", "api_base", "should_use_v1beta1_features", "mode", "use_psc_endpoint_format",
    ),
    _GEMINI_BODY: ("messages", "model", "optional_params", "custom_llm_provider", "litellm_params", "cached_content"),
    _HEADERS: (),
    _FIX_MESSAGES: ("messages",),
    _FIX_STOP: ("stop", "kwargs"),
    _IS_GEMINI: ("model", "custom_llm_provider"),
    _WITHOUT_SIGNATURES: ("messages", "thought_signature_separator"),
}  # fmt: skip
"""Functions of LiteLLM that the fast path calls, and the parameters that they have in `RELEASE`."""


@dataclass(frozen=True, slots=True)
class Library:
    """The public parts of litellm that are used."""

    acompletion: Callable[..., Awaitable[Any]]
    http_handler: Callable[..., Any]
    model_cost: dict[str, Any]
    internal_call: Any


@dataclass(frozen=True, slots=True)
class Internals:
    """The inner parts of litellm that the fast path is made of. None of them talks to anyone."""

    ollama: Any
    gemini: Any
    openai: Any
    gemini_address: Callable[..., tuple[dict[str, str], str]]
    gemini_body: Callable[..., dict[str, Any]]
    default_headers: Mapping[str, str]
    fix_messages: Callable[..., list[dict[str, Any]]]
    fix_stop: Callable[..., Any]
    is_gemini: Callable[[str, str], bool]
    without_signatures: Callable[..., list[dict[str, Any]]]
    signature_separator: str
    response: Callable[[], Any]
    cost: Callable[..., float]
    model_cost: Mapping[str, Any]


_library: Library | None = None
LOADING = RLock()
"""Held while litellm is imported and tried."""


def load_library() -> Library:
    """Import litellm, once per process, quiet and without its network habits. Takes 3 to 6 s the first time."""
    global _library  # noqa: PLW0603
    if _library is not None:
        return _library
    with LOADING:
        if _library is None:
            # A child forked from the middle of an import would wait for ever for its locks: forks wait instead. What
            # the import itself registers meanwhile is undone and was never done, so the one that does is loaded before.
            release = LOADING.release
            os.register_at_fork(before=LOADING.acquire, after_in_parent=release, after_in_child=release)
            _library = _import_library()
        return _library


def _import_library() -> Library:
    prepare_litellm_environment()
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
        # At DEBUG it logs whole prompts, it switches propagation on by itself, and it logs while it is imported.
        logging.getLogger(name).disabled = True
    import litellm
    from litellm._internal_context import is_internal_call
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler

    litellm.suppress_debug_info = True
    return Library(litellm.acompletion, AsyncHTTPHandler, litellm.model_cost, is_internal_call)


def load_internals() -> Internals:
    """Return the inner parts, once `surprises` found nothing."""
    load_library()
    return Internals(
        ollama=_part(_OLLAMA)(),
        gemini=_part(_GEMINI)(),
        openai=_part(_VLLM)(),
        gemini_address=_part(_VERTEX)().get_token_and_url,
        gemini_body=_part(_GEMINI_BODY),
        default_headers=_part(_HEADERS)(),
        fix_messages=_part(_FIX_MESSAGES),
        fix_stop=_part(_FIX_STOP),
        is_gemini=_part(_IS_GEMINI),
        without_signatures=_part(_WITHOUT_SIGNATURES),
        signature_separator=_part("litellm.litellm_core_utils.prompt_templates.factory:THOUGHT_SIGNATURE_SEPARATOR"),
        response=_part(_RESPONSE),
        cost=_part(_COST),
        model_cost=_part("litellm:model_cost"),
    )


def surprises() -> tuple[str, ...]:
    """List differences from `RELEASE`: its version, missing functions, and changed parameters."""
    load_library()
    version = _part("litellm._version:version")
    changed = [name.partition(":")[2] for name, parameters in EXPECTED.items() if _parameters(name) != parameters]
    return (*([f"release {version}"] if version != RELEASE else []), *(f"{name} has changed" for name in changed))


def _parameters(name: str) -> tuple[str, ...] | None:
    try:
        return tuple(signature(_part(name)).parameters)
    except (ImportError, AttributeError, TypeError, ValueError):
        return None


def _part(name: str) -> Any:
    module, _, path = name.partition(":")
    value: Any = import_module(module)
    for step in path.split("."):
        value = getattr(value, step)
    return value
