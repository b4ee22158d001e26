"""LiteLLM, loaded once and quietly: its public call, and the inner parts of the pinned release that the fast path uses.

The only module that imports litellm, inside functions: importing it takes seconds.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 - see `load_library`
import logging
import os
import warnings
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from inspect import signature
from threading import RLock, get_ident
from typing import Any

from llmkit.batch.loading import note_loading
from llmkit.settings import prepare_litellm_environment
from llmkit.transport.http.exchange import current_exchange

__all__ = [
    "EXPECTED",
    "LOADING",
    "RELEASE",
    "Internals",
    "Library",
    "load_internals",
    "load_library",
    "mute_warnings",
    "surprises",
]

RELEASE = "1.106.2"
"""The release whose inner parts are known."""

_UTILS = "litellm.utils"
_OLLAMA = "litellm.llms.ollama.chat.transformation:OllamaChatConfig"
_VLLM = "litellm.llms.hosted_vllm.chat.transformation:HostedVLLMChatConfig"
_GEMINI = "litellm.llms.gemini.chat.transformation:GoogleAIStudioGeminiConfig"
_OPENAI = "litellm.llms.openai.chat.gpt_transformation:OpenAIGPTConfig"
_OPENAI_CONFIG = f"{_UTILS}:ProviderConfigManager.get_provider_chat_config"
_OPENAI_REPLY = (
    "litellm.litellm_core_utils.llm_response_utils.convert_dict_to_response:convert_to_model_response_object"
)
_SDK = "openai:AsyncOpenAI"
_SDK_OPTIONS = "openai._models:FinalRequestOptions"
_SDK_COMPLETION = "openai.types.chat:ChatCompletion"
_SDK_READ = "openai._models:construct_type"
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
    f"{_OPENAI}.map_openai_params": _MAP,
    f"{_OPENAI}.get_supported_openai_params": ("self", "model"),
    f"{_OPENAI}.transform_request": _REQUEST,
    _OPENAI_CONFIG: ("model", "provider", "base_model"),
    _OPENAI_REPLY: (
        "response_object", "model_response_object", "response_type", "stream", "start_time", "end_time",
        "hidden_params", "_response_headers", "convert_tool_call_to_json_mode",
    ),
    f"{_SDK}._build_request": ("self", "options", "retries_taken"),
    f"{_SDK}.post": ("self", "path", "cast_to", "body", "content", "files", "options", "stream", "stream_cls"),
    _SDK_READ: ("value", "type_", "metadata"),
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
    openai_client: Callable[..., Any]
    calls_openai_client: frozenset[str]


@dataclass(frozen=True, slots=True)
class Internals:
    """The inner parts of litellm that the fast path is made of. None of them talks to anyone."""

    ollama: Any
    gemini: Any
    vllm: Any
    openai_config: Callable[..., Any]
    openai_reply: Callable[..., Any]
    openai_client: Callable[..., Any]
    openai_options: Callable[..., Any]
    openai_parse: Callable[..., Any]
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
            with note_loading("LiteLLM"):
                _library = _import_library()
        return _library


def _import_library() -> Library:
    prepare_litellm_environment()
    for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy", "openai._base_client"):
        # At DEBUG they log whole prompts; LiteLLM switches propagation on by itself, and logs while it is imported.
        logging.getLogger(name).disabled = True
    # It logs whole addresses, of which a password may be a part; what is not llmkit's stays as it is.
    logging.getLogger("httpx").addFilter(lambda _record: current_exchange.get(None) is None)
    with mute_warnings():
        import litellm
        from litellm._internal_context import is_internal_call
        from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler
    from openai import AsyncOpenAI

    litellm.suppress_debug_info = True
    return Library(
        acompletion=litellm.acompletion,
        http_handler=AsyncHTTPHandler,
        model_cost=litellm.model_cost,
        internal_call=is_internal_call,
        openai_client=AsyncOpenAI,
        calls_openai_client=frozenset({"openai", "custom_openai", *litellm.openai_compatible_providers} - OWN_HANDLERS),
    )


# LiteLLM lists these as compatible with OpenAI, but calls them through its own HTTP handler. Given OpenAI's client it
# makes a handler of its own, whose requests leave past our pool: without a record, and through proxies of the
# environment. Read from the order of the branches in `litellm.main.completion`; the tests of the local model notice.
OWN_HANDLERS = frozenset(
    (
        "azure_ai",
        "cometapi",
        "deepseek",
        "edenai",
        "fireworks_ai",
        "groq",
        "hosted_vllm",
        "ragflow",
        "together_ai",
        "xai",
    )
)


@contextmanager
def mute_warnings() -> Iterator[None]:
    """Drop the warnings of this thread inside the block.

    LiteLLM and what it loads add filters against their own warnings, but filters belong to the whole process: another
    thread that leaves `warnings.catch_warnings` during this import, as tests do all the time, takes them away again.
    The warnings then reach the user, or, where warnings are errors, break the import off, and half of LiteLLM stays
    loaded for ever.
    """
    real, mine = warnings.warn, get_ident()

    def warn(*arguments: Any, **options: Any) -> None:
        if warnings.warn is not warn or get_ident() != mine:
            real(*arguments, **{**options, "stacklevel": options.get("stacklevel", 1) + 1})

    warnings.warn = warn
    try:
        yield
    finally:
        warnings.warn = real


def load_internals() -> Internals:
    """Return the inner parts, once `surprises` found nothing."""
    load_library()
    return Internals(
        ollama=_part(_OLLAMA)(),
        gemini=_part(_GEMINI)(),
        vllm=_part(_VLLM)(),
        openai_config=partial(_part(_OPENAI_CONFIG), provider=_part("litellm:LlmProviders").OPENAI),
        openai_reply=_part(_OPENAI_REPLY),
        openai_client=_part(_SDK),
        openai_options=_part(_SDK_OPTIONS).construct,
        openai_parse=partial(_part(_SDK_READ), type_=_part(_SDK_COMPLETION)),
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
