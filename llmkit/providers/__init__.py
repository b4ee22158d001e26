"""Providers: settings and request in, call arguments out. Pure translation; nothing here routes or talks to anyone.

Another package adds a kind through the entry point group `llmkit.providers`: each entry point is a `ProviderKind`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from llmkit.endpoints.tables import EndpointSettings, suggest_name
from llmkit.errors import LLMBadRequest, LLMConfigurationError, LLMError
from llmkit.ports import Endpoint
from llmkit.providers import anthropic, gemini, local, ollama, openai
from llmkit.providers.base import (
    CallArguments,
    ProviderKind,
    ProviderSpec,
    ReplyFacts,
    TokenLogprob,
    answers_on_this_machine,
    build_openai_arguments,
    find_key_problem,
    list_capabilities,
    make_hints,
    make_policy_ranks,
)
from llmkit.providers.prompt_tokens import (
    compute_max_prompt_tokens,
    compute_min_prompt_tokens,
    count_words,
    estimate_prompt_tokens,
    surely_exceeds,
)
from llmkit.settings import LLMSettings, describe_unused_key
from llmkit.types import LLMProvider, LLMRequest, Route

__all__ = [
    "BUILT_IN",
    "ENTRY_POINT_GROUP",
    "KINDS",
    "PROVIDERS",
    "TELEMETRY_NAMES",
    "CallArguments",
    "EndpointSettings",
    "ProviderKind",
    "ProviderSpec",
    "ReplyFacts",
    "TokenLogprob",
    "answers_on_this_machine",
    "build_openai_arguments",
    "collect_secrets",
    "compute_max_prompt_tokens",
    "compute_min_prompt_tokens",
    "count_words",
    "estimate_prompt_tokens",
    "explain_unknown_endpoint",
    "find_key_problem",
    "list_capabilities",
    "load_endpoints",
    "make_absent_spec",
    "make_hints",
    "make_policy_ranks",
    "surely_exceeds",
]

PROVIDERS: Mapping[LLMProvider, ProviderSpec] = MappingProxyType(
    {spec.provider: spec for spec in (ollama.SPEC, gemini.SPEC, local.SPEC)}
)
"""Endpoints that are always there, in the order in which they are considered when nothing else decides."""

_WITH_A_KEY: Mapping[LLMProvider, ProviderSpec] = MappingProxyType(
    {spec.provider: spec for spec in (openai.SPEC, anthropic.SPEC)}
)

BUILT_IN: Mapping[LLMProvider, ProviderSpec] = MappingProxyType({**PROVIDERS, **_WITH_A_KEY})
"""All endpoints that llmkit brings: those above, and those that are there as soon as they have a key."""

KINDS: Mapping[str, ProviderKind] = MappingProxyType(
    {kind.name: kind for kind in (openai.KIND, anthropic.KIND, ollama.KIND, gemini.KIND)}
)
"""Kinds that llmkit brings, by name."""

ENTRY_POINT_GROUP = "llmkit.providers"

TELEMETRY_NAMES: Mapping[str, str] = MappingProxyType(
    {str(name): spec.telemetry_name for name, spec in BUILT_IN.items() if spec.telemetry_name is not None}
)
"""Providers whose name in telemetry differs from their own."""


def collect_secrets(settings: LLMSettings) -> tuple[str, ...]:
    """Return every key and password that any provider is given, for masking. A recorded text may quote any of them."""
    specs = {**BUILT_IN, **load_endpoints(settings)}.values()
    return tuple(dict.fromkeys(secret for spec in specs for secret in spec.secrets(settings) if secret))


def load_endpoints(settings: LLMSettings) -> Mapping[LLMProvider, ProviderSpec]:
    """Return the spec of every endpoint of these settings: the built-in ones first, then the user's.

    Raises:
        LLMConfigurationError: A table names an unknown kind, or an address that its kind cannot have.
    """
    found = dict(PROVIDERS)
    found |= {name: spec for name, spec in _WITH_A_KEY.items() if spec.configuration_problem(settings) is None}
    for endpoint in settings.endpoints.values():
        own = BUILT_IN.get(endpoint.name)
        if own is not None and (own.kind != endpoint.kind or own.kind not in KINDS):
            raise LLMConfigurationError(f"{endpoint.place}: {endpoint.name} is built in; choose another name")
        kind = KINDS.get(endpoint.kind) or _load_kind(endpoint)
        problem = kind.find_address_problem(endpoint.api_base)
        if problem is not None:
            raise LLMConfigurationError(endpoint.describe_problem("api_base", problem))
        found[endpoint.name] = kind.make_spec(endpoint)
    return MappingProxyType(found)


def _load_kind(endpoint: EndpointSettings) -> ProviderKind:
    """Return a kind of another package. Only here are entry points looked for, which reads every package's metadata."""
    from importlib.metadata import entry_points

    offered = {each.name: each for each in entry_points(group=ENTRY_POINT_GROUP)}
    if endpoint.kind not in offered:
        known = tuple({**KINDS, **offered})
        raise LLMConfigurationError(
            endpoint.describe_problem("kind", f"unknown kind {endpoint.kind!r}; {suggest_name(endpoint.kind, known)}")
        )
    try:
        kind = offered[endpoint.kind].load()
    except Exception as error:  # the code of another package  # noqa: BLE001
        package = getattr(offered[endpoint.kind].dist, "name", "its package")
        raise LLMConfigurationError(
            endpoint.describe_problem("kind", f"{package} cannot be loaded ({type(error).__name__}); reinstall it")
        ) from None
    if not isinstance(kind, ProviderKind):
        raise LLMConfigurationError(
            endpoint.describe_problem(
                "kind", f"{endpoint.kind} is not a llmkit.providers.ProviderKind; update its package"
            )
        )
    return kind


def make_absent_spec(route: Route) -> ProviderSpec:
    """Return the spec of an endpoint that is in a recording and no longer in the settings.

    Nothing can be sent to it; it can do whatever it did when it was recorded.
    """
    source = "a recording"
    endpoint = EndpointSettings(route.provider, "openai", route.model, source, api_base="http://removed.invalid")
    spec = openai.KIND.make_spec(endpoint)
    caps = spec.caps.model_copy(update={"supports_images": True, "supports_files": True})
    return replace(
        BUILT_IN.get(route.provider, spec),
        caps=caps,
        default_model=lambda _settings: route.model,
        call_arguments=_refuse_call,
    )


def _refuse_call(_settings: LLMSettings, route: Route, _request: LLMRequest, _server: Endpoint | None) -> CallArguments:
    raise LLMConfigurationError(f"{route.provider} is in a recording only, and cannot be called")


def explain_unknown_endpoint(
    name: LLMProvider, endpoints: Mapping[LLMProvider, ProviderSpec], settings: LLMSettings
) -> LLMError:
    """Return the error for a route to an endpoint that does not exist, with the name that was probably meant."""
    built_in = BUILT_IN.get(name)
    if built_in is not None:
        problem = built_in.configuration_problem(settings)
        hint = describe_unused_key(settings, is_refused=False)
        return LLMConfigurationError(
            f"{built_in.label} cannot be called: {problem}{f'. {hint}' if hint is not None else ''}", provider=name
        )
    known = tuple(map(str, endpoints))
    return LLMBadRequest(f"unknown endpoint {str(name)!r}; {suggest_name(str(name), known)}")
