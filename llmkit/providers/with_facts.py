"""Providers whose call arguments use the facts about each model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llmkit.ports import Endpoint
from llmkit.providers.base import CallArguments, ProviderSpec
from llmkit.providers.model_facts import FactBook
from llmkit.settings import LLMSettings
from llmkit.types import LLMProvider, LLMRequest, Route

__all__ = ["add_model_facts"]


def add_model_facts(
    providers: Mapping[LLMProvider, ProviderSpec], facts: FactBook
) -> Mapping[LLMProvider, ProviderSpec]:
    """Return providers that limit the context window to the model's, and record the model's digest.

    A wish for any JSON is left out where a probe has shown that the model does not obey it.

    Args:
        providers: The providers to wrap.
        facts: Read again for every request.
    """
    return {name: _add_facts(spec, facts) for name, spec in providers.items()}


def _add_facts(spec: ProviderSpec, facts: FactBook) -> ProviderSpec:
    def call_arguments(
        settings: LLMSettings, route: Route, request: LLMRequest, endpoint: Endpoint | None
    ) -> CallArguments:
        known = facts.of(route)
        arguments = spec.call_arguments(settings, route, request, endpoint)
        # Some servers refuse the wish for any JSON (LM Studio), others ignore it: the prompt has to do.
        ignores_it = known.json_object is not None and not known.json_object.value
        if ignores_it and arguments.kwargs.get("response_format") == {"type": "json_object"}:
            kept = {name: value for name, value in arguments.kwargs.items() if name != "response_format"}
            arguments = replace(arguments, kwargs=kept)
        if known.context_tokens is not None:
            arguments = replace(arguments, model_context_tokens=known.context_tokens.value)
            if arguments.context_tokens is not None:
                arguments = spec.resize_window(arguments, arguments.context_tokens)
        return arguments if known.digest is None else replace(arguments, model_digest=known.digest.value)

    return replace(spec, call_arguments=call_arguments)
