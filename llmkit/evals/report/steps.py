"""Calls, tokens, cost and latency of pipelines: for the whole sample, and for each of its steps."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypedDict

from llmkit.eval_ports import EvalResult, RecordedCall
from llmkit.evals.report.frames import derive_columns
from llmkit.types import RunStatus, ServedFrom

__all__ = ["STEP_COLUMNS", "WHOLE", "StepRow", "build_step_rows"]

# The row of a variant that is about whole samples.
WHOLE: Final = "all"


class StepRow(TypedDict, total=False):
    """One step of one variant, of `Analysis.steps`."""

    variant: str
    step: str
    samples: int
    calls: int
    failed: int
    requests: int
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float
    latency_ms: float


STEP_COLUMNS: Mapping[str, str] = derive_columns(StepRow)


def build_step_rows(results: Iterable[EvalResult], calls: Iterable[RecordedCall]) -> Iterator[dict[str, Any]]:
    """Build a row for each variant and step, in the order in which steps were first made, after one for whole samples.

    Args:
        results: Results of the run.
        calls: Its calls. Answers from the store are left out: the calls that were paid for them are there as well.
    """
    by_name = {result.pipeline_run_id: result for result in results}
    made: defaultdict[str, defaultdict[str, list[RecordedCall]]] = defaultdict(lambda: defaultdict(list))
    for call in calls:
        result = by_name.get(call.pipeline_run_id)
        if result is not None and call.step is not None and call.served_from is not ServedFrom.REPLAY:
            made[result.route][call.step].append(call)
    latencies: defaultdict[str, list[float]] = defaultdict(list)
    for result in by_name.values():
        if result.latency_ms is not None:
            latencies[result.route].append(result.latency_ms)
    for variant, steps in made.items():
        everything = [call for each in steps.values() for call in each]
        yield {"variant": variant, "step": WHOLE, **_sum_calls(everything), "latency_ms": _mean(latencies[variant])}
        for step, each in steps.items():
            spent = [sum(attempt.latency_ms for attempt in call.attempts) for call in each if call.attempts]
            yield {"variant": variant, "step": step, **_sum_calls(each), "latency_ms": _mean(spent)}


def _sum_calls(calls: list[RecordedCall]) -> dict[str, Any]:
    attempts = [attempt for call in calls for attempt in call.attempts]
    prices = [attempt.cost_usd for attempt in attempts if attempt.cost_usd is not None]
    inputs = [attempt.usage.input_tokens for attempt in attempts if attempt.usage.input_tokens is not None]
    outputs = [attempt.usage.output_tokens for attempt in attempts if attempt.usage.output_tokens is not None]
    return {
        "samples": len({call.pipeline_run_id for call in calls}),
        "calls": len(calls),
        "failed": sum(call.status is RunStatus.FAILED for call in calls),
        "requests": len(attempts),
        "input_tokens": sum(inputs) if inputs else None,
        "output_tokens": sum(outputs) if outputs else None,
        "cost_usd": sum(prices) if prices else math.nan,
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
