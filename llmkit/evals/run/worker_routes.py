"""Routes of an evaluation that the machine of a worker cannot call: no key, no package, no such endpoint."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from llmkit.errors import LLMConfigurationError
from llmkit.evals.budget import Budget
from llmkit.evals.run.options import EvaluateOptions
from llmkit.evals.tasks.task import Task
from llmkit.evals.tasks.variant import ResolvedVariant, RouteLike, Variant, resolve_variants
from llmkit.types import Route

if TYPE_CHECKING:
    from llmkit.service import LLMService

__all__ = ["choose_routes", "list_planned"]


def list_planned(variants: Sequence[ResolvedVariant]) -> dict[str, Route]:
    """Return the route that should answer first, by label, of variants whose router chooses."""
    return {each.label: each.planned for each in variants if each.route is None and each.planned is not None}


def choose_routes(
    task: Task,
    routes: RouteLike | Sequence[RouteLike],
    planned: Mapping[str, Route],
    *,
    service: LLMService,
    options: EvaluateOptions,
) -> tuple[RouteLike | Sequence[RouteLike], dict[str, str]]:
    """Return the routes that this machine can call, and for each other one, by label, one line that says why not.

    Without this check its samples would fail here, although other workers can do them.

    Args:
        task: The task; the routes of its judges are needed for every sample.
        routes: Those of the evaluation.
        planned: See `list_planned`, from where the evaluation was started.
        service: Calls models on this machine.
        options: Those of the evaluation.

    Raises:
        LLMConfigurationError: None can be called; or not all can, and the run has a budget of tokens or cost or a stop
            rule, which a worker keeps only with all routes in view.
    """
    variants = resolve_variants(
        task,
        routes,
        service=service,
        parameters=options.get("parameters") or {},
        policies=options.get("policies") or {},
    )
    left_out = {each.label: why for each in variants if (why := _explain(each, task, planned)) is not None}
    if not left_out:
        return routes, {}
    lines = "; ".join(dict.fromkeys(left_out.values()))
    if len(left_out) == len(variants):
        raise LLMConfigurationError(lines)
    if (options.get("budget") or Budget()).counts_requests or options.get("stop_when") is not None:
        raise LLMConfigurationError(f"{lines}, and with a budget or stop_when a worker needs all routes")
    assert not isinstance(routes, str | Route | Variant)  # the only one would be all of them
    return [item for item, each in zip(routes, variants, strict=True) if each.label not in left_out], left_out


def _explain(variant: ResolvedVariant, task: Task, planned: Mapping[str, Route]) -> str | None:
    """Return why a variant cannot be run here, or None."""
    for route in _needed(variant, task, planned):
        problem = variant.service.router.find_problem(route)
        if problem is not None:
            return (
                f"The worker on {platform.node()} takes no samples of {variant.label}, because {route} cannot be "
                f"called there: {problem}"
            )
    return None


def _needed(variant: ResolvedVariant, task: Task, planned: Mapping[str, Route]) -> Iterator[Route]:
    for part in variant.parts:
        route = part.route or planned.get(part.label)
        if route is not None:
            yield route
    for scorer in task.scorer_objects:
        describe = getattr(scorer, "description", None)
        judge = None if describe is None else describe().get("route")
        if judge is not None:
            yield Route.parse(judge)
