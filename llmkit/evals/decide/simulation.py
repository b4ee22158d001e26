"""Simulation of a policy on recorded results: who would have been called, and what it would have cost."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalResult
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.policies import (
    MAX_STEPS,
    Below,
    Cascade,
    Condition,
    Mix,
    Policy,
    PolicyFunction,
    RecordedStep,
    Split,
    call_function,
    ends_policy,
    is_logprob,
    list_variants,
    read_key,
    read_signal,
)
from llmkit.evals.results import FAILED, SCORER_FAILED, STORED_STATUSES

__all__ = [
    "Branch",
    "Measure",
    "Outcome",
    "RecordedResults",
    "SampleKey",
    "list_logprobs",
    "make_unknown",
    "measure_outcome",
    "simulate",
]

SampleKey: TypeAlias = tuple[str, int]


class Branch(NamedTuple):
    """One course of a policy for one sample and epoch, with its probability.

    Attributes:
        weight: The probability.
        calls: The results of all calls in order; the last one is the policy's answer.
        missing: Why the course cannot be known from what was recorded; None when it is known.
    """

    weight: float
    calls: tuple[EvalResult, ...]
    missing: str | None = None


class Measure(NamedTuple):
    """How answers are measured.

    Attributes:
        metric: Name of the score.
        worst: The score of a FAILED answer; NaN when the metric has no known worst score.
        costs: USD of each result, by the name of its calls; a result that is absent has an unknown cost.
    """

    metric: str
    worst: float
    costs: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The measured course of a policy for one sample and epoch; NaN is unknown.

    Attributes:
        score: Expected score, with the worst score for a FAILED answer.
        cost_usd: Expected cost of all calls.
        input_tokens: Expected input tokens of all calls.
        output_tokens: Expected output tokens of all calls.
        latencies: Probability and time in ms of each course, one call after the other.
        calls: Expected number of calls.
        escalated: Probability of more than one call.
        missing: Why there is no score; None when there is one.
        variances: Variance over the courses of score, cost, tokens and `latency_ms`; empty where there is one course.
    """

    score: float
    cost_usd: float
    input_tokens: float
    output_tokens: float
    latencies: tuple[tuple[float, float], ...]
    calls: float
    escalated: float
    missing: str | None
    variances: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordedResults:
    """Results of one or more runs of a dataset, by variant, sample and epoch.

    Attributes:
        by_variant: Results of each variant by sample and epoch.
        samples: Samples by id; a sample that is not there has no input, target or metadata.
        groups: Group of each sample that has one.
    """

    by_variant: Mapping[str, Mapping[SampleKey, EvalResult]]
    samples: Mapping[str, Sample]
    groups: Mapping[str, str | None]
    _outputs: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    _epochs: dict[str, dict[str, list[EvalResult]]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def keys(self) -> tuple[SampleKey, ...]:
        """All samples and epochs that any variant has, in their first order."""
        return tuple(dict.fromkeys(key for results in self.by_variant.values() for key in results))

    def require_variants(self, policy: Policy) -> None:
        """Refuse a policy that names a variant without results.

        Raises:
            LLMEvaluationError: There is one; the message lists the known ones.
        """
        unknown = [label for label in list_variants(policy) if label not in self.by_variant]
        if unknown:
            raise LLMEvaluationError(f"There is no variant {unknown[0]!r}; there are: {', '.join(self.by_variant)}.")

    def sample(self, sample_id: str) -> Sample:
        """Return the sample, or one with nothing but its id and group when the dataset is not at hand."""
        known = self.samples.get(sample_id)
        return known if known is not None else Sample(input="", id=sample_id, group=self.groups.get(sample_id))

    def output(self, result: EvalResult) -> Any:
        """Return the validated output of a result as JSON value; None when there is none."""
        if result.output_json is None:
            return None
        if result.output_json not in self._outputs:
            self._outputs[result.output_json] = json.loads(result.output_json)
        return self._outputs[result.output_json]

    def step(self, result: EvalResult) -> RecordedStep:
        """Return a result as policy functions see it."""
        return RecordedStep(
            result.route,
            result.status,
            self.output(result),
            result.outcome,
            result.error_code,
            list_logprobs(result),
        )

    def epochs(self, result: EvalResult, most: int | None = None) -> list[EvalResult]:
        """Return the result, then those of the same variant and sample in the epochs after it, the first ones last.

        Args:
            result: The result of one epoch.
            most: How many to return; None for all.
        """
        if result.route not in self._epochs:
            # Once for each variant: a search for each sample would take minutes for ten thousand of them.
            by_sample: dict[str, list[EvalResult]] = {}
            for (sample_id, _epoch), each in self.by_variant[result.route].items():
                by_sample.setdefault(sample_id, []).append(each)
            self._epochs[result.route] = by_sample
        found = self._epochs[result.route][result.sample_id]
        place = next(place for place, each in enumerate(found) if each.epoch == result.epoch)
        return (found[place:] + found[:place])[:most]


def simulate(policy: Policy, recorded: RecordedResults, key: SampleKey) -> tuple[Branch, ...]:
    """Return the courses that a policy may take for one sample and epoch. Their weights sum to 1."""
    match policy:
        case str():
            return (_take(policy, recorded, key),)
        case Cascade():
            firsts = simulate(policy.first, recorded, key)
            return tuple(branch for first in firsts for branch in _cascade(policy, first, recorded, key))
        case Split():
            return _split(policy, recorded, key)
        case Mix():
            return (
                *_weigh(simulate(policy.first, recorded, key), 1 - policy.share),
                *_weigh(simulate(policy.second, recorded, key), policy.share),
            )
        case _:
            return (_follow(policy, recorded, key),)


def _take(label: str, recorded: RecordedResults, key: SampleKey) -> Branch:
    result = recorded.by_variant.get(label, {}).get(key)
    if result is None or result.status not in STORED_STATUSES:
        return Branch(1.0, (), f"{label} was not run on the sample")
    return Branch(1.0, (result,))


def _weigh(branches: Sequence[Branch], weight: float) -> list[Branch]:
    # Without weight a branch is left out, so that a share of 0 or 1 needs no results of the other variant.
    return [branch._replace(weight=branch.weight * weight) for branch in branches] if weight else []


def _cascade(cascade: Cascade, first: Branch, recorded: RecordedResults, key: SampleKey) -> list[Branch]:
    if first.missing:
        return [first]
    goes_on, missing, compared = _decide(cascade, first.calls[-1], recorded)
    if missing or not goes_on:
        # The answer stays the last call, whatever else was paid for to decide.
        return [Branch(first.weight, (*compared, *first.calls), missing)]
    return [
        Branch(first.weight * second.weight, (*first.calls, *compared, *second.calls), second.missing)
        for second in simulate(cascade.second, recorded, key)
    ]


def _decide(
    cascade: Cascade, answer: EvalResult, recorded: RecordedResults
) -> tuple[bool, str | None, list[EvalResult]]:
    """Return whether any condition is met, why that is unknown, and the answers that were only compared."""
    if answer.status == FAILED:
        ending = f"{answer.route} failed with {answer.error_code}, which ends a cascade"
        return (False, ending, []) if ends_policy(answer.error_code) else (True, None, [])
    unknown: str | None = None
    compared: list[EvalResult] = []
    for condition in cascade.conditions:
        if condition == "epochs_disagree":
            compared = recorded.epochs(answer, cascade.epochs)[1:]
        is_met, missing = _check_condition(condition, answer, recorded, cascade.epochs)
        if is_met:
            # One condition is enough, so it does not matter that an earlier one is unknown.
            return True, None, compared
        unknown = unknown or missing
    return False, unknown, compared


def _check_condition(
    condition: Condition, answer: EvalResult, recorded: RecordedResults, most_epochs: int | None
) -> tuple[bool, str | None]:
    if condition == "epochs_disagree":
        epochs = recorded.epochs(answer, most_epochs)
        if len(epochs) < (most_epochs or 2):
            known = "one epoch" if len(epochs) == 1 else f"{len(epochs)} epochs"
            compared = "nothing can disagree" if most_epochs in (None, 2) else f"{most_epochs} cannot be compared"
            return False, f"{answer.route} has {known}, so {compared}"
        return len({each.output_json for each in epochs}) > 1, None
    if isinstance(condition, str):
        if condition != "failed" and answer.outcome is None:
            return False, f"it was not recorded whether {answer.route} {condition}"
        return answer.outcome == condition, None
    output, sample = recorded.output(answer), recorded.sample(answer.sample_id)
    if isinstance(condition, Below):
        value = read_signal(condition.signal, output, sample, list_logprobs(answer))
        if value is None:
            is_named = isinstance(condition.signal, str) and is_logprob(condition.signal)
            what = "recorded log-probability" if is_named else "number for the signal"
            return False, f"{answer.route} has no {what}"
        return condition.threshold is not None and value < condition.threshold, None
    return bool(call_function(condition, output, sample)), None


def list_logprobs(answer: EvalResult) -> dict[str, float]:
    """Return the recorded log-probabilities of an answer under the names that `Below` knows them by."""
    known = {"logprob_mean": answer.logprob_mean, "logprob_min": answer.logprob_min}
    for path, of_field in answer.field_logprobs.items():
        known |= {f"logprob_{kind}.{path}": value for kind, value in of_field.items()}
    return {name: value for name, value in known.items() if value is not None}


def _split(split: Split, recorded: RecordedResults, key: SampleKey) -> tuple[Branch, ...]:
    value = read_key(split, recorded.sample(key[0]))
    if not isinstance(split.choose, Mapping):
        raise LLMEvaluationError("This Split chooses on the data, so it has to be fitted first.")
    policy = split.choose.get(value, split.default)
    if policy is None:
        return (Branch(1.0, (), f"no policy for {value!r}"),)
    return simulate(policy, recorded, key)


def _follow(function: PolicyFunction, recorded: RecordedResults, key: SampleKey) -> Branch:
    sample, calls = recorded.sample(key[0]), list[EvalResult]()
    for _ in range(MAX_STEPS):
        label = call_function(function, sample, tuple(recorded.step(call) for call in calls))
        if label is None:
            return Branch(1.0, tuple(calls), None if calls else "the policy called nothing")
        if label not in recorded.by_variant:
            known = ", ".join(recorded.by_variant)
            raise LLMEvaluationError(f"The policy returned {label!r}, which is no variant; there are: {known}.")
        taken = _take(label, recorded, key)
        calls += taken.calls
        if taken.missing:
            return Branch(1.0, tuple(calls), taken.missing)
    raise LLMEvaluationError(f"The policy called {MAX_STEPS} variants for one sample; return None to end.")


def make_unknown(missing: str) -> Outcome:
    """Return an outcome of which nothing is known, with the reason."""
    return Outcome(
        score=math.nan,
        cost_usd=math.nan,
        input_tokens=math.nan,
        output_tokens=math.nan,
        latencies=(),
        calls=math.nan,
        escalated=math.nan,
        missing=missing,
    )


def measure_outcome(branches: Sequence[Branch], measure: Measure) -> Outcome:
    """Return the expected score, cost, tokens and calls over the courses of a policy."""
    missing = next((branch.missing for branch in branches if branch.missing), None)
    scores = [(math.nan, missing) if branch.missing else _score(branch.calls[-1], measure) for branch in branches]
    # However small its weight: leaving out what is missing would estimate the policy on the easier branches.
    missing = missing or next((why for _score_value, why in scores if why), None)
    if missing:
        return make_unknown(missing)

    def expect(values: Sequence[float]) -> float:
        return math.fsum(branch.weight * value for branch, value in zip(branches, values, strict=True))

    measures = {
        "score": [score for score, _why in scores],
        "cost_usd": [_total(measure.costs.get(call.pipeline_run_id) for call in each.calls) for each in branches],
        "input_tokens": [_total(call.input_tokens for call in branch.calls) for branch in branches],
        "output_tokens": [_total(call.output_tokens for call in branch.calls) for branch in branches],
        "latency_ms": [_total(call.latency_ms for call in branch.calls) for branch in branches],
    }
    means = {name: expect(values) for name, values in measures.items()}
    variances = {name: expect([(v - means[name]) ** 2 for v in values]) for name, values in measures.items()}
    return Outcome(
        score=means["score"],
        cost_usd=means["cost_usd"],
        input_tokens=means["input_tokens"],
        output_tokens=means["output_tokens"],
        latencies=tuple((b.weight, ms) for b, ms in zip(branches, measures["latency_ms"], strict=True)),
        calls=expect([len(branch.calls) for branch in branches]),
        escalated=expect([len(branch.calls) > 1 for branch in branches]),
        missing=None,
        variances=variances if len(branches) > 1 else {},
    )


def _score(answer: EvalResult, measure: Measure) -> tuple[float, str | None]:
    if measure.metric in answer.scores:
        return answer.scores[measure.metric], None
    if answer.status == FAILED and not math.isnan(measure.worst):
        return measure.worst, None
    if answer.status == FAILED:
        return math.nan, f"{answer.route} failed, and {measure.metric} has no worst score"
    why = "its scorer failed" if answer.status == SCORER_FAILED else f"it has no score {measure.metric}"
    return math.nan, f"{answer.route}: {why}"


def _total(values: Any) -> float:
    """Return the sum, NaN when one of the values is not known."""
    return math.fsum(math.nan if value is None else value for value in values)
