"""Rules that exclude routes from a request, in order, each with its consequence.

Pure functions: the circuit breaker, which changes with time, is the planner's.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

from llmkit.errors import LLMConfigurationError, LLMContextOverflow, LLMError, LLMNoRoute, LLMUnsupported
from llmkit.providers import ProviderSpec, surely_exceeds
from llmkit.providers.model_facts import Fact, ModelFacts
from llmkit.settings import LLMSettings
from llmkit.types import LLMRequest, ProviderCaps, Route

__all__ = ["OPEN_TO_FACTS", "Case", "Exclusion", "Kind", "Page", "first_exclusion", "make_pinned_error"]


class Kind(Enum):
    """Kind of exclusion; it decides which error is raised if no route is left."""

    CONFIGURATION = auto()
    CONSTRAINT = auto()
    CAPABILITY = auto()
    WINDOW = auto()
    COOLING = auto()


OPEN_TO_FACTS = frozenset({Kind.CAPABILITY, Kind.WINDOW})
"""More facts may lift them, or bring them about; nothing else that keeps a route out depends on its model."""


class Exclusion(NamedTuple):
    """One reason against a route."""

    kind: Kind
    why: str


class Page(NamedTuple):
    """Consequences of the facts about one route, valid until the facts change."""

    facts: ModelFacts
    caps: ProviderCaps
    text: str


class Case(NamedTuple):
    """One route and one request.

    Attributes:
        problem: Why the provider cannot be called at all, or None.
        on_this_machine: Whether a request to the provider stays on this machine.
    """

    settings: LLMSettings
    spec: ProviderSpec
    route: Route
    request: LLMRequest
    page: Page
    problem: str | None
    on_this_machine: bool

    @property
    def is_pinned(self) -> bool:
        """Whether the caller named this very model."""
        return self.request.route is not None


def first_exclusion(case: Case) -> Exclusion | None:
    """Return the first reason against a route, or None. Constraints come first, since nothing can lift them."""
    for kind, rule in _RULES:
        why = rule(case)
        if why is not None:
            return Exclusion(kind, why)
    return None


def _answers_elsewhere(case: Case) -> str | None:
    if not case.request.constraints.local_only or case.on_this_machine:
        return None
    return f"local_only, and {case.route.provider} answers at {case.spec.address(case.settings)}"


def _is_computed_elsewhere(case: Case) -> str | None:
    if not case.request.constraints.local_only or not case.spec.runs_elsewhere(case.route.model):
        return None
    return f"local_only, and {case.route.model} runs in the cloud of {case.route.provider}"


def _is_not_allowed(case: Case) -> str | None:
    allowed = case.request.constraints.allowed_providers
    if allowed is None or case.route.provider in allowed:
        return None
    return f"allowed_providers leaves {case.route.provider} out"


def _has_a_smaller_window_than_wanted(case: Case) -> str | None:
    fact, wanted = case.page.facts.context_tokens, case.request.constraints.min_context_tokens
    if fact is None or wanted is None or fact.value >= wanted:
        return None
    return f"its context window of {fact.value} tokens is below {wanted}"


def _has_no_room_for_the_prompt(case: Case) -> str | None:
    fact = case.page.facts.context_tokens
    # A pinned provider whose window is only declared gets the request: it rejects a prompt that is too long itself.
    if fact is None or (case.is_pinned and fact.source == "declared"):
        return None
    if not surely_exceeds(case.request, fact.value):
        return None
    return f"the prompt is longer than its context window of {fact.value} tokens"


def _cannot_call_tools(case: Case) -> str | None:
    if not case.request.tools or case.page.caps.supports_tools:
        return None
    if case.page.facts.tools is not None:
        return f"it cannot call tools{_source(case.page.facts.tools)}"
    return None if case.is_pinned else "whether it can call tools depends on the model; pin it to try"


def _cannot_read_documents(case: Case) -> str | None:
    if case.page.caps.supports_files or all(each.is_image for each in case.request.attachments):
        return None
    return "it cannot read documents"


def _cannot_see_images(case: Case) -> str | None:
    if case.page.caps.supports_images or not any(each.is_image for each in case.request.attachments):
        return None
    if case.page.facts.images is not None:
        return f"it cannot see images{_source(case.page.facts.images)}"
    return None if case.is_pinned else "whether it can see images depends on the model; pin it to try"


def _cannot_read_this_kind(case: Case) -> str | None:
    kinds: set[str] = {each.media_type for each in case.request.attachments}
    unread = sorted(case.spec.unread_media_types & kinds)
    return f"it cannot read {', '.join(unread)}; convert it to PNG or JPEG" if unread else None


def _cannot_write_json(case: Case) -> str | None:
    wanted = case.request.response_format
    if wanted is None or wanted.json_schema is not None or case.page.caps.supports_json:
        return None
    return "it cannot be asked for JSON"


def _cannot_be_held_to_a_schema(case: Case) -> str | None:
    wanted = case.request.response_format
    if wanted is None or wanted.json_schema is None or case.page.caps.supports_json_schema:
        return None
    return f"it cannot be constrained to a schema{_source(case.page.facts.json_schema)}"


def _cannot_call_tools_beside_json(case: Case) -> str | None:
    both = case.request.response_format is not None and bool(case.request.tools)
    known = case.page.facts.tools_with_schema
    can = case.spec.calls_tools_beside_json(case.route.model) if known is None else known.value
    return f"it cannot call tools in a request that asks for JSON{_source(known)}" if both and not can else None


def _takes_no_seed(case: Case) -> str | None:
    if case.request.seed is None or case.page.caps.supports_seed:
        return None
    return "it takes no seed"


def _sends_no_logprobs(case: Case) -> str | None:
    if not case.request.logprobs or case.page.caps.supports_logprobs:
        return None
    if case.page.facts.logprobs is not None or not case.spec.logprobs_depend_on_model:
        return f"it sends no log-probabilities{_source(case.page.facts.logprobs)}"
    return None if case.is_pinned else "whether it sends log-probabilities depends on the model; pin it to try"


def _is_not_set_up(case: Case) -> str | None:
    return case.problem


def _source(fact: Fact[bool] | None) -> str:
    """Name the source of a fact, unless it is declared for the whole provider."""
    return "" if fact is None or fact.source == "declared" else f" ({fact.source})"


_RULES: tuple[tuple[Kind, Callable[[Case], str | None]], ...] = (
    (Kind.CONSTRAINT, _answers_elsewhere),
    (Kind.CONSTRAINT, _is_computed_elsewhere),
    (Kind.CONSTRAINT, _is_not_allowed),
    (Kind.CONSTRAINT, _has_a_smaller_window_than_wanted),
    (Kind.WINDOW, _has_no_room_for_the_prompt),
    (Kind.CAPABILITY, _cannot_call_tools),
    (Kind.CAPABILITY, _cannot_read_documents),
    (Kind.CAPABILITY, _cannot_see_images),
    (Kind.CAPABILITY, _cannot_read_this_kind),
    (Kind.CAPABILITY, _cannot_write_json),
    (Kind.CAPABILITY, _cannot_be_held_to_a_schema),
    (Kind.CAPABILITY, _cannot_call_tools_beside_json),
    (Kind.CAPABILITY, _takes_no_seed),
    (Kind.CAPABILITY, _sends_no_logprobs),
    (Kind.CONFIGURATION, _is_not_set_up),
)

_PINNED_ERRORS: dict[Kind, tuple[type[LLMError], str]] = {
    Kind.CONFIGURATION: (LLMConfigurationError, "{label} cannot be called: {why}"),
    Kind.WINDOW: (
        LLMContextOverflow,
        "{route} cannot take this request: {why}; nothing was sent. Shorten it, or use a model with a larger one.",
    ),
    Kind.CAPABILITY: (LLMUnsupported, "{route} cannot take this request: {why}."),
    Kind.CONSTRAINT: (LLMNoRoute, "The pinned route {route} breaks a constraint of the request: {why}."),
}


def make_pinned_error(exclusion: Exclusion, route: Route, spec: ProviderSpec) -> LLMError:
    """Return the error for a pinned route that is excluded, except by the circuit breaker."""
    error, message = _PINNED_ERRORS[exclusion.kind]
    text = message.format(label=spec.label, route=route, why=exclusion.why)
    return error(text, provider=route.provider, model=route.model)
