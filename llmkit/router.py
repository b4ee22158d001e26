"""Which route answers a request: a plan that is pure and can be shown, and the walk along it when routes fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from llmkit.errors import (
    LLMAllRoutesFailed,
    LLMConfigurationError,
    LLMContextOverflow,
    LLMError,
    LLMNoRoute,
    LLMQuotaExhausted,
    LLMUnavailable,
    LLMUnsupported,
)
from llmkit.facts import Fact, FactBook, ModelFacts, declared_facts
from llmkit.outages import Outage, Outages
from llmkit.ports import AttemptLog, ClientReply, ModelClient
from llmkit.providers import PROVIDERS, ProviderSpec, answers_on_this_machine, surely_exceeds
from llmkit.settings import LLMSettings, RouterPolicy
from llmkit.types import (
    LLMConstraints,
    LLMProvider,
    LLMRequest,
    PlanEntry,
    ProviderCaps,
    Route,
    RoutePlan,
)

__all__ = ["PROVIDER_CAPABILITIES", "LLMRouter", "Routed", "plan_as_json"]

PROVIDER_CAPABILITIES: dict[LLMProvider, ProviderCaps] = {name: spec.caps for name, spec in PROVIDERS.items()}
"""What each provider can do, as declared. LiteLLM's own flags are wrong for Ollama."""

_ORDER: Mapping[RouterPolicy, tuple[LLMProvider, ...]] = {
    "by_profile": (LLMProvider.OLLAMA, LLMProvider.GEMINI, LLMProvider.LOCAL),
    "prefer_local": (LLMProvider.OLLAMA, LLMProvider.LOCAL, LLMProvider.GEMINI),
    "prefer_cloud": (LLMProvider.GEMINI, LLMProvider.OLLAMA, LLMProvider.LOCAL),
    # Of equal ones, the order of by_profile.
    "cheapest_known": (LLMProvider.OLLAMA, LLMProvider.GEMINI, LLMProvider.LOCAL),
}
_REASONS: Mapping[RouterPolicy, str] = {
    "by_profile": "order of policy by_profile",
    "prefer_local": "policy prefer_local",
    "prefer_cloud": "policy prefer_cloud",
    "cheapest_known": "policy cheapest_known: its price is not known",
}
_FREE = "policy cheapest_known: it charges nothing"
_LAST_RESORT = "small base model, last resort"
PINNED = "pinned"


@dataclass(frozen=True, slots=True)
class Routed:
    """An answer, who gave it, and the way there.

    Attributes:
        plan_record: `plan_as_json` of the plan and of the failures before this answer.
    """

    reply: ClientReply
    route: Route
    plan: RoutePlan
    plan_record: dict[str, Any]


class _Kind(Enum):
    """Why a route is passed over; it decides which error says so when nothing is left."""

    CONFIGURATION = auto()
    CONSTRAINT = auto()
    CAPABILITY = auto()
    WINDOW = auto()
    COOLING = auto()


# More facts may lift them, or bring them about; nothing else that keeps a route out depends on its model.
_OPEN_TO_FACTS = frozenset({_Kind.CAPABILITY, _Kind.WINDOW})


@dataclass(frozen=True, slots=True)
class _Page:
    """What the router has made of the facts of one route, for as long as the book stays as it is."""

    facts: ModelFacts
    caps: ProviderCaps
    text: str


@dataclass(frozen=True, slots=True)
class _Exclusion:
    kind: _Kind
    why: str


@dataclass(frozen=True, slots=True)
class _Considered:
    route: Route
    reason: str
    page: _Page
    exclusion: _Exclusion | None


class LLMRouter:
    """Orders the routes for a request and tries them.

    The order depends on the request, the settings and what is known, and on nothing else: equal in every process.

    Args:
        settings: Policy, default models, addresses, cooling-off.
        client: Carries out one call on one route.
        providers: What differs between providers.
        clock: Seconds on a clock that never goes back.
        facts: What is known of single models; None for nothing. The router reads it and never adds to it.
    """

    def __init__(
        self,
        settings: LLMSettings,
        client: ModelClient,
        providers: Mapping[LLMProvider, ProviderSpec] = PROVIDERS,
        clock: Callable[[], float] = time.monotonic,
        facts: FactBook | None = None,
    ) -> None:
        self._settings = settings
        self._client = client
        self._facts = facts if facts is not None else FactBook()
        self._pages: dict[Route, _Page] = {}
        self._pages_version = self._facts.version
        self._providers = providers
        self._outages = Outages(settings.cooldown_after_failures, settings.cooldown_s, clock)
        # What the settings alone decide is found out once: looking for a package takes longer than a whole plan.
        self._problems = {name: spec.configuration_problem(settings) for name, spec in providers.items()}
        self._on_this_machine = {name: answers_on_this_machine(spec, settings) for name, spec in providers.items()}
        self._defaults = {
            name: Route(provider=name, model=spec.default_model(settings)) for name, spec in providers.items()
        }

    def explain(self, request: LLMRequest) -> RoutePlan:
        """Every route considered, candidates first and in order, the others with the reason for passing them over."""
        return self._plan(self._considered(request))

    def capabilities(self, route: Route) -> ProviderCaps:
        """What the route can do, as far as it is known."""
        return self._page(route).caps

    def facts(self, route: Route) -> ModelFacts:
        """What is known of the route's model, with source and time: what was probed, else reported, else declared."""
        return self._page(route).facts

    def routes(self, request: LLMRequest) -> tuple[Route, ...]:
        """Every route that comes into question, in no order and whatever speaks against it."""
        return (request.route,) if request.route is not None else tuple(self._defaults.values())

    def open_routes(self, request: LLMRequest) -> tuple[Route, ...]:
        """The routes about which it is worth knowing more: those that no constraint and no outage keeps out."""
        return tuple(
            item.route
            for item in self._considered(request)
            if item.exclusion is None or item.exclusion.kind in _OPEN_TO_FACTS
        )

    def _page(self, route: Route) -> _Page:
        if self._facts.version != self._pages_version:
            self._pages, self._pages_version = {}, self._facts.version
        page = self._pages.get(route)
        if page is None:
            spec = self._providers[route.provider]
            window = spec.context_tokens(self._settings, route.model)
            declared = declared_facts(spec.caps, window, by_model=spec.tools_depend_on_model)
            facts = self._facts.of(route).over(declared)
            page = self._pages[route] = _Page(facts, facts.refine(spec.caps), str(facts))
        return page

    def select_provider(self, request: LLMRequest, constraints: LLMConstraints | None = None) -> LLMProvider:
        """The provider that is tried first.

        Args:
            request: What is asked.
            constraints: Take the place of the request's own.

        Raises:
            LLMConfigurationError: The pinned route is not set up.
            LLMUnavailable: All that is left is cooling off after failures.
            LLMNoRoute: No route fulfils the constraints; the message lists why each was passed over.
        """
        if constraints is not None:
            request = request.model_copy(update={"constraints": constraints})
        plan = self.explain(request)
        if not plan.candidates:
            raise self._nothing_left(request)
        return plan.candidates[0].provider

    async def execute(
        self, request: LLMRequest, plan: RoutePlan | None = None, log: AttemptLog | None = None
    ) -> Routed:
        """Try the candidates in order: on to the next after a retryable failure, once each.

        Args:
            request: What is asked.
            plan: What `explain` said for this request; None asks it.
            log: Receives every request that is sent.

        Raises:
            LLMAllRoutesFailed: Several candidates failed; `errors` holds each, in order.
            LLMError: The only candidate's error, or the first that no other route could mend. All errors carry
                `attempts`.
            LLMNoRoute: As for `select_provider`, with its other errors.
        """
        plan = plan if plan is not None else self.explain(request)
        log = log if log is not None else AttemptLog()
        failures: list[LLMError] = []
        for route in plan.candidates:
            try:
                reply = await self._try(route, request, log)
            except LLMError as error:
                failures.append(_told(error, route, log))
                if not (error.retryable and request.constraints.allow_fallback):
                    raise
            else:
                return Routed(reply, route, plan, plan_as_json(plan, failures, served_by=route))
        raise _told(self._all_failed(request, failures), None, log)

    async def _try(self, route: Route, request: LLMRequest, log: AttemptLog) -> ClientReply:
        outage = self._outages.enter(route)
        if outage is not None:
            raise outage.error(route)
        try:
            reply = await self._client.call(route, request, log)
        except LLMUnavailable:
            self._outages.failed(route)
            raise
        except LLMQuotaExhausted as error:
            if error.retry_after_s is not None:
                self._outages.park(route, error.retry_after_s)
            raise
        except LLMError as error:
            if error.status_code is not None:
                # It answered: whatever is wrong, it is not an outage.
                self._outages.answered(route)
            raise
        self._outages.answered(route)
        return reply

    def _all_failed(self, request: LLMRequest, failures: Sequence[LLMError]) -> LLMError:
        if not failures:
            return self._nothing_left(request)
        return failures[0] if len(failures) == 1 else LLMAllRoutesFailed(failures)

    def _considered(self, request: LLMRequest) -> tuple[_Considered, ...]:
        if request.route is not None:
            return (self._weighed(request.route, PINNED, request),)
        return tuple(self._weighed(route, reason, request) for route, reason in self._preferred(request))

    def _weighed(self, route: Route, reason: str, request: LLMRequest) -> _Considered:
        page = self._page(route)
        return _Considered(route, reason, page, self._exclusion(route, request, page))

    def _preferred(self, request: LLMRequest) -> Iterator[tuple[Route, str]]:
        """The default route of every provider, the preferred ones first."""
        policy = self._settings.router_policy
        order = [name for name in _ORDER[policy] if name in self._providers]
        if policy == "cheapest_known":
            free = {name for name in order if not self._providers[name].runs_elsewhere(self._defaults[name].model)}
            for name in sorted(order, key=lambda name: name not in free):
                yield self._defaults[name], _FREE if name in free else _REASONS[policy]
            return
        fits, preferred = self._fitting(request, order) if policy == "by_profile" else (set(), "")
        for name in sorted(order, key=lambda name: name not in fits):
            usual = _LAST_RESORT if name is order[-1] and name is LLMProvider.LOCAL else _REASONS[policy]
            yield self._defaults[name], preferred if name in fits else usual

    def _fitting(self, request: LLMRequest, order: Sequence[LLMProvider]) -> tuple[set[LLMProvider], str]:
        """The providers that policy by_profile puts first, and why: for tools, those whose every model has them."""
        caps = {name: self._providers[name].caps for name in order}
        if request.tools:
            return {name for name in order if caps[name].supports_tools}, "preferred for tools"
        profile = request.profile or self._settings.default_profile
        fits = {name for name in order if profile in caps[name].preferred_for_profiles}
        return fits, f"preferred for profile {profile}"

    def _exclusion(self, route: Route, request: LLMRequest, page: _Page) -> _Exclusion | None:
        """The first reason against a route; constraints come first, since nothing can lift them."""
        return (
            self._breaks_constraint(route, request)
            or _too_small(request, page)
            or _lacks_capability(self._providers[route.provider], route.model, request, page)
            or self._not_configured(route)
            or self._cooling(route)
        )

    def _breaks_constraint(self, route: Route, request: LLMRequest) -> _Exclusion | None:
        constraints = request.constraints
        if constraints.local_only and not self._on_this_machine[route.provider]:
            return _Exclusion(_Kind.CONSTRAINT, self._not_local(route))
        if constraints.local_only and self._providers[route.provider].runs_elsewhere(route.model):
            return _Exclusion(_Kind.CONSTRAINT, f"local_only, and {route.model} runs in the cloud of {route.provider}")
        if constraints.allowed_providers is not None and route.provider not in constraints.allowed_providers:
            return _Exclusion(_Kind.CONSTRAINT, f"allowed_providers leaves {route.provider} out")
        return None

    def _not_local(self, route: Route) -> str:
        address = self._providers[route.provider].address(self._settings)
        return f"local_only, and {route.provider} answers at {address}"

    def _not_configured(self, route: Route) -> _Exclusion | None:
        problem = self._problems[route.provider]
        return None if problem is None else _Exclusion(_Kind.CONFIGURATION, problem)

    def _cooling(self, route: Route) -> _Exclusion | None:
        outage = self._outages.of(route)
        if outage is None:
            return None
        return _Exclusion(_Kind.COOLING, outage.why)

    def _plan(self, considered: Sequence[_Considered]) -> RoutePlan:
        ranked = sorted(considered, key=lambda item: item.exclusion is not None)
        return RoutePlan(
            policy=PINNED if ranked[0].reason == PINNED else self._settings.router_policy,
            entries=tuple(
                PlanEntry(
                    route=item.route,
                    reason=item.reason,
                    excluded_because=item.exclusion.why if item.exclusion is not None else None,
                    facts=item.page.text,
                )
                for item in ranked
            ),
        )

    def _nothing_left(self, request: LLMRequest) -> LLMError:
        """The error for a request without candidates."""
        considered = self._considered(request)
        if request.route is not None:
            return self._pinned_error(request.route, considered[0].exclusion)
        cooling = [item for item in considered if item.exclusion and item.exclusion.kind is _Kind.COOLING]
        lines = [f"  {item.route}: {item.exclusion.why}" for item in considered if item.exclusion]
        if cooling:
            return LLMUnavailable("\n".join(["No route answers at the moment:", *lines]))
        return LLMNoRoute("\n".join(["No route can take this request:", *lines]))

    def _pinned_error(self, route: Route, exclusion: _Exclusion | None) -> LLMError:
        label = self._providers[route.provider].label
        where: dict[str, Any] = {"provider": route.provider, "model": route.model}
        if exclusion is None or exclusion.kind is _Kind.COOLING:
            return (self._outages.of(route) or Outage(0.0)).error(route)
        if exclusion.kind is _Kind.CONFIGURATION:
            return LLMConfigurationError(f"{label} cannot be called: {exclusion.why}", **where)
        if exclusion.kind is _Kind.WINDOW:
            return LLMContextOverflow(
                f"{route} cannot take this request: {exclusion.why}; nothing was sent. Shorten it, or use a model with "
                "a larger one.",
                **where,
            )
        if exclusion.kind is _Kind.CAPABILITY:
            return LLMUnsupported(f"{route} cannot take this request: {exclusion.why}.", **where)
        return LLMNoRoute(f"The pinned route {route} breaks a constraint of the request: {exclusion.why}.", **where)


def _unread(spec: ProviderSpec, request: LLMRequest, page: _Page) -> str | None:
    """Why a route cannot read what is attached to a request, or None."""
    kinds = {attachment.media_type: attachment.is_image for attachment in request.attachments}
    if not all(kinds.values()) and not page.caps.supports_files:
        return "it cannot read documents"
    if any(kinds.values()) and not page.caps.supports_images:
        if page.facts.images is not None:
            return f"it cannot see images{_source(page.facts.images)}"
        if request.route is None:
            return "whether it can see images depends on the model; pin it to try"
    unread = sorted(spec.unread_media_types & kinds.keys())
    return f"it cannot read {', '.join(unread)}; convert it to PNG or JPEG" if unread else None


def _too_small(request: LLMRequest, page: _Page) -> _Exclusion | None:
    fact = page.facts.context_tokens
    if fact is None:
        return None
    window, wanted = fact.value, request.constraints.min_context_tokens
    if wanted is not None and window < wanted:
        return _Exclusion(_Kind.CONSTRAINT, f"its context window of {window} tokens is below {wanted}")
    # A provider whose window is only declared is asked when it is pinned: it refuses by itself what is too long.
    if (request.route is None or fact.source != "declared") and surely_exceeds(request, window):
        return _Exclusion(_Kind.WINDOW, f"the prompt is longer than its context window of {window} tokens")
    return None


def _lacks_capability(spec: ProviderSpec, model: str, request: LLMRequest, page: _Page) -> _Exclusion | None:
    if request.tools and not page.caps.supports_tools:
        if page.facts.tools is not None:
            return _Exclusion(_Kind.CAPABILITY, f"it cannot call tools{_source(page.facts.tools)}")
        if request.route is None:
            return _Exclusion(_Kind.CAPABILITY, "whether it can call tools depends on the model; pin it to try")
    if request.attachments and (unread := _unread(spec, request, page)) is not None:
        return _Exclusion(_Kind.CAPABILITY, unread)
    wanted = request.response_format
    if wanted is not None and not page.caps.supports_json:
        return _Exclusion(_Kind.CAPABILITY, "it cannot be asked for JSON")
    if wanted is not None and wanted.json_schema is not None and not page.caps.supports_json_schema:
        return _Exclusion(_Kind.CAPABILITY, f"it cannot be held to a schema{_source(page.facts.json_schema)}")
    if wanted is not None and request.tools and not spec.calls_tools_beside_json(model):
        return _Exclusion(_Kind.CAPABILITY, "it cannot call tools in a request that asks for JSON")
    return None


def _source(fact: Fact[bool] | None) -> str:
    """Where a fact came from, unless it holds for the whole provider."""
    return "" if fact is None or fact.source == "declared" else f" ({fact.source})"


def _told(error: LLMError, route: Route | None, log: AttemptLog) -> LLMError:
    """The error, with what was sent so far and, where it does not say so itself, who failed."""
    error.attempts = log.attempts
    if route is not None:
        error.provider = error.provider or route.provider
        error.model = error.model or route.model
    return error


def plan_as_json(
    plan: RoutePlan, failures: Sequence[LLMError] = (), *, served_by: Route | None = None
) -> dict[str, Any]:
    """The plan as it is kept with a run: JSON-able, without prompt or key.

    Args:
        plan: What the router decided.
        failures: The candidates' errors, in order.
        served_by: Who answered in the end.
    """
    return {
        "policy": plan.policy,
        "candidates": [
            {"route": str(entry.route), "reason": entry.reason}
            for entry in plan.entries
            if entry.excluded_because is None
        ],
        "excluded": [
            {"route": str(entry.route), "because": entry.excluded_because}
            for entry in plan.entries
            if entry.excluded_because is not None
        ],
        "failures": [{"route": f"{error.provider}/{error.model}", "error_code": error.code} for error in failures],
        "served_by": None if served_by is None else str(served_by),
    }
