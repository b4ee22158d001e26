"""Routing policies as data: cascades, splits and mixes of variants."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from typing_extensions import TypeIs

from llmkit.canonical_json import sha256_of
from llmkit.errors import LLMError, LLMEvaluationError, LLMUnusableAnswer
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.user_code import read_source

__all__ = [
    "CONDITIONS",
    "LOGPROB_SIGNALS",
    "MAX_STEPS",
    "Below",
    "Cascade",
    "Condition",
    "Mix",
    "Policy",
    "PolicyFunction",
    "RecordedStep",
    "Signal",
    "Split",
    "call_function",
    "count_epochs",
    "describe_policy",
    "ends_policy",
    "identify_policy",
    "is_logprob",
    "is_policy",
    "list_conditions",
    "list_measured_variants",
    "list_variants",
    "needs_fit",
    "read_key",
    "read_signal",
    "require_policy",
    "set_threshold",
]

# More calls for one sample mean that a policy function does not end.
MAX_STEPS = 20

ConditionName: TypeAlias = Literal["failed", "repaired", "reasked", "epochs_disagree"]
CONDITIONS: tuple[ConditionName, ...] = ("failed", "repaired", "reasked", "epochs_disagree")
LOGPROB_SIGNALS = ("logprob_mean", "logprob_min")
"""Names by which `Below` reads recorded log-probabilities; a field follows after a dot."""


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One recorded answer, as a policy function sees it.

    Attributes:
        variant: Label of the variant that was called.
        status: `SUCCEEDED`, `FAILED` or `SCORER_FAILED`.
        output: The validated output as JSON value; None when there is none.
        outcome: `first_try`, `repaired` or `reasked`; None when there is no valid output.
        error_code: Code of the error of a FAILED answer.
        logprobs: Recorded log-probabilities: `logprob_mean`, `logprob_min`, and each with `.FIELD` for a field.
    """

    variant: str
    status: str
    output: Any = None
    outcome: str | None = None
    error_code: str | None = None
    logprobs: Mapping[str, float] = field(default_factory=dict)


Signal: TypeAlias = str | Callable[[Any, Sample], float | None]
PolicyFunction: TypeAlias = Callable[[Sample, tuple[RecordedStep, ...]], str | None]


@dataclass(frozen=True, slots=True)
class Below:
    """A condition that is met where a number is below a threshold.

    Attributes:
        signal: Name of a numeric field of the output (`"confidence"`, `"address.certainty"`), or a function of output
            and sample; or `"logprob_mean"` or `"logprob_min"`, the recorded log-probabilities of the answer's tokens,
            and `"logprob_min.city"`, those of one field. Where it is None, the policy has no result for the sample.
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
        epochs: How many answers of `first` are compared for `epochs_disagree`; None for all that were recorded. A
            policy that runs for real needs the number.
    """

    first: Policy
    second: Policy
    when: Condition | Sequence[Condition] = "failed"
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and (not isinstance(self.epochs, int) or self.epochs < 2):
            raise LLMEvaluationError(f"epochs of a Cascade must be at least 2, or None; got {self.epochs!r}.")
        for policy in (self.first, self.second):
            require_policy(policy)
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
            require_policy(policy)

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
            require_policy(policy)


Policy: TypeAlias = str | Cascade | Split | Mix | PolicyFunction


def is_policy(value: object) -> TypeIs[Policy]:
    """Return whether a value is a policy."""
    return isinstance(value, str | Cascade | Split | Mix) or callable(value)


def require_policy(policy: object) -> None:
    """Refuse what is no policy.

    Raises:
        LLMEvaluationError: It is none.
    """
    if not is_policy(policy):
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


def list_conditions(policy: Policy) -> Iterator[tuple[Cascade, Condition]]:
    """Yield every condition in a policy with its cascade."""
    match policy:
        case Cascade():
            yield from ((policy, condition) for condition in policy.conditions)
            parts: tuple[Policy, ...] = (policy.first, policy.second)
        case Mix():
            parts = (policy.first, policy.second)
        case Split():
            parts = policy.policies
        case _:
            parts = ()
    for part in parts:
        yield from list_conditions(part)


def count_epochs(policy: Policy) -> int:
    """Return the most answers of one variant that a cascade of the policy compares; 1 when none does."""
    return max((c.epochs or 1 for c, condition in list_conditions(policy) if condition == "epochs_disagree"), default=1)


def identify_policy(policy: Policy) -> str:
    """Return a hash of everything in a policy that decides who is called, the source text of functions included."""
    return sha256_of(_list_parts(policy))


def _list_parts(policy: Any) -> Any:
    match policy:
        case None | bool() | int() | str():
            return policy
        case float():
            return policy if math.isfinite(policy) else str(policy)
        case Cascade():
            conditions = [_list_parts(each) for each in policy.conditions]
            return ["cascade", _list_parts(policy.first), _list_parts(policy.second), conditions, policy.epochs]
        case Mix():
            return ["mix", _list_parts(policy.first), _list_parts(policy.second), policy.share]
        case Split() if isinstance(policy.choose, Mapping):
            choose = [[repr(value), _list_parts(part)] for value, part in policy.choose.items()]
            return ["split", _list_parts(policy.by), choose, _list_parts(policy.default)]
        case Split():
            return ["split", _list_parts(policy.by), [_list_parts(each) for each in policy.policies]]
        case Below():
            return ["below", _list_parts(policy.signal), _list_parts(policy.threshold), policy.max_share]
        case _:
            try:
                return ["function", _name(policy), read_source(policy)]
            except (OSError, TypeError):
                return ["function", _name(policy)]


def _list_codes(parent: type[LLMError], *, goes_on: bool = False) -> Iterator[str]:
    goes_on = goes_on or parent.retryable or parent is LLMUnusableAnswer
    if goes_on:
        yield parent.code
    for child in parent.__subclasses__():
        yield from _list_codes(child, goes_on=goes_on)


# As in the router, another model is asked where the first one gave no usable answer, and not where the request cannot
# be sent: a wrong key would otherwise send every sample to the dearer model.
_CODES_THAT_GO_ON = frozenset(_list_codes(LLMError))


def ends_policy(error_code: str | None) -> bool:
    """Return whether a failure with this code ends a cascade instead of going on: a key, a model, a bad request."""
    return error_code is not None and error_code not in _CODES_THAT_GO_ON


def list_measured_variants(policy: Policy) -> frozenset[str]:
    """Return the variants whose answers' log-probabilities a condition of the policy reads."""
    return frozenset(
        label
        for cascade, each in list_conditions(policy)
        if isinstance(each, Below) and isinstance(each.signal, str) and is_logprob(each.signal)
        for label in list_variants(cascade.first)
    )


def is_logprob(signal: str) -> bool:
    """Return whether a signal is the name of a log-probability."""
    return signal.split(".")[0] in LOGPROB_SIGNALS


def read_signal(signal: Signal, output: Any, sample: Sample, logprobs: Mapping[str, float]) -> float | None:
    """Return the number that a signal has for an answer; None when it has none or NaN.

    Args:
        signal: See `Below`.
        output: The validated output as JSON value.
        sample: The sample.
        logprobs: Log-probabilities of the answer, by the names that `Below` knows them by.
    """
    value: Any = output
    if callable(signal):
        value = call_function(signal, output, sample)
    elif is_logprob(signal):
        value = logprobs.get(signal)
    else:
        for name in signal.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


def read_key(split: Split, sample: Sample) -> Hashable:
    """Return the value by which a split chooses for this sample."""
    if callable(split.by):
        value = call_function(split.by, sample)
        return value if isinstance(value, Hashable) else repr(value)
    if split.by == "group":
        return sample.group
    value = (sample.metadata or {}).get(split.by.removeprefix("metadata."))
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value, sort_keys=True)


def call_function(function: Callable[..., Any], *arguments: Any) -> Any:
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
