"""The samples with the answers of all variants, as data for the page's script."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmkit.eval_ports import EvalResult, RecordedCall
from llmkit.evals.report.frames import SAMPLE_STAGE, sort_results
from llmkit.evals.report.html.fields import Fields, is_different, split_by_field, to_display_text
from llmkit.evals.report.html.prompts import PromptRenderer
from llmkit.evals.results import FAILED, IN_PROGRESS, NOT_RUN, fell_back
from llmkit.types import Attempt, RunStatus, ServedFrom

if TYPE_CHECKING:
    from llmkit.evals.dataset.dataset import Sample
    from llmkit.evals.report.analysis import Analysis

__all__ = ["build_page_data", "get_single_field"]

SHOWN_DIGEST = 12
UNUSABLE = "answered, but no valid output came of it"


def build_page_data(report: Analysis, calls: Iterable[RecordedCall], *, stable: bool) -> dict[str, Any]:
    """Build variants, metrics and one case for each sample and epoch. A case omits unknown and empty values."""
    builder, lower = _CaseBuilder.from_report(report, calls, stable=stable), report.lower_is_better
    return {
        "variants": list(report.variants),
        "metrics": list(report.metrics),
        "lower": [number for number, metric in enumerate(report.metrics) if metric in lower],
        "epochs": 1 + max((result.epoch for result in report.results), default=0),
        "cases": [builder.build_case(results) for results in _group_results(report)],
    }


def _group_results(report: Analysis) -> list[list[EvalResult]]:
    """Group results by sample and epoch, in the order of `samples()`."""
    groups: defaultdict[tuple[str, int], list[EvalResult]] = defaultdict(list)
    for result in sort_results(report.results, report.dataset, report.variants):
        groups[result.sample_id, result.epoch].append(result)
    return list(groups.values())


def get_single_field(report: Analysis) -> str | None:
    """Return the name of the output type's only field; None when it has several or none."""
    names = list(report.run.spec.get("task", {}).get("output schema", {}).get("properties", {}))
    return names[0] if len(names) == 1 else None


@dataclass(frozen=True, slots=True)
class _CaseBuilder:
    """Builder of the cases of a page."""

    dataset: Mapping[str, Sample]
    variants: Sequence[str]
    metrics: Sequence[str]
    only_field: str | None
    prompts: PromptRenderer
    calls: Mapping[str, list[RecordedCall]]
    stable: bool

    @classmethod
    def from_report(cls, report: Analysis, calls: Iterable[RecordedCall], *, stable: bool) -> _CaseBuilder:
        by_name: defaultdict[str, list[RecordedCall]] = defaultdict(list)
        for call in calls:
            by_name[call.pipeline_run_id].append(call)
        prompts = PromptRenderer(report)
        return cls(report.dataset, report.variants, report.metrics, get_single_field(report), prompts, by_name, stable)

    def build_case(self, results: Sequence[EvalResult]) -> dict[str, Any]:
        """Build one sample in one epoch."""
        sample = self.dataset.get(results[0].sample_id)
        target = split_by_field(sample.target, self.only_field) if sample and sample.target is not None else {}
        outputs = [
            {} if result.output_json is None else split_by_field(json.loads(result.output_json), self.only_field)
            for result in results
        ]
        paths = list(dict.fromkeys([*target, *(path for output in outputs for path in output)]))
        prompts: list[Any] = []
        return _drop_empty(
            id=results[0].sample_id,
            epoch=results[0].epoch,
            group=sample.group if sample else results[0].sample_group,
            input=to_display_text(sample.input) if sample else None,
            fields=paths,
            target=[to_display_text(target[path]) if path in target else None for path in paths] if target else None,
            results=[
                self._build_result(result, output, target, paths, prompts)
                for result, output in zip(results, outputs, strict=True)
            ],
            prompts=prompts,
        )

    def _build_result(
        self, result: EvalResult, output: Fields, target: Fields, paths: Sequence[str], prompts: list[Any]
    ) -> dict[str, Any]:
        calls = self.calls.get(result.pipeline_run_id, [])
        prompt = self._find_prompt(result, calls)
        if prompt is not None and prompt not in prompts:
            prompts.append(prompt)
        is_known = result.output_json is not None
        return _drop_empty(
            variant=self.variants.index(result.route),
            status=result.status,
            code=result.error_code,
            message=result.error_message,
            served=result.served_route if fell_back(result) else None,
            prompt=None if prompt is None else prompts.index(prompt),
            values=[to_display_text(output[path]) if path in output else None for path in paths] if is_known else None,
            differing=[
                number
                for number, path in enumerate(paths)
                if is_known and path in target and (path not in output or is_different(target[path], output[path]))
            ],
            scores=[result.scores.get(metric) for metric in self.metrics],
            details=result.score_details,
            problems=result.scorer_errors,
            outcome=result.outcome,
            mode=result.output_mode,
            tokens=[result.input_tokens, result.output_tokens],
            ms=None if self.stable or result.latency_ms is None else round(result.latency_ms, 1),
            requests=result.requests,
            warnings=list(result.warnings),
            calls=[self._build_call(call, result, is_first=call is _find_first_call(calls)) for call in calls],
        )

    def _find_prompt(self, result: EvalResult, calls: Sequence[RecordedCall]) -> dict[str, Any] | None:
        """Return the messages as they were sent, or else the recorded, shortened form."""
        if result.status in (NOT_RUN, IN_PROGRESS):
            return None
        messages = self.prompts.render(result)
        if messages is not None:
            return {"turns": [[role, to_display_text(text)] for role, text in messages]}
        recorded = _find_first_call(calls)
        return None if recorded is None else {"recorded": recorded.prompt}

    def _build_call(self, call: RecordedCall, result: EvalResult, *, is_first: bool) -> dict[str, Any]:
        is_answer = call.answer is not None and _is_same_json(call.answer, result.output_json)
        is_unusable = result.status == FAILED and call.status is RunStatus.SUCCEEDED and call.stage == SAMPLE_STAGE
        return _drop_empty(
            stage=call.stage,
            step=call.step,
            status=str(call.status),
            # A call that was answered SUCCEEDED; that no valid output came of it is the sample's failure.
            remark=UNUSABLE if is_unusable else None,
            source=None if call.served_from in (None, ServedFrom.PROVIDER) else str(call.served_from),
            code=call.error_code,
            message=call.error_message,
            prompt=None if is_first else call.prompt,
            answer=None if is_answer else call.answer,
            attempts=[self._build_attempt(attempt) for attempt in call.attempts],
        )

    def _build_attempt(self, attempt: Attempt) -> dict[str, Any]:
        return _drop_empty(
            model=str(attempt.route),
            status=str(attempt.status),
            tokens=[attempt.usage.input_tokens, attempt.usage.output_tokens],
            ms=None if self.stable else round(attempt.latency_ms, 1),
            finish=attempt.finish_reason,
            digest=None if attempt.model_digest is None else attempt.model_digest[:SHOWN_DIGEST],
            http=attempt.status_code,
            code=attempt.error_code,
            message=attempt.error_message,
            usd=attempt.cost_usd,
        )


def _find_first_call(calls: Iterable[RecordedCall]) -> RecordedCall | None:
    """Return the first call for the sample itself: reasks and judges have prompts of their own."""
    return next((call for call in calls if call.stage == SAMPLE_STAGE and call.prompt), None)


def _drop_empty(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, "", [], {})}


def _is_same_json(text: str, output_json: str | None) -> bool:
    if output_json is None:
        return False
    try:
        return bool(json.loads(text) == json.loads(output_json))
    except ValueError:
        return False
