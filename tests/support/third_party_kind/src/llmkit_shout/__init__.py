"""A kind for servers that speak Chat Completions and know neither tools nor schemas."""

from collections.abc import Iterator, Mapping
from typing import Any

from llmkit.providers import (
    CallArguments,
    EndpointSettings,
    ProviderKind,
    ProviderSpec,
    ReplyFacts,
    build_openai_arguments,
    find_key_problem,
    make_hints,
    make_policy_ranks,
)
from llmkit.providers.checks import Check, CheckState
from llmkit.types import LLMRequest, ProviderCaps, Route

__all__ = ["KIND"]


def make_spec(endpoint: EndpointSettings) -> ProviderSpec:
    """Describe one endpoint of this kind."""
    problem = find_key_problem(endpoint)

    def build_call_arguments(_settings: Any, route: Route, request: LLMRequest, _server: Any) -> CallArguments:
        own = {
            "model": f"openai/{route.model}",
            "api_base": endpoint.api_base,
            "api_key": endpoint.api_key or "none",
            "extra_headers": {"X-Shout": "loud", **endpoint.headers},
        }
        return CallArguments(
            kwargs={**build_openai_arguments(request), **own},
            address=endpoint.api_base,
            send_key=bool(endpoint.api_key),
        )

    def check(_settings: Any, _state: Any) -> Iterator[Check]:
        route = f"{endpoint.name}/{endpoint.model}"
        yield Check(endpoint.name, CheckState.OK, f"shouts at {endpoint.api_base}", route=route)

    return ProviderSpec(
        provider=endpoint.name,
        kind="shout",
        label=f"Shout ({endpoint.name})",
        caps=ProviderCaps(
            supports_tools=False,
            supports_json=False,
            supports_json_schema=False,
            max_context_tokens=8192,
            preferred_for_profiles=endpoint.profiles,
            is_local=bool(endpoint.local),
        ),
        default_model=lambda _settings: endpoint.model,
        context_tokens=lambda _settings, _model: 8192,
        address=lambda _settings: endpoint.api_base,
        configuration_problem=lambda _settings: problem,
        check=check,
        call_arguments=build_call_arguments,
        reply_facts=_read_reply_facts,
        sent_schema=lambda _body: None,
        secrets=lambda _settings: (endpoint.api_key,),
        per_minute=lambda _settings: (endpoint.requests_per_minute, endpoint.tokens_per_minute),
        runs_elsewhere=lambda _model: not endpoint.local,
        litellm_prefix="openai",
        policy_ranks=make_policy_ranks(is_local=bool(endpoint.local)),
        schema_fix="use another kind",
        hints=make_hints(endpoint),
    )


def _read_reply_facts(reply: Mapping[str, Any]) -> ReplyFacts:
    usage = reply.get("usage") or {}
    return ReplyFacts(counts_reported="prompt_tokens" in usage, prompt_tokens=usage.get("prompt_tokens"))


def _find_address_problem(address: str) -> str | None:
    return None if address else "is missing; this kind has no address of its own"


KIND = ProviderKind("shout", make_spec, _find_address_problem)
