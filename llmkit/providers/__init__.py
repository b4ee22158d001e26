"""Providers: settings and request in, call arguments out. Pure translation; nothing here routes or talks to anyone."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from llmkit.providers import gemini, local, ollama
from llmkit.providers.base import (
    CallArguments,
    ProviderSpec,
    ReplyFacts,
    answers_on_this_machine,
)
from llmkit.providers.prompt_tokens import (
    compute_max_prompt_tokens,
    compute_min_prompt_tokens,
    count_words,
    estimate_prompt_tokens,
    surely_exceeds,
)
from llmkit.settings import LLMSettings
from llmkit.types import LLMProvider

__all__ = [
    "PROVIDERS",
    "TELEMETRY_NAMES",
    "CallArguments",
    "ProviderSpec",
    "ReplyFacts",
    "answers_on_this_machine",
    "collect_secrets",
    "compute_max_prompt_tokens",
    "compute_min_prompt_tokens",
    "count_words",
    "estimate_prompt_tokens",
    "surely_exceeds",
]

PROVIDERS: Mapping[LLMProvider, ProviderSpec] = MappingProxyType(
    {spec.provider: spec for spec in (ollama.SPEC, gemini.SPEC, local.SPEC)}
)
"""Every provider, in the order in which they are considered when nothing else decides."""

TELEMETRY_NAMES: Mapping[str, str] = MappingProxyType(
    {str(name): spec.telemetry_name for name, spec in PROVIDERS.items() if spec.telemetry_name is not None}
)
"""Providers whose name in telemetry differs from their own."""


def collect_secrets(settings: LLMSettings) -> tuple[str, ...]:
    """Return every key and password that any provider is given, for masking. A recorded text may quote any of them."""
    return tuple(secret for spec in PROVIDERS.values() for secret in spec.secrets(settings) if secret)
