"""Routing policies as data: cascades, splits and mixes of variants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from llmkit.errors import LLMEvaluationError
from llmkit.evals.dataset.dataset import Sample

__all__ = [
    "CONDITIONS",
    "Below",
    "Cascade",
    "Condition",
    "Mix",
    "Policy",
    "PolicyFunction",
    "RecordedStep",
    "Signal",
    "Split",
    "describe_policy",
    "list_variants",
    "needs_fit",
    "set_threshold",
]

ConditionName: TypeAlias = Literal["failed", "repaired", "reasked", "epochs_disagree"]
CONDITIONS: tuple[ConditionName, ...] = ("failed", "repaired", "reasked", "epochs_disagree")


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One recorded answer, as a policy function sees it.

    Attributes:
        variant: Label of the variant that was called.
        status: `SUCCEEDED`, `FAILED` or `SCORER_FAILED`.
        output: The validated output as JSON value; None when there is none.
        outcome: `first_try`, `repaired` or `reasked`; None when there is no valid output.
        error_code: Code of the error of a FAILED answer.
    """

    variant: str
    status: str
    output: Any = None
    outcome: str | None = None
    error_code: str | None = None


Signal: TypeAlias = str | Callable[[Any, Sample], float | None]
PolicyFunction: TypeAlias = Callable[[Sample, tuple[RecordedStep, ...]], str | None]


@dataclass(frozen=True, slots=True)
class Below:
    """A condition that is met where a number is below a threshold.

    Attributes:
        signal: Name of a numeric field of the output (`"confidence"`, `"address.certainty"`), or a function of output
            and sample. Where it is None, the policy has no result for the sample.
        threshold: The condition is met below it. None: chosen on the data, for the highest mean score.
        max_share: Largest share of samples that a chosen threshold may send on; 1 by default.
    """

    signal: Signal
    threshold: float | None = None
    max_share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.max_share <= 1:
            raise LLMEvaluationError(f"max_share must be between 0 and 1; got {self.max_share!r}.")


Condition: TypeAlias = ConditionName | Below | Callable[[Any, Sample], bool]


@dataclass(frozen=True, slots=True)
class Cascade:
    """Call `first`; go on to `second` where an answer of `first` is missing or meets a condition.

    Both calls count in money, tokens and time. A FAILED answer always goes on. Chains are nested: `Cascade("a",
    Cascade("b", "c", when="repaired"), when=Below("confidence", 0.8))`.

    Attributes:
        first: A variant's label or a policy.
        second: The same.
        when: One condition or a sequence of them, any of which is enough: `failed`, `repaired`, `reasked`,
            `epochs_disagree` (all epochs of the sample are paid for), `Below(...)`, or a function of output and sample.
    """

    first: Policy
    second: Policy
    when: Condition | Sequence[Condition] = "failed"

    def __post_init__(self) -> None:
        for policy in (self.first, self.second):
            _require_policy(policy)
        unknown = [each for each in self.conditions if isinstance(each, str) and each not in CONDITIONS]
        if unknown:
            raise LLMEvaluationError(f"Unknown condition {unknown[0]!r}; use {', '.join(CONDITIONS)}, Below(...) or f.")
        if sum(isinstance(each, Below) and each.threshold is None for each in self.conditions) > 1:
            raise LLMEvaluationError("Only one threshold of a Cascade can be chosen on the data; set the others.")

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """The conditions as a tuple."""
        if isinstance(self.when, str | Below) or callable(self.when):
            return (self.when,)
        return tuple(self.when)


@dataclass(frozen=True, slots=True)
class Split:
    """Choose a policy by a property of the sample.

    Attributes:
        by: `"group"`, `"metadata.KEY"`, or a function of the sample.
        choose: Policy for each value; or a sequence of policies, of which the best one for each value is chosen on the
            data.
        default: Policy for other values; without one the policy has no result for such a sample.
    """

    by: str | Callable[[Sample], Any]
    choose: Mapping[Any, Policy] | Sequence[Policy]
    default: Policy | None = None

    def __post_init__(self) -> None:
        if isinstance(self.by, str) and self.by != "group" and not self.by.startswith("metadata."):
            raise LLMEvaluationError(f"by must be 'group', 'metadata.KEY' or a function; got {self.by!r}.")
        if isinstance(self.choose, str) or not self.choose:
            raise LLMEvaluationError("choose must be a mapping from value to policy, or a list of policies.")
        for policy in self.policies:
            _require_policy(policy)

    @property
    def policies(self) -> tuple[Policy, ...]:
        """All policies that may be chosen."""
        chosen = tuple(self.choose.values()) if isinstance(self.choose, Mapping) else tuple(self.choose)
        return chosen if self.default is None else (*chosen, self.default)


@dataclass(frozen=True, slots=True)
class Mix:
    """Send a share of the samples to `second`, the rest to `first`, at random.

    The forecast is the expectation, not one draw.

    Attributes:
        first: A variant's label or a policy.
        second: The same.
        share: The share of `second`, between 0 and 1.
    """

    first: Policy
    second: Policy
    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise LLMEvaluationError(f"share must be between 0 and 1; got {self.share!r}.")
        for policy in (self.first, self.second):
            _require_policy(policy)


Policy: TypeAlias = str | Cascade | Split | Mix | PolicyFunction


def _require_policy(policy: object) -> None:
    if not isinstance(policy, str | Cascade | Split | Mix) and not callable(policy):
        raise LLMEvaluationError(
            f"A policy is a variant's label, Cascade, Split, Mix or a function; got {type(policy).__name__}."
        )


def needs_fit(policy: Policy) -> bool:
    """Return whether some part of the policy is to be chosen on the data."""
    match policy:
        case Cascade():
            chosen = any(isinstance(each, Below) and each.threshold is None for each in policy.conditions)
            return chosen or needs_fit(policy.first) or needs_fit(policy.second)
        case Split():
            return not isinstance(policy.choose, Mapping) or any(needs_fit(each) for each in policy.policies)
        case Mix():
            return needs_fit(policy.first) or needs_fit(policy.second)
        case _:
            return False


def list_variants(policy: Policy) -> tuple[str, ...]:
    """Return the labels that the policy names, each once; those that a function returns are not known."""
    match policy:
        case str():
            return (policy,)
        case Cascade() | Mix():
            return tuple(dict.fromkeys([*list_variants(policy.first), *list_variants(policy.second)]))
        case Split():
            return tuple(dict.fromkeys(label for each in policy.policies for label in list_variants(each)))
        case _:
            return ()


def describe_policy(policy: Policy) -> str:
    """Return the policy in one line, with the thresholds and choices that it has."""
    match policy:
        case str():
            return policy
        case Cascade():
            conditions = " or ".join(_describe_condition(each) for each in policy.conditions)
            return f"{_nest(policy.first)} then {_nest(policy.second)} when {conditions}"
        case Mix():
            return f"{policy.share:.0%} {_nest(policy.second)}, else {_nest(policy.first)}"
        case Split():
            return f"by {_name(policy.by)}: {_describe_choice(policy)}"
        case _:
            return _name(policy)


def _describe_choice(split: Split) -> str:
    if not isinstance(split.choose, Mapping):
        return "the best of " + ", ".join(_nest(each) for each in split.choose)
    parts = [f"{value} to {_nest(policy)}" for value, policy in split.choose.items()]
    return ", ".join(parts if split.default is None else [*parts, f"others to {_nest(split.default)}"])


def _describe_condition(condition: Condition) -> str:
    if isinstance(condition, Below):
        limit = "a chosen threshold" if condition.threshold is None else f"{condition.threshold:.4g}"
        return f"{_name(condition.signal)} is below {limit}"
    return condition if isinstance(condition, str) else _name(condition)


def _nest(policy: Policy) -> str:
    text = describe_policy(policy)
    return text if isinstance(policy, str) or callable(policy) else f"({text})"


def _name(value: object) -> str:
    return value if isinstance(value, str) else str(getattr(value, "__name__", type(value).__name__))


def set_threshold(cascade: Cascade, threshold: float) -> Cascade:
    """Return the cascade with its open threshold set."""
    return replace(
        cascade,
        when=tuple(
            replace(each, threshold=threshold) if isinstance(each, Below) and each.threshold is None else each
            for each in cascade.conditions
        ),
    )
