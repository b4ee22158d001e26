"""Scorers that compare an output with the target: whole, by field, as a number, a date, a set or a ranking."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, ClassVar

from llmkit.errors import LLMEvaluationError
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.scorers.base import Options, Score, Scorer
from llmkit.evals.scorers.conversion import (
    Target,
    convert_target,
    find_problem,
    find_target,
    get_only_field,
    refuse_target,
)
from llmkit.evals.scorers.values import (
    find_at_path,
    get_at_path,
    hash_item,
    hash_items,
    is_default,
    is_equal,
    to_number,
)

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = [
    "SingleField",
    "date_tolerance",
    "exact_match",
    "field_match",
    "numeric_tolerance",
    "ranked_list",
    "score_absent",
    "set_f1",
]

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class SingleField(Options):
    """A scorer of one field."""

    def check(self, output_type: type[BaseModel]) -> None:
        """Refuse an unknown field, and no field where there are several.

        Raises:
            LLMEvaluationError: The field is unknown or ambiguous; the message lists the known ones.
        """
        # Not super(): a dataclass with slots is a new class, which the methods' __class__ cell does not refer to.
        Options.check(self, output_type)
        if not self.fields and len(output_type.model_fields) != 1:
            known = ", ".join(output_type.model_fields)
            raise LLMEvaluationError(f"{self.name}: name the field; {output_type.__name__} has {known}")

    def get_value(self, output: Any) -> Any:
        """Return the value of the model; None where it gave none."""
        return find_at_path(output, self.get_path(type(output)))

    def get_target(self, output: Any, sample: Sample) -> Any:
        """Return the value of the target.

        Raises:
            ValueError: The target has no such field.
        """
        kind = type(output)
        return find_target(kind, convert_target(kind, sample), self.get_path(kind))

    def get_path(self, output_type: type[BaseModel]) -> str:
        """Return the path of the field."""
        return self.fields[0] if self.fields else get_only_field(output_type)

    def find_wanted(self, output_type: type[BaseModel], sample: Sample) -> Any:
        """Return the value of the target; None where it has none.

        Raises:
            LLMEvaluationError: The target misspells the field, or is one value where the type has several fields.
        """
        path = self.get_path(output_type)
        target = _require_named(output_type, sample, (path,))
        try:
            return None if target is None else find_target(output_type, target, path)
        except ValueError:
            return None

    def check_target(self, output_type: type[BaseModel], sample: Sample) -> None:
        """See `Options`. Here, only that the target names the field: a scorer may compare values of other types."""
        self.find_wanted(output_type, sample)


@dataclass(frozen=True, slots=True)
class _ExactMatch(Options):
    def check_target(self, output_type: type[BaseModel], sample: Sample) -> None:
        """See `Options`."""
        _check_fields(output_type, sample, None)

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        target = convert_target(type(output), sample).values
        missing = set(type(output).model_fields) - set(target)
        wrong = [
            name
            for name, value in target.items()
            if not is_equal(get_at_path(output, name), value, normalise=self.normalise)
        ]
        wrong += [name for name in sorted(missing) if not is_default(output, name)]
        return Score(float(not wrong), ", ".join(wrong))


@dataclass(frozen=True, slots=True)
class _FieldMatch(Options):
    def check_target(self, output_type: type[BaseModel], sample: Sample) -> None:
        """See `Options`."""
        _check_fields(output_type, sample, self.fields or tuple(output_type.model_fields))

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        kind = type(output)
        target = convert_target(kind, sample)
        wanted = {path: find_target(kind, target, path) for path in self.fields or tuple(kind.model_fields)}
        hits = {
            path: float(is_equal(find_at_path(output, path), value, normalise=self.normalise))
            for path, value in wanted.items()
        }
        wrong = ", ".join(path for path, hit in hits.items() if not hit)
        return Score(sum(hits.values()) / len(hits), wrong, hits if len(hits) > 1 else {})


@dataclass(frozen=True, slots=True)
class _NumericTolerance(SingleField):
    accepts: ClassVar[tuple[str, ...]] = ("number", "text")

    absolute: float = 0.0
    relative: float = 0.0

    def check_target(self, output_type: type[BaseModel], sample: Sample) -> None:
        """See `Options`. A number that does not fit the field, such as 2.5 for an integer, can be compared."""
        wanted = self.find_wanted(output_type, sample)
        try:
            to_number(0 if wanted is None else wanted)
        except ValueError:
            refuse_target(sample, f"{self.get_path(output_type)}: it is not a number")

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        got, wanted = self.get_value(output), self.get_target(output, sample)
        if got is None or wanted is None:
            return score_absent(got, wanted)
        target = to_number(wanted)
        try:
            distance = to_number(got) - target
        except ValueError:
            return Score(0.0, f"{got!r} is not a number")
        allowed = max(self.absolute, self.relative * abs(target))
        return Score(float(abs(distance) <= allowed), f"off by {distance:g}")


@dataclass(frozen=True, slots=True)
class _DateTolerance(SingleField):
    accepts: ClassVar[tuple[str, ...]] = ("date", "text")

    days: float = 0.0

    def check_target(self, output_type: type[BaseModel], sample: Sample) -> None:
        """See `Options`. A date can be compared with a field of any type."""
        wanted = self.find_wanted(output_type, sample)
        if wanted is not None and _try_moment(wanted) is None:
            refuse_target(sample, f"{self.get_path(output_type)}: it is not an ISO 8601 date")

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        got, wanted = self.get_value(output), self.get_target(output, sample)
        if got is None or wanted is None:
            return score_absent(got, wanted)
        target, answer = _to_moment(wanted), _try_moment(got)
        if answer is None:
            return Score(0.0, f"{got!r} is not a date")
        distance = (answer - target).total_seconds() / DAY_S
        return Score(float(abs(distance) <= self.days), f"off by {distance:g} days")


@dataclass(frozen=True, slots=True)
class _SetF1(SingleField):
    accepts: ClassVar[tuple[str, ...]] = ("collection", "object")
    advice: ClassVar[str] = "field_match or text_match"

    def check_target(self, output_type: type[BaseModel], sample: Sample) -> None:
        """See `Options`. None counts as an empty collection."""
        if self.find_wanted(output_type, sample) is not None:
            _check_fields(output_type, sample, (self.get_path(output_type),))

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        got = frozenset(hash_items(self.get_value(output) or (), self.normalise))
        wanted = frozenset(hash_items(_none_to_empty(self.get_target(output, sample)), self.normalise))
        precision, recall = _compute_share(got & wanted, got, wanted), _compute_share(got & wanted, wanted, got)
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return Score(f1, "", {"precision": precision, "recall": recall})


@dataclass(frozen=True, slots=True)
class _RankedList(SingleField):
    accepts: ClassVar[tuple[str, ...]] = ("collection", "object")
    advice: ClassVar[str] = "field_match or text_match"

    k: int = 10

    def check_target(self, output_type: type[BaseModel], sample: Sample) -> None:
        """See `Options`. An object gives a relevance for each item, so it does not have the type of the field."""
        if isinstance(self.find_wanted(output_type, sample), list):
            _check_fields(output_type, sample, (self.get_path(output_type),))

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        gains = self._compute_gains(_none_to_empty(self.get_target(output, sample)))
        # An item that is named twice counts once, or repeating a relevant item would raise the gain.
        ranked = list(dict.fromkeys(hash_items(self.get_value(output) or (), self.normalise)))
        found = [gains.get(item, 0.0) for item in ranked]
        best = _discount(sorted(gains.values(), reverse=True)[: self.k])
        ndcg = _discount(found[: self.k]) / best if best else float(not ranked)
        first = next((place for place, gain in enumerate(found, start=1) if gain > 0), None)
        reciprocal = 1 / first if first else float(not best and not ranked)
        detail = f"first hit at {first}" if first else "no hit"
        return Score(ndcg, detail, {"reciprocal_rank": reciprocal})

    def _compute_gains(self, wanted: Any) -> dict[str, float]:
        if not isinstance(wanted, Mapping):
            return dict.fromkeys(hash_items(wanted, self.normalise), 1.0)
        if any(float(gain) < 0 for gain in wanted.values()):
            raise ValueError("the relevance of an item in the target is below 0")
        return {hash_item(key, self.normalise): float(gain) for key, gain in wanted.items()}


def _check_fields(output_type: type[BaseModel], sample: Sample, paths: Sequence[str] | None) -> None:
    """Refuse a value that does not fit its field; of a path into an object, only the value at its end counts.

    Args:
        output_type: The type of the answers.
        sample: The sample.
        paths: Fields that are compared; None for all that the target has.
    """
    target = _require_named(output_type, sample, paths)
    if target is None:
        return
    for path in target.values if paths is None else paths:
        problem = find_problem(output_type, target, path)
        if problem is not None:
            refuse_target(sample, problem)


def _require_named(output_type: type[BaseModel], sample: Sample, paths: Sequence[str] | None) -> Target | None:
    """Return the target of a sample, or None where it has none; refuse names that the type does not have.

    Args:
        output_type: The type of the answers.
        sample: The sample.
        paths: Fields that are compared; None for all that the target has.
    """
    if sample.target is None:
        return None
    try:
        target = convert_target(output_type, sample)
    except ValueError:
        known = ", ".join(output_type.model_fields)
        refuse_target(
            sample,
            f"it is one value, and {output_type.__name__} has the fields {known}: give an object of them, or map its "
            f"column to a field with target={{{next(iter(paths or output_type.model_fields))!r}: COLUMN}}",
        )
    unknown = [name for name in target.values if name not in output_type.model_fields]
    if unknown and paths is None and output_type.model_config.get("extra") != "allow":
        near = _suggest(unknown[0], output_type)
        refuse_target(sample, f"the target has a field {unknown[0]!r}, which is none of the type's{near}")
    for path in paths or ():
        # A field that is missing beside one that the type does not have is most likely a misspelt one.
        name = path.partition(".")[0]
        if unknown and name not in target.values:
            refuse_target(sample, f"the target has no field {name!r}, but {unknown[0]!r}, which is none of the type's")
    return target


def _suggest(name: str, output_type: type[BaseModel]) -> str:
    """Return the field that was probably meant by a name, or else all of them, as the end of a message."""
    fields = {each.lower(): each for each in output_type.model_fields}
    near = get_close_matches(name.lower(), fields, n=1)
    return f"; did you mean {fields[near[0]]!r}?" if near else f"; its fields: {', '.join(output_type.model_fields)}"


def _none_to_empty(wanted: Any) -> Any:
    """Treat a target of None as an empty collection, like an answer of None."""
    return () if wanted is None else wanted


def _discount(gains: Sequence[float]) -> float:
    return sum(gain / math.log2(place + 1) for place, gain in enumerate(gains, start=1))


def score_absent(got: Any, wanted: Any) -> Score:
    """Score a pair of which at least one is None: 1 when both are."""
    detail = "" if got is None and wanted is None else "nothing was given" if got is None else "nothing was wanted"
    return Score(float(got is None and wanted is None), detail)


def _to_moment(value: Any) -> datetime:
    """Convert a date, time or ISO text to a moment; a time without a zone counts as UTC, a date as its midnight.

    Raises:
        ValueError: It is not a date.
    """
    if isinstance(value, str):
        return _to_moment(_parse_date(value))
    if isinstance(value, datetime):
        return value if value.tzinfo else value.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    raise ValueError(f"{value!r} is not a date")


def _parse_date(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is not an ISO 8601 date") from None


def _try_moment(value: Any) -> datetime | None:
    try:
        return _to_moment(value)
    except ValueError:
        return None


def exact_match(*, normalise: bool = False, name: str = "exact_match") -> Scorer:
    """Score 1 when every field equals the target, else 0. A field that the target omits must have its default.

    Args:
        normalise: Ignore case, width of characters and runs of spaces in strings.
        name: Name of the metric.
    """
    return _ExactMatch(name, normalise=normalise)


def field_match(*fields: str, normalise: bool = False, name: str = "field_match") -> Scorer:
    """Score the share of fields that equal the target; with more than one, each is also a metric `name.field`.

    Values are compared by the type of the field, which the target is converted to first: numbers as numbers (relative
    tolerance 1e-9), dates as dates, sets without order, lists and objects element by element.

    Args:
        *fields: Names, or dotted paths into nested objects; none means all fields of the output type.
        normalise: Ignore case, width of characters and runs of spaces in strings.
        name: Name of the metric.
    """
    return _FieldMatch(name, fields, normalise)


def numeric_tolerance(
    field: str | None = None, *, absolute: float = 0.0, relative: float = 0.0, name: str = "numeric_tolerance"
) -> Scorer:
    """Score 1 when the number is within `max(absolute, relative * |target|)` of the target, else 0.

    Args:
        field: Name or dotted path; None for an output type with one field. A string that is not a number
            scores 0.
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
    """Score 1 when the date is at most `days` before or after the target, else 0.

    Accepts dates, times and ISO 8601 strings. A string that is not a date scores 0. A time without a zone counts as
    UTC, and a date as its midnight.

    Args:
        field: Name or dotted path; None for an output type with one field.
        days: Allowed distance in days; may be fractional.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: The distance is below 0.
    """
    if not days >= 0:
        raise LLMEvaluationError(f"date_tolerance needs days= of 0 or more; got {days}.")
    return _DateTolerance(name, (field,) if field else (), days=days)


def ranked_list(field: str | None = None, *, k: int = 10, normalise: bool = False, name: str = "ranked_list") -> Scorer:
    """Score how well a ranking puts relevant items first: nDCG@k, plus the metric `name.reciprocal_rank`.

    The target is a list of the relevant items, all alike, or an object from item to relevance (0 or more). Gains are
    linear, discounted by `log2(rank + 1)`, and divided by those of the best ranking. An item that is named twice counts
    where it is named first. The reciprocal rank is 1 over the rank of the first relevant item, in the whole list; 0
    without one. Where nothing is relevant, an empty list is perfect and any other worthless.

    Source: K. Järvelin and J. Kekäläinen, "Cumulated Gain-Based Evaluation of IR Techniques", ACM Transactions on
    Information Systems 20 (2002); E. M. Voorhees, "The TREC-8 Question Answering Track Report" (1999).

    Args:
        field: Name or dotted path of the list, best first; None for an output type with one field.
        k: Number of places that count.
        normalise: Ignore case, width of characters and runs of spaces in strings.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: `k` is below 1.
    """
    if k < 1:
        raise LLMEvaluationError(f"ranked_list needs k= of at least 1; got {k}.")
    return _RankedList(name, (field,) if field else (), normalise, k)


def set_f1(field: str | None = None, *, normalise: bool = False, name: str = "set_f1") -> Scorer:
    """Score F1 of two collections as sets, plus the metrics `name.precision` and `name.recall`.

    Two empty sets agree: 1. Source: van Rijsbergen, Information Retrieval (1979), chapter 7, with beta = 1.

    Args:
        field: Name or dotted path of the collection; None for an output type with one field.
        normalise: Ignore case, width of characters and runs of spaces in strings.
        name: Name of the metric.
    """
    return _SetF1(name, (field,) if field else (), normalise)


def _compute_share(common: frozenset[str], part: frozenset[str], other: frozenset[str]) -> float:
    """Return the share of `part` that is common; an empty one is perfect only when the other is empty too."""
    return len(common) / len(part) if part else float(not other)
