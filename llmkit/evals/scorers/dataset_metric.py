"""Scorers that see more than one answer: all samples of a variant, or all epochs of a sample."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, cast, overload, runtime_checkable

from pydantic_core import to_jsonable_python

from llmkit.errors import LLMEvaluationError
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.scorers.base import Score, ScoreLike
from llmkit.evals.scorers.numerals import choose_numerals
from llmkit.evals.scorers.target import SingleField
from llmkit.evals.scorers.values import find_at_path

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers: TypeAlias = NDArray[np.float64]

__all__ = [
    "FAILED_ANSWER",
    "AdditiveMetric",
    "Answered",
    "Calibration",
    "ClassMetric",
    "Counts",
    "DatasetMetric",
    "balanced_accuracy",
    "calibration",
    "dataset_metric",
    "is_dataset_metric",
    "macro_f1",
    "majority",
    "per_class",
    "read_label",
]

# Stands for the answer of a FAILED result. It is no class, so it only lowers the recall of the target's class.
FAILED_ANSWER = "(failed)"
DEFAULT_BINS = 10


@dataclass(frozen=True, slots=True)
class Answered:
    """A sample with one answer to it.

    Attributes:
        sample: The sample.
        output: The validated output; None where the result is FAILED.
        epoch: Number of the repeat, from 0.
        scores: Scores of the other scorers, by name.
    """

    sample: Sample
    output: Any
    epoch: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class DatasetMetric(Protocol):
    """A scorer of many answers. `over` is `samples` (all of a variant) or `epochs` (all of a sample)."""

    is_dataset_metric: ClassVar[bool]

    @property
    def name(self) -> str:
        """The metric's name: unique within a task."""
        ...

    @property
    def over(self) -> Literal["samples", "epochs"]:
        """Which answers it sees at once."""
        ...

    @property
    def lower_is_better(self) -> bool:
        """Whether less is better."""
        ...

    def __call__(self, answers: Sequence[Answered], /) -> ScoreLike:
        """Score the answers."""
        ...


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of each answer that are summed, and the function from sums to the metric.

    Attributes:
        features: A row of numbers for each answer.
        combine: Returns the numbers by name from rows of sums; the metric's own value has the name "".
    """

    features: Numbers
    combine: Callable[[Numbers], Mapping[str, Numbers]]


class AdditiveMetric(Protocol):
    """A dataset metric of sums over answers, which a bootstrap computes thousands of times at once."""

    def count(self, answers: Sequence[Answered], /) -> Counts:
        """Return what is summed."""
        ...


@dataclass(frozen=True, slots=True)
class _FunctionMetric:
    is_dataset_metric: ClassVar[bool] = True

    name: str
    function: Callable[[Sequence[Answered]], ScoreLike]
    over: Literal["samples", "epochs"] = "samples"
    lower_is_better: bool = False

    def __call__(self, answers: Sequence[Answered], /) -> ScoreLike:
        """Call the function."""
        return self.function(answers)


_Function: TypeAlias = Callable[[Sequence[Answered]], ScoreLike]


@overload
def dataset_metric(function: _Function, /) -> DatasetMetric: ...
@overload
def dataset_metric(
    *, over: Literal["samples", "epochs"] = "samples", lower_is_better: bool = False, name: str | None = None
) -> Callable[[_Function], DatasetMetric]: ...
def dataset_metric(
    function: _Function | None = None,
    /,
    *,
    over: Literal["samples", "epochs"] = "samples",
    lower_is_better: bool = False,
    name: str | None = None,
) -> DatasetMetric | Callable[[_Function], DatasetMetric]:
    """Declare a function of many answers as a scorer.

    It is called with a sequence of `Answered`, and returns a number or a `Score` with parts. Over `samples`, it sees
    all answers of a variant, and its interval comes from a bootstrap over clusters. Over `epochs`, it sees all answers
    to a sample, and the scores of the samples are averaged.

    Args:
        function: The function; None with options.
        over: `samples` or `epochs`.
        lower_is_better: Whether less is better.
        name: Name of the metric; that of the function when None.

    Raises:
        LLMEvaluationError: It is no function of one argument, or `over` is unknown.

    Example:
        >>> @dataset_metric
        ... def share_of_long_answers(answers):
        ...     return sum(len(answer.output.text) > 100 for answer in answers) / len(answers)
        >>> share_of_long_answers.name
        'share_of_long_answers'
    """

    def declare(given: _Function) -> DatasetMetric:
        label = str(name or getattr(given, "__name__", ""))
        if not callable(given) or not label.isidentifier():
            raise LLMEvaluationError(f"A dataset metric is a named function of answers; got {given!r:.80}.")
        try:
            inspect.signature(given).bind(None)
        except TypeError:
            raise LLMEvaluationError(f"The dataset metric {label} must take one argument, the answers.") from None
        return _FunctionMetric(label, given, over, lower_is_better)

    if over not in ("samples", "epochs"):
        raise LLMEvaluationError(f"A dataset metric is over 'samples' or 'epochs'; got {over!r}.")
    return declare if function is None else declare(function)


def is_dataset_metric(candidate: object) -> bool:
    """Return whether a scorer sees many answers at once."""
    return getattr(candidate, "is_dataset_metric", False) is True


def read_label(value: Any) -> str:
    """Return a value as the name of a class: equal values have one name."""
    plain = to_jsonable_python(value.value if isinstance(value, Enum) else value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, sort_keys=True)


@dataclass(frozen=True, slots=True)
class ClassMetric(SingleField):
    """A number of a classification, from the counts of targets, answers and hits by class."""

    is_dataset_metric: ClassVar[bool] = True
    over: ClassVar[Literal["samples"]] = "samples"

    kind: Literal["macro_f1", "balanced_accuracy", "per_class"] = "macro_f1"

    def read_pairs(self, answers: Sequence[Answered]) -> list[tuple[str | None, str]]:
        """Return target and answer of each; a target of None for a sample without one."""
        pairs: list[tuple[str | None, str]] = []
        # The target of a FAILED answer is converted by the type of the others.
        kind = next((type(answer.output) for answer in answers if answer.output is not None), None)
        for answer in answers:
            target = self._read_raw(answer.sample) if kind is None else self.find_wanted(kind, answer.sample)
            got = FAILED_ANSWER if answer.output is None else read_label(self.get_value(answer.output))
            pairs.append((None if target is None else read_label(target), got))
        return pairs

    def _read_raw(self, sample: Sample) -> Any:
        """Return the class of a target as it stands: where all answers are FAILED, no type can convert it."""
        target: Any = sample.target
        if not isinstance(target, Mapping):
            return target
        if not self.fields:
            return next(iter(target.values())) if len(target) == 1 else target
        return find_at_path(target, self.fields[0])

    def count(self, answers: Sequence[Answered], /) -> Counts:
        """See `AdditiveMetric`."""
        import numpy as np

        pairs = self.read_pairs(answers)
        known = [(target, got) for target, got in pairs if target is not None]
        classes = sorted({name for pair in known for name in pair} - {FAILED_ANSWER})
        places = {name: number for number, name in enumerate(classes)}
        k = len(classes)
        features = np.zeros((len(pairs), 3 * k))
        for row, (target, got) in zip(features, pairs, strict=True):
            if target is None:
                continue
            row[k + places[target]] = 1
            if got in places:
                row[2 * k + places[got]] = 1
                row[places[target]] = float(got == target)

        def combine(sums: Numbers) -> Mapping[str, Numbers]:
            hits, wanted, given = sums[:, :k], sums[:, k : 2 * k], sums[:, 2 * k :]
            with np.errstate(invalid="ignore", divide="ignore"):
                # 0 / 0 is NaN: a class that does not occur in a draw has no F1, instead of a bad one.
                f1 = 2 * hits / (wanted + given)
                recall, precision = hits / wanted, hits / given
                accuracy = hits.sum(axis=1) / wanted.sum(axis=1)
            if self.kind == "macro_f1":
                return {"": _average_known(f1)}
            if self.kind == "balanced_accuracy":
                return {"": _average_known(recall)}
            parts = {"precision": precision, "recall": recall, "f1": f1}
            named = {f"{part}.{name}": each[:, place] for part, each in parts.items() for name, place in places.items()}
            return {"": accuracy, **named}

        return Counts(features, combine)

    def __call__(self, answers: Sequence[Answered], /) -> Score:
        """Score the answers."""
        return _score_counts(self.count(answers))


@dataclass(frozen=True, slots=True)
class Calibration(SingleField):
    """Errors of stated confidence."""

    is_dataset_metric: ClassVar[bool] = True
    over: ClassVar[Literal["samples"]] = "samples"

    metric: str | None = None
    bins: int = DEFAULT_BINS

    def read_pairs(self, answers: Sequence[Answered]) -> list[tuple[float, float] | None]:
        """Return confidence and whether the answer was right; None without one of them.

        Raises:
            ValueError: A confidence is not within 0 and 1.
        """
        return [self._read_pair(answer) for answer in answers]

    def find_bin(self, confidence: float) -> int:
        """Return the bin of a confidence. Each begins with its lower end; 1 belongs to the last one."""
        # 0.29 * 100 is less than 29 as a float.
        return min(self.bins - 1, int(round(confidence * self.bins, 9)))

    def _read_pair(self, answer: Answered) -> tuple[float, float] | None:
        if answer.output is None:
            return None
        stated = self.get_value(answer.output)
        right = next(iter(answer.scores.values()), None) if self.metric is None else answer.scores.get(self.metric)
        if stated is None or right is None:
            return None
        confidence = float(stated)
        if not 0 <= confidence <= 1:
            raise ValueError(f"a confidence is within 0 and 1; sample {answer.sample.key} has {confidence:g}")
        return confidence, float(right >= 1)

    def count(self, answers: Sequence[Answered], /) -> Counts:
        """See `AdditiveMetric`."""
        import numpy as np

        bins = self.bins
        features = np.zeros((len(answers), 2 * bins + 2))
        for row, pair in zip(features, self.read_pairs(answers), strict=True):
            if pair is None:
                continue
            confidence, right = pair
            place = self.find_bin(confidence)
            row[place], row[bins + place] = confidence, right
            row[-2:] = (confidence - right) ** 2, 1.0

        def combine(sums: Numbers) -> Mapping[str, Numbers]:
            with np.errstate(invalid="ignore", divide="ignore"):
                gaps = np.abs(sums[:, :bins] - sums[:, bins : 2 * bins]).sum(axis=1)
                return {"": gaps / sums[:, -1], "brier": sums[:, -2] / sums[:, -1]}

        return Counts(features, combine)

    def __call__(self, answers: Sequence[Answered], /) -> Score:
        """Score the answers."""
        return _score_counts(self.count(answers))


@dataclass(frozen=True, slots=True)
class _Majority(SingleField):
    is_dataset_metric: ClassVar[bool] = True
    over: ClassVar[Literal["epochs"]] = "epochs"

    read: Literal["value", "number"] = "value"

    def __call__(self, answers: Sequence[Answered], /) -> Score:
        """Score the most frequent answer to a sample."""
        given = [answer for answer in answers if answer.output is not None]
        if not given:
            return Score(0.0, "no answer", {"agreement": 0.0})
        target = self.get_target(given[0].output, given[0].sample)
        votes = Counter(self._read(self.get_value(answer.output)) for answer in given)
        most = max(votes.values())
        first = [label for label, count in votes.items() if count == most]
        wanted = {self._read(each) for each in (target if isinstance(target, list) else [target])}
        # One of several equally frequent answers would be drawn, so each of them counts with its chance.
        return Score(
            sum(label in wanted for label in first) / len(first), ", ".join(first), {"agreement": most / len(answers)}
        )

    def _read(self, value: Any) -> str:
        if self.read == "value":
            return read_label(value)
        if isinstance(value, str):
            found = choose_numerals(value)
            return "(no number)" if not found else str(found[0].value.normalize())
        return str(Decimal(repr(value)).normalize())


def _average_known(values: Numbers) -> Numbers:
    import numpy as np

    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return cast("Numbers", np.where(known, values, 0.0).sum(axis=1) / known.sum(axis=1))


def _score_counts(counts: Counts) -> Score:
    import math

    numbers = counts.combine(counts.features.sum(axis=0, keepdims=True))
    parts = {name: float(value[0]) for name, value in numbers.items() if name}
    return Score(float(numbers[""][0]), "", {name: value for name, value in parts.items() if not math.isnan(value)})


def macro_f1(field: str | None = None, *, name: str = "macro_f1") -> DatasetMetric:
    """Score a classification by the mean F1 of its classes, each of which counts the same however rare it is.

    The classes are those of the targets and the answers. A FAILED answer is no class: it lowers the recall of its
    target's. Source: C. J. van Rijsbergen, Information Retrieval (1979); M. Sokolova and G. Lapalme, "A Systematic
    Analysis of Performance Measures for Classification Tasks", Information Processing and Management 45 (2009).

    Args:
        field: Name or dotted path of the class; None for an output type with one field.
        name: Name of the metric.
    """
    return ClassMetric(name, (field,) if field else (), kind="macro_f1")


def balanced_accuracy(field: str | None = None, *, name: str = "balanced_accuracy") -> DatasetMetric:
    """Score a classification by the mean recall of the classes of the targets.

    Source: K. H. Brodersen et al., "The Balanced Accuracy and Its Posterior Distribution", ICPR 2010.

    Args:
        field: Name or dotted path of the class; None for an output type with one field.
        name: Name of the metric.
    """
    return ClassMetric(name, (field,) if field else (), kind="balanced_accuracy")


def per_class(field: str | None = None, *, name: str = "per_class") -> DatasetMetric:
    """Score accuracy, and precision, recall and F1 of each class as `name.precision.CLASS` and so on.

    A precision or recall of a class that was never given, or never wanted, is unknown.

    Args:
        field: Name or dotted path of the class; None for an output type with one field.
        name: Name of the metric.
    """
    return ClassMetric(name, (field,) if field else (), kind="per_class")


def majority(
    field: str | None = None, *, read: Literal["value", "number"] = "value", name: str = "majority"
) -> DatasetMetric:
    """Score the most frequent answer over the epochs of a sample (self-consistency), with `name.agreement`.

    Of several equally frequent answers each counts with its chance. The agreement is the share of epochs that gave the
    most frequent answer. FAILED answers have no vote. Source: X. Wang et al., "Self-Consistency Improves Chain of
    Thought Reasoning in Language Models", ICLR 2023.

    Args:
        field: Name or dotted path; None for an output type with one field.
        read: `number` compares the number that a text answers with, as `number_match` does.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: `read` is unknown.
    """
    if read not in ("value", "number"):
        raise LLMEvaluationError(f"majority has no read={read!r}; choose from value, number.")
    return _Majority(name, (field,) if field else (), read=read)


def calibration(
    field: str | None = "confidence", *, metric: str | None = None, bins: int = DEFAULT_BINS, name: str = "calibration"
) -> DatasetMetric:
    """Score how far stated confidence is from the share of right answers: ECE, with the Brier score `name.brier`.

    The expected calibration error is `Σ n_b/n |accuracy_b - confidence_b|` over bins of equal width, each with its
    lower end and without its upper one, except for the last. Less is better for
    both. Answers without a score or a confidence are left out. ECE of few answers is too large, even for perfect
    confidence: compare it only between variants of the same samples.

    Source: M. P. Naeini, G. F. Cooper and M. Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian
    Binning", AAAI 2015; C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017; G. W. Brier,
    "Verification of Forecasts Expressed in Terms of Probability", Monthly Weather Review 78 (1950).

    Args:
        field: Name or dotted path of the confidence, from 0 to 1.
        metric: Score of which 1 means right; the first one when None.
        bins: Number of bins.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: There are fewer than 2 bins.
    """
    if bins < 2:
        raise LLMEvaluationError(f"calibration needs bins= of at least 2; got {bins}.")
    return Calibration(name, (field,) if field else (), metric=metric, bins=bins, lower_is_better=True)
