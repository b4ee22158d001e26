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
    LLMError,
    LLMNoRoute,
    LLMUnavailable,
    LLMUnsupported,
)
from llmkit.ports import AttemptLog, ClientReply, ModelClient
from llmkit.providers import PROVIDERS, ProviderSpec, answers_on_this_machine, smallest_prompt_tokens
from llmkit.settings import LLMSettings, RouterPolicy
from llmkit.types import (
    LLMConstraints,
    LLMProfile,
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
}
_REASONS: Mapping[RouterPolicy, str] = {
    "by_profile": "order of policy by_profile",
    "prefer_local": "policy prefer_local",
    "prefer_cloud": "policy prefer_cloud",
}
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
    COOLING = auto()


@dataclass(frozen=True, slots=True)
class _Exclusion:
    kind: _Kind
    why: str


@dataclass(frozen=True, slots=True)
class _Considered:
    route: Route
    reason: str
    exclusion: _Exclusion | None


class LLMRouter:
    """Orders the routes for a request and tries them.

    The order depends on the request, the settings and what is known, and on nothing else: equal in every process.

    Args:
        settings: Policy, default models, addresses, cooling-off.
        client: Carries out one call on one route.
        providers: What differs between providers.
        clock: Seconds on a clock that never goes back.
    """

    def __init__(
        self,
        settings: LLMSettings,
        client: ModelClient,
        providers: Mapping[LLMProvider, ProviderSpec] = PROVIDERS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._client = client
        self._providers = providers
        self._outages = _Outages(settings.cooldown_after_failures, settings.cooldown_s, clock)
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
        return self._providers[route.provider].caps

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
        wait_s = self._outages.enter(route)
        if wait_s is not None:
            raise _cooling_error(route, wait_s)
        try:
            reply = await self._client.call(route, request, log)
        except LLMUnavailable:
            self._outages.failed(route)
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
            return (_Considered(request.route, PINNED, self._exclusion(request.route, request, pinned=True)),)
        return tuple(
            _Considered(route, reason, self._exclusion(route, request, pinned=False))
            for route, reason in self._preferred(request.profile or self._settings.default_profile)
        )

    def _preferred(self, profile: LLMProfile) -> Iterator[tuple[Route, str]]:
        """The default route of every provider, the preferred ones first."""
        policy = self._settings.router_policy
        order = [name for name in _ORDER[policy] if name in self._providers]
        fits: set[LLMProvider] = set()
        if policy == "by_profile":
            fits = {name for name in order if profile in self._providers[name].caps.preferred_for_profiles}
        for name in sorted(order, key=lambda name: name not in fits):
            usual = _LAST_RESORT if name is order[-1] and name is LLMProvider.LOCAL else _REASONS[policy]
            yield self._defaults[name], f"preferred for profile {profile}" if name in fits else usual

    def _exclusion(self, route: Route, request: LLMRequest, *, pinned: bool) -> _Exclusion | None:
        """The first reason against a route; constraints come first, since nothing can lift them."""
        return (
            self._breaks_constraint(route, request)
            or self._lacks_capability(route, request, pinned=pinned)
            or self._not_configured(route)
            or self._cooling(route)
        )

    def _breaks_constraint(self, route: Route, request: LLMRequest) -> _Exclusion | None:
        constraints = request.constraints
        if constraints.local_only and not self._on_this_machine[route.provider]:
            return _Exclusion(_Kind.CONSTRAINT, self._not_local(route))
        if constraints.allowed_providers is not None and route.provider not in constraints.allowed_providers:
            return _Exclusion(_Kind.CONSTRAINT, f"allowed_providers leaves {route.provider} out")
        return self._too_small(route, request)

    def _not_local(self, route: Route) -> str:
        address = self._providers[route.provider].address(self._settings)
        return f"local_only, and {route.provider} answers at {address}"

    def _too_small(self, route: Route, request: LLMRequest) -> _Exclusion | None:
        window = self._providers[route.provider].context_tokens(self._settings, route.model)
        if window is None:
            return None
        wanted = request.constraints.min_context_tokens
        if wanted is not None and window < wanted:
            return _Exclusion(_Kind.CONSTRAINT, f"its context window of {window} tokens is below {wanted}")
        needed = smallest_prompt_tokens(request)
        if needed > window and request.route is None:
            return _Exclusion(
                _Kind.CAPABILITY, f"the prompt has over {needed} tokens, its context window only {window}"
            )
        return None

    def _lacks_capability(self, route: Route, request: LLMRequest, *, pinned: bool) -> _Exclusion | None:
        spec = self._providers[route.provider]
        if request.tools and not spec.caps.supports_tools:
            if not spec.tools_depend_on_model:
                return _Exclusion(_Kind.CAPABILITY, "it cannot call tools")
            if not pinned:
                return _Exclusion(_Kind.CAPABILITY, "whether it can call tools depends on the model; pin it to try")
        if request.attachments:
            by_model = spec.images_depend_on_model
            unread = _unread(spec, spec.caps, request, by_model=by_model, pinned=pinned)
            if unread is not None:
                return _Exclusion(_Kind.CAPABILITY, unread)
        wanted = request.response_format
        if wanted is not None and not spec.caps.supports_json:
            return _Exclusion(_Kind.CAPABILITY, "it cannot be asked for JSON")
        if wanted is not None and wanted.json_schema is not None and not spec.caps.supports_json_schema:
            return _Exclusion(_Kind.CAPABILITY, "it cannot be held to a schema")
        if wanted is not None and request.tools and not spec.calls_tools_beside_json(route.model):
            return _Exclusion(_Kind.CAPABILITY, "it cannot call tools in a request that asks for JSON")
        return None

    def _not_configured(self, route: Route) -> _Exclusion | None:
        problem = self._problems[route.provider]
        return None if problem is None else _Exclusion(_Kind.CONFIGURATION, problem)

    def _cooling(self, route: Route) -> _Exclusion | None:
        outage = self._outages.of(route)
        if outage is None:
            return None
        return _Exclusion(
            _Kind.COOLING, f"cooling off after {outage.failures} failed calls, for {outage.wait_s:.0f} s more"
        )

    def _plan(self, considered: Sequence[_Considered]) -> RoutePlan:
        ranked = sorted(considered, key=lambda item: item.exclusion is not None)
        return RoutePlan(
            policy=PINNED if ranked[0].reason == PINNED else self._settings.router_policy,
            entries=tuple(
                PlanEntry(
                    route=item.route,
                    reason=item.reason,
                    excluded_because=item.exclusion.why if item.exclusion is not None else None,
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
            outage = self._outages.of(route)
            return _cooling_error(route, outage.wait_s if outage is not None else 0.0)
        if exclusion.kind is _Kind.CONFIGURATION:
            return LLMConfigurationError(f"{label} cannot be called: {exclusion.why}", **where)
        if exclusion.kind is _Kind.CAPABILITY:
            return LLMUnsupported(f"{route} cannot take this request: {exclusion.why}.", **where)
        return LLMNoRoute(f"The pinned route {route} breaks a constraint of the request: {exclusion.why}.", **where)


def _unread(spec: ProviderSpec, caps: ProviderCaps, request: LLMRequest, *, by_model: bool, pinned: bool) -> str | None:
    """Why a route cannot read what is attached to a request, or None. `by_model`: about images it is not known."""
    kinds = {attachment.media_type: attachment.is_image for attachment in request.attachments}
    if not all(kinds.values()) and not caps.supports_files:
        return "it cannot read documents"
    if any(kinds.values()) and not caps.supports_images:
        if not by_model:
            return "it cannot see images"
        if not pinned:
            return "whether it can see images depends on the model; pin it to try"
    unread = sorted(spec.unread_media_types & kinds.keys())
    return f"it cannot read {', '.join(unread)}; convert it to PNG or JPEG" if unread else None


@dataclass(frozen=True, slots=True)
class _Outage:
    failures: int
    wait_s: float


class _Outages:
    """Which routes fail again and again, and until when they are left alone.

    After `limit` failed calls in a row a route is closed for `cooldown_s`; then one call at a time is let through, at
    most one per `cooldown_s`, until one is answered.
    """

    def __init__(self, limit: int, cooldown_s: float, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._failures: dict[Route, int] = {}
        self._closed_until: dict[Route, float] = {}

    def of(self, route: Route) -> _Outage | None:
        """The outage that keeps calls away now, or None."""
        until = self._closed_until.get(route)
        if until is None or (wait_s := until - self._clock()) <= 0:
            return None
        return _Outage(self._failures.get(route, self._limit), wait_s)

    def enter(self, route: Route) -> float | None:
        """Begin a call: None when it may go, else the seconds to wait. The call let through closes the door again."""
        outage = self.of(route)
        if outage is not None:
            return outage.wait_s
        if route in self._closed_until:
            self._closed_until[route] = self._clock() + self._cooldown_s
        return None

    def failed(self, route: Route) -> None:
        """Note a call that the provider did not answer."""
        self._failures[route] = self._failures.get(route, 0) + 1
        if self._failures[route] >= self._limit:
            self._closed_until[route] = self._clock() + self._cooldown_s

    def answered(self, route: Route) -> None:
        """Note a call that was answered, with whatever."""
        self._failures.pop(route, None)
        self._closed_until.pop(route, None)


def _cooling_error(route: Route, wait_s: float) -> LLMUnavailable:
    return LLMUnavailable(
        f"{route} failed several times in a row and is left alone for {wait_s:.0f} s more; nothing was sent. Try again "
        "then, or mend what its first errors name.",
        provider=route.provider,
        model=route.model,
        retry_after_s=wait_s,
    )


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
