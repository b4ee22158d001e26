"""Policies of a session: `Session.policy`, and the calls that follow one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from llmkit.canonical_json import sha256_of
from llmkit.errors import (
    LLMBadRequest,
    LLMConfigurationError,
    LLMDatasetError,
    LLMError,
    LLMEvaluationError,
    LLMNoRoute,
)
from llmkit.notebook.arguments import build_request, check_text, parse_route
from llmkit.notebook.core import SessionCore
from llmkit.types import LLMConstraints, LLMProfile, PlanEntry, RoutePlan

if TYPE_CHECKING:
    from llmkit.evals.decide.course import Ask, Course, StepCall
    from llmkit.evals.policies import Policy

__all__ = ["add_policy", "explain_policy", "open_course", "read_step_fields", "take_policy"]

PREFIX = "policy:"
DEFAULT = "default"
ROUTER_POLICIES = (DEFAULT, *map(str, LLMProfile))


def add_policy(core: SessionCore, name: Any, policy: Any) -> str:
    """Check the arguments of `Session.policy`, keep the policy and return its route.

    Raises:
        LLMBadRequest: The name or the policy cannot be used; the message says why.
    """
    from llmkit.evals.decide.course import require_runnable
    from llmkit.evals.policies import is_policy, list_variants
    from llmkit.evals.tasks.task import NAME

    check_text("name", name, or_none=False)
    if not NAME.fullmatch(name) or name in ROUTER_POLICIES:
        raise LLMBadRequest(f"The name of a policy has no white space, '@', ',' or ':', and is not taken; got {name!r}")
    if not is_policy(policy):
        raise LLMBadRequest(f"A policy is a Cascade, Split, Mix, function or route; got {type(policy).__name__}")
    try:
        require_runnable(policy)
    except LLMEvaluationError as error:
        raise LLMBadRequest(str(error)) from None
    for label in list_variants(policy):
        if label.removeprefix(PREFIX) in (name, *core.policies):
            raise LLMBadRequest(f"The policy names {label!r}: write that policy out inside it")
        if label.removeprefix(PREFIX) not in ROUTER_POLICIES:
            parse_route(label.rpartition("@")[0] or label)
    core.policies[name] = policy
    return f"{PREFIX}{name}"


def take_policy(core: SessionCore, fields: dict[str, Any], *, is_text: bool) -> tuple[str, Policy] | None:
    """Remove a route written `policy:NAME` from the fields of a call, and return the policy's name and the policy.

    None for another route, and for a policy of the router, whose profile takes the place of the route.

    Args:
        core: The session.
        fields: Options of the call; changed.
        is_text: Whether the answer is text.

    Raises:
        LLMBadRequest: There is no such policy, the call does not give what its conditions need, or one of its variants
            breaks the constraints of the call. Nothing was sent.
    """
    route = fields.get("route")
    if not isinstance(route, str) or not route.startswith(PREFIX):
        return None
    name = fields.pop("route").removeprefix(PREFIX)
    if name in ROUTER_POLICIES:
        fields |= read_label(route)
        return None
    if name not in core.policies:
        known = ", ".join((*ROUTER_POLICIES, *core.policies))
        raise LLMBadRequest(f"Unknown policy {name!r}; known policies: {known}. session.policy(name, policy) adds one")
    policy = core.policies[name]
    _check_policy(core, name, policy, fields.get("constraints"), is_text=is_text)
    return name, policy


def read_label(label: str) -> dict[str, Any]:
    """Return the options of a call to a variant that a policy names.

    Raises:
        LLMBadRequest: It is neither `provider/model` nor a policy of the router.
    """
    name = label.removeprefix(PREFIX)
    if name == DEFAULT:
        return {}
    if name in ROUTER_POLICIES:
        return {"profile": name}
    if "@" in label and "/" in label.rpartition("@")[0]:
        raise LLMBadRequest(f"{label!r} names a prompt of a task: such a policy runs in evaluate only")
    return {"route": parse_route(label)}


def _check_policy(core: SessionCore, name: str, policy: Policy, constraints: Any, *, is_text: bool) -> None:
    from llmkit.evals.decide.course import require_runnable
    from llmkit.evals.policies import list_variants

    try:
        require_runnable(policy, is_text=is_text)
    except LLMEvaluationError as error:
        raise LLMBadRequest(str(error)) from None
    for label in list_variants(policy):
        request = build_request("?", {"constraints": constraints or LLMConstraints(), **read_label(label)})
        # Now, and not when its turn comes and another call was paid for. What may pass, such as a circuit breaker, is
        # left to that time.
        try:
            core.service.router.select_provider(request)
        except (LLMNoRoute, LLMConfigurationError) as error:
            raise LLMBadRequest(f"The policy {name!r} cannot call {label}: {error}") from None
        except LLMError:
            continue


def open_course(name: str, policy: Policy, text: str, fields: Mapping[str, Any], ask: Ask) -> Course:
    """Return the course of a policy for one text.

    Args:
        name: Name of the policy.
        policy: The policy.
        text: The input, as functions of the sample see it.
        fields: Options of the call, of which metadata and epoch are used.
        ask: Makes one call.

    Raises:
        LLMBadRequest: The metadata cannot be read.
    """
    from llmkit.evals.dataset.dataset import Sample
    from llmkit.evals.decide.course import Course

    try:
        sample = Sample(text, id=sha256_of(text)[:16], metadata=fields.get("metadata") or {})
    except LLMDatasetError as error:
        raise LLMBadRequest(str(error)) from None
    return Course(name, policy, sample, fields.get("epoch") or 0, ask)


def read_step_fields(call: StepCall, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of one call of a policy, from those of the whole.

    Raises:
        LLMBadRequest: The variant cannot be called here.
    """
    own = {**fields, **read_label(call.label), "metadata": {**(fields.get("metadata") or {}), **call.metadata}}
    own["epoch"] = call.epoch
    if call.needs_logprobs:
        own["logprobs"] = True
    if own.get("idempotency_key") is not None:
        own["idempotency_key"] = call.name_key(own["idempotency_key"])
    if call.repeat and isinstance(own.get("seed"), int):
        own["seed"] += call.repeat  # or all repeats would be the same
    return own


def explain_policy(core: SessionCore, name: str, policy: Policy, prompt: Any, fields: Mapping[str, Any]) -> RoutePlan:
    """Return the plans of all variants that a policy names as one."""
    from llmkit.evals.policies import describe_policy, list_variants

    entries: list[PlanEntry] = []
    for label in list_variants(policy):
        entries += core.service.router.explain(build_request(prompt, {**fields, **read_label(label)})).entries
    reason = describe_policy(policy)
    described = [entry.model_copy(update={"reason": reason}) for entry in entries]
    ranked = sorted(described, key=lambda entry: entry.excluded_because is not None)
    return RoutePlan(policy=f"{PREFIX}{name}", entries=tuple(ranked))
