"""Order of the routes for a request, from model facts and the circuit breaker. The planner calls no provider.

Requests that agree in everything a plan depends on share one plan: in a study, most do. Circuits open and close with
time, so the breaker is consulted for every request.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llmkit.endpoints.tables import suggest_name
from llmkit.errors import LLMConfigurationError, LLMError, LLMNoRoute, LLMUnavailable
from llmkit.providers import (
    ProviderSpec,
    answers_on_this_machine,
    compute_min_prompt_tokens,
    explain_unknown_endpoint,
)
from llmkit.providers.model_facts import FactBook, make_declared_facts
from llmkit.routing.circuit_breaker import CircuitBreaker, OpenCircuit
from llmkit.routing.rules import OPEN_TO_FACTS, Case, Exclusion, Kind, Page, first_exclusion, make_pinned_error
from llmkit.settings import LLMSettings, RouterPolicy
from llmkit.types import LLMProvider, LLMRequest, PlanEntry, Route, RoutePlan

__all__ = ["Planner"]

_REASONS: Mapping[RouterPolicy, str] = {
    "by_profile": "order of policy by_profile",
    "prefer_local": "policy prefer_local",
    "prefer_cloud": "policy prefer_cloud",
    "cheapest_known": "policy cheapest_known: its price is not known",
}
_FREE = "policy cheapest_known: it charges nothing"
_LAST_RESORT = "small base model, last resort"
_PINNED = "pinned"

# A study has a handful of kinds of request. A caller with ever new kinds must not fill the memory.
_MOST_KEPT = 1024


class _Considered(NamedTuple):
    route: Route
    reason: str
    page: Page
    exclusion: Exclusion | None


class _Weighed(NamedTuple):
    """Plan for requests of one kind, before the circuit breaker is considered.

    Attributes:
        shortest_window: Tokens that fit into every window that is known; None when none is. A longer prompt may come to
            something else.
    """

    considered: tuple[_Considered, ...]
    plan: RoutePlan
    shortest_window: int | None

    def holds_for(self, request: LLMRequest) -> bool:
        return self.shortest_window is None or compute_min_prompt_tokens(request) <= self.shortest_window


@dataclass(frozen=True, slots=True)
class _Known:
    """Plans made from one state of the model facts."""

    version: int
    pages: dict[Route, Page] = field(default_factory=dict)
    weighed: dict[Hashable, _Weighed] = field(default_factory=dict)


class Planner:
    """Orders the routes for a request. Equal requests, settings, facts and circuits give equal plans in every process.

    Args:
        settings: Policy, default models, addresses.
        providers: What differs between providers.
        facts: Facts about single models.
        breaker: Skips routes that keep failing.
    """

    def __init__(
        self,
        settings: LLMSettings,
        providers: Mapping[LLMProvider, ProviderSpec],
        facts: FactBook,
        breaker: CircuitBreaker,
    ) -> None:
        self._settings = settings
        self._providers = providers
        self._facts = facts
        self._breaker = breaker
        self._known = _Known(facts.version)
        # What the settings alone decide is found out once: looking for a package takes longer than a whole plan.
        self._problems = {name: spec.configuration_problem(settings) for name, spec in providers.items()}
        self._on_this_machine = {name: answers_on_this_machine(spec, settings) for name, spec in providers.items()}
        self._defaults = {
            name: Route(provider=name, model=spec.default_model(settings)) for name, spec in providers.items()
        }

    def check_endpoint(self, route: Route) -> None:
        """Check that the route's endpoint exists.

        Raises:
            LLMBadRequest: It does not; the message suggests a name.
            LLMConfigurationError: It is built in and has no key.
        """
        if route.provider not in self._providers:
            raise explain_unknown_endpoint(route.provider, self._providers, self._settings)

    def find_problem(self, route: Route) -> str | None:
        """Return why the route's endpoint cannot be called on this machine, and the remedy; None when it can."""
        if route.provider in self._problems:
            return self._problems[route.provider]
        error = explain_unknown_endpoint(route.provider, self._providers, self._settings)
        if isinstance(error, LLMConfigurationError):
            return error.message
        return f"there is no endpoint {str(route.provider)!r}: copy its table in llmkit.toml to that machine"

    def plan(self, request: LLMRequest) -> RoutePlan:
        """Return every route considered: candidates first and in order, then the others with the reason."""
        weighed = self._weigh(request)
        considered = self._exclude_open_circuits(weighed.considered)
        return weighed.plan if considered is weighed.considered else self._make_plan(considered)

    def page(self, route: Route) -> Page:
        """Return the consequences of the facts about the route."""
        return self._page(self._up_to_date(), route)

    def routes(self, request: LLMRequest) -> tuple[Route, ...]:
        """Return every route that a plan for this request considers, in no order."""
        return (request.route,) if request.route is not None else tuple(self._defaults.values())

    def open_routes(self, request: LLMRequest) -> tuple[Route, ...]:
        """Return the routes that more facts could help: not excluded by a constraint or the circuit breaker."""
        return tuple(
            item.route
            for item in self._exclude_open_circuits(self._weigh(request).considered)
            if item.exclusion is None or item.exclusion.kind in OPEN_TO_FACTS
        )

    def nothing_left(self, request: LLMRequest) -> LLMError:
        """Return the error for a request without candidates."""
        considered = self._exclude_open_circuits(self._weigh(request).considered)
        if request.route is not None:
            return self._make_pinned_error(request.route, considered[0].exclusion)
        cooling = [item for item in considered if item.exclusion and item.exclusion.kind is Kind.COOLING]
        lines = [f"  {item.route}: {item.exclusion.why}" for item in considered if item.exclusion]
        known = tuple(map(str, self._providers))
        lines += [
            f"  allowed_providers: there is no endpoint {str(name)!r}; {suggest_name(name, known)}"
            for name in sorted(request.constraints.allowed_providers or ())
            if name not in self._providers
        ]
        if cooling:
            return LLMUnavailable("\n".join(["No route answers at the moment:", *lines]))
        return LLMNoRoute("\n".join(["No route can take this request:", *lines]))

    def explain_missing_set_up(self, failures: Sequence[LLMError]) -> LLMError | None:
        """Return the error that lists every way to get a model; None when a provider besides the failed ones is set up.

        Args:
            failures: Errors of providers at whose address no server listens.
        """
        failed = {error.provider for error in failures}
        if any(problem is None and name not in failed for name, problem in self._problems.items()):
            return None
        ways = [f"  - {spec.hints['set_up']}" for spec in self._providers.values()]
        found = LLMUnavailable(
            "\n".join(
                [f"No model can be reached. {failures[0]}", "Do one of these; `llmkit doctor` checks it:", *ways]
            ),
            provider=failures[0].provider,
            model=failures[0].model,
        )
        found.retries_in_call = False
        return found

    def _make_pinned_error(self, route: Route, exclusion: Exclusion | None) -> LLMError:
        if exclusion is None or exclusion.kind is Kind.COOLING:
            return (self._breaker.find_open(route) or OpenCircuit(0.0)).error(route)
        return make_pinned_error(exclusion, route, self._providers[route.provider])

    def _up_to_date(self) -> _Known:
        """Return the plans for the current facts. Callers that still use an older state fill only that one."""
        known, version = self._known, self._facts.version
        if known.version != version:
            known = self._known = _Known(version)
        return known

    def _page(self, known: _Known, route: Route) -> Page:
        page = known.pages.get(route)
        if page is None:
            self.check_endpoint(route)
            spec = self._providers[route.provider]
            window = spec.context_tokens(self._settings, route.model)
            declared = make_declared_facts(
                spec.caps,
                window,
                tools_by_model=spec.tools_depend_on_model,
                images_by_model=spec.images_depend_on_model,
            )
            facts = self._facts.of(route).over(declared)
            page = known.pages[route] = Page(facts, facts.refine(spec.caps), str(facts))
        return page

    def _weigh(self, request: LLMRequest) -> _Weighed:
        known, key = self._up_to_date(), _plan_key(request)
        kept = known.weighed.get(key)
        if kept is not None and kept.holds_for(request):
            return kept
        considered = tuple(self._consider(known, *each, request) for each in self._in_order(request))
        windows = [fact.value for item in considered if (fact := item.page.facts.context_tokens) is not None]
        weighed = _Weighed(considered, self._make_plan(considered), min(windows, default=None))
        if weighed.holds_for(request):
            if len(known.weighed) >= _MOST_KEPT:
                known.weighed.clear()
            known.weighed[key] = weighed
        return weighed

    def _consider(self, known: _Known, route: Route, reason: str, request: LLMRequest) -> _Considered:
        page, provider = self._page(known, route), route.provider
        case = Case(
            settings=self._settings,
            spec=self._providers[provider],
            route=route,
            request=request,
            page=page,
            problem=self._problems[provider],
            on_this_machine=self._on_this_machine[provider],
        )
        return _Considered(route, reason, page, first_exclusion(case))

    def _exclude_open_circuits(self, considered: tuple[_Considered, ...]) -> tuple[_Considered, ...]:
        """Return the same with open circuits excluded; the same object while there is none."""
        if not self._breaker.may_be_open:
            return considered
        changed = {}
        for place, item in enumerate(considered):
            open_circuit = self._breaker.find_open(item.route) if item.exclusion is None else None
            if open_circuit is not None:
                changed[place] = item._replace(exclusion=Exclusion(Kind.COOLING, open_circuit.why))
        if not changed:
            return considered
        return tuple(changed.get(place, item) for place, item in enumerate(considered))

    def _in_order(self, request: LLMRequest) -> Iterator[tuple[Route, str]]:
        """Return the pinned route, or the default route of every provider, the preferred ones first; and why."""
        if request.route is not None:
            yield request.route, _PINNED
            return
        policy = self._settings.router_policy
        order = sorted(self._providers, key=lambda name: self._providers[name].policy_ranks[policy])
        if policy == "cheapest_known":
            free = {name for name in order if not self._providers[name].runs_elsewhere(self._defaults[name].model)}
            for name in sorted(order, key=lambda name: name not in free):
                yield self._defaults[name], _FREE if name in free else _REASONS[policy]
            return
        fits, preferred = self._fitting(request, order) if policy == "by_profile" else (set(), "")
        for name in sorted(order, key=lambda name: name not in fits):
            is_last_resort = name is order[-1] and self._providers[name].is_last_resort
            usual = _LAST_RESORT if is_last_resort else _REASONS[policy]
            yield self._defaults[name], preferred if name in fits else usual

    def _fitting(self, request: LLMRequest, order: Sequence[LLMProvider]) -> tuple[set[LLMProvider], str]:
        """Return the providers that policy by_profile puts first, and why.

        For tools, those whose every model has them.
        """
        caps = {name: self._providers[name].caps for name in order}
        if request.tools:
            return {name for name in order if caps[name].supports_tools}, "preferred for tools"
        profile = request.profile or self._settings.default_profile
        fits = {name for name in order if profile in caps[name].preferred_for_profiles}
        return fits, f"preferred for profile {profile}"

    def _make_plan(self, considered: Sequence[_Considered]) -> RoutePlan:
        ranked = sorted(considered, key=lambda item: item.exclusion is not None)
        return RoutePlan(
            policy=_PINNED if ranked[0].reason == _PINNED else self._settings.router_policy,
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


def _plan_key(request: LLMRequest) -> Hashable:
    """Return everything in a request that a plan depends on, except the length of its prompt."""
    constraints, wanted, attachments = request.constraints, request.response_format, request.attachments
    return (
        request.route,
        request.profile,
        constraints.local_only,
        constraints.allowed_providers,
        constraints.min_context_tokens,
        bool(request.tools),
        request.logprobs,
        request.seed is not None,
        None if wanted is None else wanted.json_schema is not None,
        frozenset([attachment.media_type for attachment in attachments]) if attachments else None,
    )
