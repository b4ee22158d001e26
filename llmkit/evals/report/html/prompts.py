"""Prompts rendered again from the dataset, and shown only if their hash is that of the recorded call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalResult
from llmkit.evals.call_names import digests_of, with_reasks
from llmkit.evals.prompt import Template, render
from llmkit.evals.tasks.variant import hash_variant

if TYPE_CHECKING:
    from llmkit.evals.dataset.dataset import Sample
    from llmkit.evals.report.analysis import Analysis

__all__ = ["PromptRenderer"]

RoleTexts: TypeAlias = list[list[str]]


class PromptRenderer:
    """Renderer of a run's prompts, as far as its variants have templates and its dataset is available."""

    def __init__(self, report: Analysis) -> None:
        spec = report.run.spec
        routes = spec.get("routes", {})
        self._dataset = report.dataset
        self._routes: Mapping[str, Any] = routes if isinstance(routes, Mapping) else {}
        self._system = spec.get("task", {}).get("system")
        options = spec.get("made_with", {}).get("options", {})
        # Runs of version 0.1.0 recorded this option under its old name.
        self._reasks = options.get("reasks", options.get("repairs", 1))
        self._templates = {label: _parse_template(each.get("prompt")) for label, each in self._routes.items()}

    def render(self, result: EvalResult) -> RoleTexts | None:
        """Render role and text of each message; None unless exactly these messages were sent."""
        sample, template = self._dataset.get(result.sample_id), self._templates.get(result.route)
        if sample is None or template is None:
            return None
        return self._render_if_sent(result, sample, template)

    def _render_if_sent(self, result: EvalResult, sample: Sample, template: Template) -> RoleTexts | None:
        route = self._routes[result.route]
        try:
            messages = render(template, sample, self._system)
        except LLMEvaluationError:  # the sample has changed, so the hash would differ anyway
            return None
        digest = hash_variant(route["route"], messages, route["parameters"])
        if digests_of(result.pipeline_run_id)[1] != with_reasks(digest, self._reasks):
            return None
        return [[message.role, message.content] for message in messages]


def _parse_template(text: Any) -> Template | None:
    try:
        return Template.parse(text) if isinstance(text, str) else None
    except LLMEvaluationError:
        return None
