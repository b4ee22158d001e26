"""What samples were asked, whole: rendered again from the dataset, and told only if the hash is that of the call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalResult
from llmkit.evals.call_names import digests_of, with_repairs
from llmkit.evals.prompt import Template, render
from llmkit.evals.tasks.variant import hash_variant

if TYPE_CHECKING:
    from llmkit.evals.dataset.dataset import Sample
    from llmkit.evals.report.analysis import Analysis

__all__ = ["PromptRenderer"]

Turns: TypeAlias = list[list[str]]


class PromptRenderer:
    """Renders the prompts of a run, as far as its routes have templates and its dataset is at hand."""

    def __init__(self, report: Analysis) -> None:
        spec = report.run.spec
        routes = spec.get("routes", {})
        self._dataset = report.dataset
        self._routes: Mapping[str, Any] = routes if isinstance(routes, Mapping) else {}
        self._system = spec.get("task", {}).get("system")
        self._repairs = spec.get("made_with", {}).get("options", {}).get("repairs", 1)
        self._templates = {label: _template(each.get("prompt")) for label, each in self._routes.items()}

    def of(self, result: EvalResult) -> Turns | None:
        """Role and text of each message; None when it is not certain that just this was sent."""
        sample, template = self._dataset.get(result.sample_id), self._templates.get(result.route)
        if sample is None or template is None:
            return None
        return self._rendered(result, sample, template)

    def _rendered(self, result: EvalResult, sample: Sample, template: Template) -> Turns | None:
        route = self._routes[result.route]
        try:
            messages = render(template, sample, self._system)
        except LLMEvaluationError:  # the sample has changed: the hash would not fit either
            return None
        digest = hash_variant(route["route"], messages, route["parameters"])
        if digests_of(result.pipeline_run_id)[1] != with_repairs(digest, self._repairs):
            return None
        return [[message.role, message.content] for message in messages]


def _template(text: Any) -> Template | None:
    try:
        return Template.parse(text) if isinstance(text, str) else None
    except LLMEvaluationError:
        return None
