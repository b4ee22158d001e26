"""Routing of a request: a plan that can be shown, and the fallback along it when routes fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llmkit.errors import LLMAllRoutesFailed, LLMError, LLMQuotaExhausted, LLMUnavailable
from llmkit.ports import AnswerSink, AttemptLog, BeforeSend, ClientReply, ModelClient, NotSent, allow_sending
from llmkit.providers import BUILT_IN, ProviderSpec, load_endpoints
from llmkit.providers.model_facts import FactBook, ModelFacts
from llmkit.routing.circuit_breaker import CircuitBreaker
from llmkit.routing.planner import Planner
from llmkit.settings import LLMSettings
from llmkit.types import LLMConstraints, LLMProvider, LLMRequest, ProviderCaps, Route, RoutePlan

__all__ = ["PROVIDER_CAPABILITIES", "LLMRouter", "Routed", "plan_as_json"]

PROVIDER_CAPABILITIES: dict[LLMProvider, ProviderCaps] = {name: spec.caps for name, spec in BUILT_IN.items()}
"""What each provider can do, as declared. LiteLLM's own flags are wrong for Ollama."""


class Routed(NamedTuple):
    """An answer, the route that gave it, and the plan.

    Attributes:
        plan_record: `plan_as_json` of the plan and of the failures before this answer.
    """

    reply: ClientReply
    route: Route
    plan: RoutePlan
    plan_record: dict[str, Any]


class LLMRouter:
    """Orders the routes for a request and tries them.

    The order depends on the request, the settings and the facts, and on nothing else: equal in every process.

    Args:
        settings: Policy, default models, addresses, cooling-off.
        client: Carries out one call on one route.
        providers: Every endpoint by name; None for those of the settings.
        clock: Seconds on a clock that never goes back.
        facts: Facts about single models; None for none. The router reads it and never adds to it.
    """

    def __init__(
        self,
        settings: LLMSettings,
        client: ModelClient,
        providers: Mapping[LLMProvider, ProviderSpec] | None = None,
        clock: Callable[[], float] = time.monotonic,
        facts: FactBook | None = None,
    ) -> None:
        self._client = client
        self._endpoints = load_endpoints(settings) if providers is None else providers
        self._breaker = CircuitBreaker(settings.cooldown_after_failures, settings.cooldown_s, clock)
        self._planner = Planner(settings, self._endpoints, facts if facts is not None else FactBook(), self._breaker)

    @property
    def endpoints(self) -> Mapping[LLMProvider, ProviderSpec]:
        """Every endpoint by name."""
        return self._endpoints

    def check_endpoint(self, route: Route) -> None:
        """Check that the route's endpoint exists.

        Raises:
            LLMBadRequest: It does not; the message suggests a name.
            LLMConfigurationError: It is built in and has no key.
        """
        self._planner.check_endpoint(route)

    def find_problem(self, route: Route) -> str | None:
        """Return why the route's endpoint cannot be called on this machine, and the remedy; None when it can."""
        return self._planner.find_problem(route)

    def explain(self, request: LLMRequest) -> RoutePlan:
        """Return every route considered: candidates first and in order, then the others with the reason."""
        return self._planner.plan(request)

    def capabilities(self, route: Route) -> ProviderCaps:
        """Return the capabilities of the route, as far as they are known."""
        return self._planner.page(route).caps

    def facts(self, route: Route) -> ModelFacts:
        """Return the facts about the route's model, with source and time: probed, else reported, else declared."""
        return self._planner.page(route).facts

    def routes(self, request: LLMRequest) -> tuple[Route, ...]:
        """Return every route that a plan for this request considers, in no order."""
        return self._planner.routes(request)

    def open_routes(self, request: LLMRequest) -> tuple[Route, ...]:
        """Return the routes that more facts could help: not excluded by a constraint or the circuit breaker."""
        return self._planner.open_routes(request)

    def select_provider(self, request: LLMRequest, constraints: LLMConstraints | None = None) -> LLMProvider:
        """Return the provider that is tried first.

        Args:
            request: The request.
            constraints: Take the place of the request's own.

        Raises:
            LLMConfigurationError: The pinned route is not set up.
            LLMUnavailable: All that is left is cooling off after failures.
            LLMNoRoute: No route fulfils the constraints; the message lists the reason for each.
        """
        if constraints is not None:
            request = request.model_copy(update={"constraints": constraints})
        plan = self.explain(request)
        if not plan.candidates:
            raise self._planner.nothing_left(request)
        return plan.candidates[0].provider

    async def execute(
        self,
        request: LLMRequest,
        plan: RoutePlan | None = None,
        before_send: BeforeSend = allow_sending,
        log: AttemptLog | None = None,
        *,
        sink: AnswerSink | None = None,
    ) -> Routed | NotSent:
        """Try the candidates in order: on to the next after a retryable failure, once each.

        Once a piece of an answer is in the sink no other candidate is tried: the reader would see two answers in one.

        Args:
            request: The request.
            plan: The result of `explain` for this request; None calls it.
            before_send: Awaited whenever a request is about to leave. Its `NotSent` ends the walk and is returned.
            log: Receives every request that is sent.
            sink: Receives the pieces of the answer as they arrive; None to wait for the whole answer.

        Raises:
            LLMAllRoutesFailed: Several candidates failed; `errors` contains each, in order.
            LLMError: The only candidate's error, or the first that a fallback could not fix. All errors carry
                `attempts`, and `partial_text` if the answer had begun.
            LLMNoRoute: As for `select_provider`, with its other errors.
        """
        plan = plan if plan is not None else self.explain(request)
        log = log if log is not None else AttemptLog()
        failures: list[LLMError] = []
        for route in plan.candidates:
            try:
                reply = await self._try(route, request, log, before_send, sink)
            except LLMError as error:
                failures.append(_complete_error(error, route, log))
                error.has_begun = sink is not None and sink.has_begun
                if error.has_begun or not (error.retryable and request.constraints.allow_fallback):
                    error.partial_text = sink.partial_text if sink is not None else ""
                    raise
            else:
                if isinstance(reply, NotSent):
                    return reply
                return Routed(reply, route, plan, plan_as_json(plan, failures, served_by=route))
        raise _complete_error(self._all_failed(request, failures), None, log)

    async def _try(
        self, route: Route, request: LLMRequest, log: AttemptLog, before_send: BeforeSend, sink: AnswerSink | None
    ) -> ClientReply | NotSent:
        open_circuit = self._breaker.begin_call(route)
        if open_circuit is not None:
            raise open_circuit.error(route)
        try:
            reply = await self._client.call(route, request, log, before_send, sink=sink)
        except LLMUnavailable:
            self._breaker.note_failure(route)
            raise
        except LLMQuotaExhausted as error:
            if error.retry_after_s is not None:
                self._breaker.note_quota_used_up(route, error.retry_after_s)
            raise
        except LLMError as error:
            if error.status_code is not None:
                # The provider answered: whatever is wrong, it is reachable.
                self._breaker.note_answer(route)
            raise
        if not isinstance(reply, NotSent):
            self._breaker.note_answer(route)
        return reply

    def _all_failed(self, request: LLMRequest, failures: Sequence[LLMError]) -> LLMError:
        if not failures:
            return self._planner.nothing_left(request)
        if request.route is None and all(_is_refused(error) for error in failures):
            nowhere = self._planner.explain_missing_set_up(failures)
            if nowhere is not None:
                return nowhere
        return failures[0] if len(failures) == 1 else LLMAllRoutesFailed(failures)


def _is_refused(error: LLMError) -> bool:
    return isinstance(error, LLMUnavailable) and not error.retries_in_call


def _complete_error(error: LLMError, route: Route | None, log: AttemptLog) -> LLMError:
    """Return the error with the attempts so far and, where they are missing, the provider and model."""
    error.attempts = log.attempts
    if route is not None:
        error.provider = error.provider or route.provider
        error.model = error.model or route.model
    return error


def plan_as_json(
    plan: RoutePlan, failures: Sequence[LLMError] = (), *, served_by: Route | None = None
) -> dict[str, Any]:
    """Return the plan as it is kept with a run: JSON-able, without prompt or key.

    All calls with this plan share its lists.

    Args:
        plan: What the router decided.
        failures: The candidates' errors, in order.
        served_by: The route that answered in the end.
    """
    return {
        **plan.as_json,
        "failures": [{"route": f"{error.provider}/{error.model}", "error_code": error.code} for error in failures],
        "served_by": None if served_by is None else str(served_by),
    }
