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
    estimate_prompt_tokens,
    most_prompt_tokens,
    smallest_prompt_tokens,
    surely_exceeds,
)
from llmkit.types import LLMProvider

__all__ = [
    "PROVIDERS",
    "CallArguments",
    "ProviderSpec",
    "ReplyFacts",
    "answers_on_this_machine",
    "estimate_prompt_tokens",
    "most_prompt_tokens",
    "smallest_prompt_tokens",
    "surely_exceeds",
]

PROVIDERS: Mapping[LLMProvider, ProviderSpec] = MappingProxyType(
    {spec.provider: spec for spec in (ollama.SPEC, gemini.SPEC, local.SPEC)}
)
"""Every provider, in the order in which they are considered when nothing else decides."""
