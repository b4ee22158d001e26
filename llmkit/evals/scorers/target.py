"""Scorers that compare an output with the target: whole, by field, as a number, a date, a set or a ranking."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from llmkit.errors import LLMEvaluationError
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.scorers.base import Options, Score, Scorer
from llmkit.evals.scorers.values import at, equal, expected, is_default, item, items, number, only_field, reached

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = [
    "SingleField",
    "absent",
    "date_tolerance",
    "exact_match",
    "field_match",
    "numeric_tolerance",
    "ranked_list",
    "set_f1",
]

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class SingleField(Options):
    """A scorer of one field."""

    def check(self, output_type: type[BaseModel]) -> None:
        """Refuse a field that is not there, and no field where there are several.

        Raises:
            LLMEvaluationError: The field cannot be told; the message lists those that there are.
        """
        # Not super(): a dataclass with slots is another class than the one that its methods know.
        Options.check(self, output_type)
        if not self.fields and len(output_type.model_fields) != 1:
            known = ", ".join(output_type.model_fields)
            raise LLMEvaluationError(f"{self.name}: name the field; {output_type.__name__} has {known}")

    def got(self, output: Any) -> Any:
        """What the model gave; None where it gave nothing."""
        return reached(output, self.fields[0] if self.fields else only_field(type(output)))

    def wanted(self, output: Any, sample: Sample) -> Any:
        """What the target has.

        Raises:
            ValueError: It has nothing there.
        """
        return at(expected(output, sample), self.fields[0] if self.fields else only_field(type(output)))


@dataclass(frozen=True, slots=True)
class _ExactMatch(Options):
    def __call__(self, output: Any, sample: Sample, /) -> Score:
        target = expected(output, sample)
        missing = set(type(output).model_fields) - set(target)
        wrong = [name for name, value in target.items() if not equal(at(output, name), value, normalise=self.normalise)]
        wrong += [name for name in sorted(missing) if not is_default(output, name)]
        return Score(float(not wrong), ", ".join(wrong))


@dataclass(frozen=True, slots=True)
class _FieldMatch(Options):
    def __call__(self, output: Any, sample: Sample, /) -> Score:
        target = expected(output, sample)
        paths = self.fields or tuple(type(output).model_fields)
        hits = {path: float(equal(reached(output, path), at(target, path), normalise=self.normalise)) for path in paths}
        wrong = ", ".join(path for path, hit in hits.items() if not hit)
        return Score(sum(hits.values()) / len(hits), wrong, hits if len(hits) > 1 else {})


@dataclass(frozen=True, slots=True)
class _NumericTolerance(SingleField):
    absolute: float = 0.0
    relative: float = 0.0

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        got, wanted = self.got(output), self.wanted(output, sample)
        if got is None or wanted is None:
            return absent(got, wanted)
        target = number(wanted)
        try:
            distance = number(got) - target
        except ValueError:
            return Score(0.0, f"{got!r} is no number")
        allowed = max(self.absolute, self.relative * abs(target))
        return Score(float(abs(distance) <= allowed), f"off by {distance:g}")


@dataclass(frozen=True, slots=True)
class _DateTolerance(SingleField):
    days: float = 0.0

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        got, wanted = self.got(output), self.wanted(output, sample)
        if got is None or wanted is None:
            return absent(got, wanted)
        target, answer = _moment(wanted), _moment_or_none(got)
        if answer is None:
            return Score(0.0, f"{got!r} is no date")
        distance = (answer - target).total_seconds() / DAY_S
        return Score(float(abs(distance) <= self.days), f"off by {distance:g} days")


@dataclass(frozen=True, slots=True)
class _SetF1(SingleField):
    def __call__(self, output: Any, sample: Sample, /) -> Score:
        got = frozenset(items(self.got(output) or (), self.normalise))
        wanted = frozenset(items(_nothing_as_empty(self.wanted(output, sample)), self.normalise))
        precision, recall = _share(got & wanted, got, wanted), _share(got & wanted, wanted, got)
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return Score(f1, "", {"precision": precision, "recall": recall})


@dataclass(frozen=True, slots=True)
class _RankedList(SingleField):
    k: int = 10

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        gains = self._gains(_nothing_as_empty(self.wanted(output, sample)))
        # What is named twice is found once.
        ranked = list(dict.fromkeys(items(self.got(output) or (), self.normalise)))
        found = [gains.get(item, 0.0) for item in ranked]
        best = _discounted(sorted(gains.values(), reverse=True)[: self.k])
        ndcg = _discounted(found[: self.k]) / best if best else float(not ranked)
        first = next((place for place, gain in enumerate(found, start=1) if gain > 0), None)
        reciprocal = 1 / first if first else float(not best and not ranked)
        detail = f"first hit at {first}" if first else "no hit"
        return Score(ndcg, detail, {"reciprocal_rank": reciprocal})

    def _gains(self, wanted: Any) -> dict[str, float]:
        if not isinstance(wanted, Mapping):
            return dict.fromkeys(items(wanted, self.normalise), 1.0)
        if any(float(gain) < 0 for gain in wanted.values()):
            raise ValueError("the relevance of an item in the target is below 0")
        return {item(key, self.normalise): float(gain) for key, gain in wanted.items()}


def _nothing_as_empty(wanted: Any) -> Any:
    """A target that says that there is nothing is an empty collection, as it is of an answer."""
    return () if wanted is None else wanted


def _discounted(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(place + 1) for place, gain in enumerate(gains, start=1))


def absent(got: Any, wanted: Any) -> Score:
    """The score where one of the two is None: right when both are."""
    detail = "" if got is None and wanted is None else "nothing was given" if got is None else "nothing was wanted"
    return Score(float(got is None and wanted is None), detail)


def _moment(value: Any) -> datetime:
    """A date, time or ISO text as a moment; a time without a zone counts as UTC, a date begins at midnight.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, str):
        return _moment(_parsed(value))
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    raise ValueError(f"{value!r} is no date")


def _parsed(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is no date as ISO 8601 writes it") from None


def _moment_or_none(value: Any) -> datetime | None:
    try:
        return _moment(value)
    except ValueError:
        return None


def exact_match(*, normalise: bool = False, name: str = "exact_match") -> Scorer:
    """1 when every field equals the target, else 0. A field that the target leaves out must have its default.

    Args:
        normalise: Compare texts without regard to case, width of characters and runs of spaces.
        name: Name of the metric.
    """
    return _ExactMatch(name, normalise=normalise)


def field_match(*fields: str, normalise: bool = False, name: str = "field_match") -> Scorer:
    """Share of the fields that equal the target's; with more than one, each is a metric `name.field` as well.

    Values are compared by the type of the field, which the target is converted to first: numbers as numbers (relative
    tolerance 1e-9), dates as dates, sets without order, lists and objects element by element.

    Args:
        *fields: Names, or dotted paths into nested objects; none means all fields of the output type.
        normalise: Compare texts without regard to case, width of characters and runs of spaces.
        name: Name of the metric.
    """
    return _FieldMatch(name, fields, normalise)


def numeric_tolerance(
    field: str | None = None, *, absolute: float = 0.0, relative: float = 0.0, name: str = "numeric_tolerance"
) -> Scorer:
    """1 when the number is within `max(absolute, relative * |target|)` of the target, else 0.

    Args:
        field: Name or dotted path; None for an output type with one field. A text of the model that is no number scores
            0.
        absolute: Allowed distance in the number's own unit.
        relative: Allowed distance as a share of the target.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: Neither tolerance is above 0.
    """
    if max(absolute, relative) <= 0 or min(absolute, relative) < 0:
        raise LLMEvaluationError("numeric_tolerance needs absolute= or relative= above 0.")
    return _NumericTolerance(name, (field,) if field else (), absolute=absolute, relative=relative)


def date_tolerance(field: str | None = None, *, days: float = 0.0, name: str = "date_tolerance") -> Scorer:
    """1 when the date is at most so many days before or after the target, else 0.

    Takes dates, times and ISO 8601 texts. A text of the model that is no date scores 0. A time without a zone counts as
    UTC, and a date as its midnight.

    Args:
        field: Name or dotted path; None for an output type with one field.
        days: Allowed distance in days; parts of a day are fine for times.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: The distance is below 0.
    """
    if not days >= 0:
        raise LLMEvaluationError(f"date_tolerance needs days= of 0 or more; got {days}.")
    return _DateTolerance(name, (field,) if field else (), days=days)


def ranked_list(field: str | None = None, *, k: int = 10, normalise: bool = False, name: str = "ranked_list") -> Scorer:
    """How well a ranking puts the relevant items first: nDCG@k, with the metric `name.reciprocal_rank` beside it.

    The target is a list of the relevant items, all alike, or an object from item to relevance (0 or more). Gains are
    linear, discounted by `log2(rank + 1)`, and divided by those of the best ranking. An item that is named twice counts
    where it is named first. The reciprocal rank is 1 over the rank of the first relevant item, in the whole list; 0
    without one. Where nothing is relevant, an empty list is perfect and any other worthless.

    Source: K. Järvelin and J. Kekäläinen, "Cumulated Gain-Based Evaluation of IR Techniques", ACM Transactions on
    Information Systems 20 (2002); E. M. Voorhees, "The TREC-8 Question Answering Track Report" (1999).

    Args:
        field: Name or dotted path of the list, best first; None for an output type with one field.
        k: How many places count.
        normalise: Compare texts without regard to case, width of characters and runs of spaces.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: `k` is below 1.
    """
    if k < 1:
        raise LLMEvaluationError(f"ranked_list needs k= of at least 1; got {k}.")
    return _RankedList(name, (field,) if field else (), normalise, k)


def set_f1(field: str | None = None, *, normalise: bool = False, name: str = "set_f1") -> Scorer:
    """F1 of two collections taken as sets, with the metrics `name.precision` and `name.recall` beside it.

    Two empty sets agree: 1. Source: van Rijsbergen, Information Retrieval (1979), chapter 7, with beta = 1.

    Args:
        field: Name or dotted path of the collection; None for an output type with one field.
        normalise: Compare texts without regard to case, width of characters and runs of spaces.
        name: Name of the metric.
    """
    return _SetF1(name, (field,) if field else (), normalise)


def _share(common: frozenset[str], part: frozenset[str], other: frozenset[str]) -> float:
    """Share of `part` that is common; an empty one is perfect only when the other is empty too."""
    return len(common) / len(part) if part else float(not other)
