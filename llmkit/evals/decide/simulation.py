"""Simulation of a policy on recorded results: who would have been called, and what it would have cost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalResult
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.decide.policies import (
    Below,
    Cascade,
    Condition,
    Mix,
    Policy,
    PolicyFunction,
    RecordedStep,
    Signal,
    Split,
    list_variants,
)
from llmkit.evals.results import FAILED, SCORER_FAILED, STORED_STATUSES

__all__ = [
    "Branch",
    "Measure",
    "Outcome",
    "RecordedResults",
    "SampleKey",
    "make_unknown",
    "measure_outcome",
    "read_key",
    "read_signal",
    "simulate",
]

# More calls for one sample mean that a policy function does not end.
MAX_STEPS = 20

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
    """

    score: float
    cost_usd: float
    input_tokens: float
    output_tokens: float
    latencies: tuple[tuple[float, float], ...]
    calls: float
    escalated: float
    missing: str | None


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
        return RecordedStep(result.route, result.status, self.output(result), result.outcome, result.error_code)

    def epochs(self, result: EvalResult) -> list[EvalResult]:
        """Return the results of the same variant and sample in all epochs."""
        of_variant = self.by_variant[result.route]
        return [each for (sample_id, _epoch), each in of_variant.items() if sample_id == result.sample_id]


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
    return [branch._replace(weight=branch.weight * weight) for branch in branches] if weight else []


def _cascade(cascade: Cascade, first: Branch, recorded: RecordedResults, key: SampleKey) -> list[Branch]:
    if first.missing:
        return [first]
    calls = list(first.calls)
    if "epochs_disagree" in cascade.conditions:
        calls += [each for each in recorded.epochs(calls[-1]) if each is not calls[-1]]
    goes_on, missing = _decide(cascade.conditions, first.calls[-1], recorded)
    if missing or not goes_on:
        # The answer stays the last call, whatever else was paid for to decide.
        paid = (*calls[len(first.calls) :], *first.calls)
        return [Branch(first.weight, paid, missing)]
    return [
        Branch(first.weight * second.weight, (*calls, *second.calls), second.missing)
        for second in simulate(cascade.second, recorded, key)
    ]


def _decide(conditions: Sequence[Condition], answer: EvalResult, recorded: RecordedResults) -> tuple[bool, str | None]:
    """Return whether any condition is met, and why that is unknown."""
    if answer.status == FAILED:
        return True, None
    unknown: str | None = None
    for condition in conditions:
        is_met, missing = _check_condition(condition, answer, recorded)
        if is_met:
            return True, None
        unknown = unknown or missing
    return False, unknown


def _check_condition(condition: Condition, answer: EvalResult, recorded: RecordedResults) -> tuple[bool, str | None]:
    if condition == "epochs_disagree":
        epochs = recorded.epochs(answer)
        if len(epochs) < 2:
            return False, f"{answer.route} has one epoch, so nothing can disagree"
        return len({each.output_json for each in epochs}) > 1, None
    if isinstance(condition, str):
        if condition != "failed" and answer.outcome is None:
            return False, f"it was not recorded whether {answer.route} {condition}"
        return answer.outcome == condition, None
    output, sample = recorded.output(answer), recorded.sample(answer.sample_id)
    if isinstance(condition, Below):
        value = read_signal(condition.signal, output, sample)
        if value is None:
            return False, f"{answer.route} has no number for the signal"
        return condition.threshold is not None and value < condition.threshold, None
    return bool(_call(condition, output, sample)), None


def read_signal(signal: Signal, output: Any, sample: Sample) -> float | None:
    """Return the number that a signal has for an answer; None when it has none or NaN."""
    value = _call(signal, output, sample) if callable(signal) else _read_field(output, signal)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


def _read_field(output: Any, path: str) -> Any:
    for name in path.split("."):
        output = output.get(name) if isinstance(output, Mapping) else None
    return output


def _split(split: Split, recorded: RecordedResults, key: SampleKey) -> tuple[Branch, ...]:
    value = read_key(split, recorded, key)
    if not isinstance(split.choose, Mapping):
        raise LLMEvaluationError("This Split chooses on the data, so it has to be fitted first.")
    policy = split.choose.get(value, split.default)
    if policy is None:
        return (Branch(1.0, (), f"no policy for {value!r}"),)
    return simulate(policy, recorded, key)


def read_key(split: Split, recorded: RecordedResults, key: SampleKey) -> Any:
    """Return the value by which a split chooses for this sample."""
    sample = recorded.sample(key[0])
    if callable(split.by):
        value = _call(split.by, sample)
        return value if isinstance(value, Hashable) else repr(value)
    if split.by == "group":
        return sample.group
    value = (sample.metadata or {}).get(split.by.removeprefix("metadata."))
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value, sort_keys=True)


def _follow(function: PolicyFunction, recorded: RecordedResults, key: SampleKey) -> Branch:
    sample, calls = recorded.sample(key[0]), list[EvalResult]()
    for _ in range(MAX_STEPS):
        label = _call(function, sample, tuple(recorded.step(call) for call in calls))
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


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function of the user's. Its error is one line that names the function and the sample.

    Raises:
        LLMEvaluationError: It raised something; the cause is kept.
    """
    try:
        return function(*arguments)
    except Exception as error:
        name = getattr(function, "__name__", type(function).__name__)
        sample = next(each.key for each in arguments if isinstance(each, Sample))
        raise LLMEvaluationError(
            f"The policy's function {name} raised {type(error).__name__} on sample {sample}; its cause says why."
        ) from error


def measure_outcome(branches: Sequence[Branch], measure: Measure) -> Outcome:
    """Return the expected score, cost, tokens and calls over the courses of a policy."""
    missing = next((branch.missing for branch in branches if branch.missing), None)
    scores = [(math.nan, missing) if branch.missing else _score(branch.calls[-1], measure) for branch in branches]
    missing = missing or next((why for _score_value, why in scores if why), None)
    if missing:
        return make_unknown(missing)

    def expect(values: Sequence[float]) -> float:
        return math.fsum(branch.weight * value for branch, value in zip(branches, values, strict=True))

    return Outcome(
        score=expect([score for score, _why in scores]),
        cost_usd=expect([_total(measure.costs.get(c.pipeline_run_id) for c in branch.calls) for branch in branches]),
        input_tokens=expect([_total(call.input_tokens for call in branch.calls) for branch in branches]),
        output_tokens=expect([_total(call.output_tokens for call in branch.calls) for branch in branches]),
        latencies=tuple((b.weight, _total(call.latency_ms for call in b.calls)) for b in branches),
        calls=expect([len(branch.calls) for branch in branches]),
        escalated=expect([len(branch.calls) > 1 for branch in branches]),
        missing=None,
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
