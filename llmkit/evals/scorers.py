"""Scorers: how good a validated output is, as a number for each sample.

A scorer has a `name` and is called with the output and the sample. One that raises is a scorer error of that sample
and says nothing about the model.
"""

from __future__ import annotations

import inspect
import math
import unicodedata
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any, Protocol, TypeAlias, runtime_checkable

from pydantic import BaseModel, TypeAdapter, ValidationError

from llmkit.canonical import sha256_of
from llmkit.errors import LLMEvaluationError
from llmkit.evals.dataset import Sample

__all__ = [
    "Score",
    "Scorer",
    "ScorerLike",
    "Scores",
    "apply_scorers",
    "as_scorer",
    "exact_match",
    "field_match",
    "numeric_tolerance",
    "set_f1",
]

FLOAT_TOLERANCE = 1e-9
LONGEST_ERROR = 500
LONGEST_DETAIL = 1_000


@dataclass(frozen=True, slots=True)
class Score:
    """A scorer's verdict on one sample.

    Attributes:
        value: The number that is averaged; 1 is perfect and 0 is worthless unless the scorer says otherwise.
        detail: Why, for people.
        parts: Further numbers, each a metric of its own named `scorer.part`.
    """

    value: float
    detail: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)


ScoreLike: TypeAlias = Score | float | bool


@runtime_checkable
class Scorer(Protocol):
    """Something with a name that scores an output. It may be asynchronous."""

    @property
    def name(self) -> str:
        """The metric's name: unique within a task."""
        ...

    def __call__(self, output: Any, sample: Sample, /) -> ScoreLike | Awaitable[ScoreLike]:
        """Score a validated output against the sample."""
        ...


ScorerLike: TypeAlias = Scorer | Callable[[Any, Sample], ScoreLike | Awaitable[ScoreLike]]


@dataclass(frozen=True, slots=True)
class Scores:
    """What all scorers of a task said of one output: values, why, and the text of what went wrong, by name."""

    values: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FunctionScorer:
    """A plain function as a scorer."""

    name: str
    function: Callable[[Any, Sample], ScoreLike | Awaitable[ScoreLike]]

    def __call__(self, output: Any, sample: Sample, /) -> ScoreLike | Awaitable[ScoreLike]:
        """Call the function."""
        return self.function(output, sample)


def as_scorer(candidate: ScorerLike) -> Scorer:
    """The scorer itself, or a function under its own name.

    Raises:
        LLMEvaluationError: It cannot be called, or has no name, as a lambda.
    """
    if callable(candidate) and isinstance(getattr(candidate, "name", None), str):
        return candidate  # type: ignore[return-value]  # has a name and can be called
    name = getattr(candidate, "__name__", "")
    if not callable(candidate) or not name.isidentifier():
        raise LLMEvaluationError(f"A scorer is a named function (output, sample) or has a name; got {candidate!r}.")
    return FunctionScorer(name, candidate)


def scorer_definition(scorer: Scorer) -> list[str]:
    """Name and substance of a scorer, to notice that it was edited: source text of functions, options of the rest."""
    if not isinstance(scorer, FunctionScorer):
        return [scorer.name, repr(scorer) if type(scorer).__repr__ is not object.__repr__ else type(scorer).__name__]
    try:
        return [scorer.name, inspect.getsource(scorer.function)]
    except (OSError, TypeError):
        return [scorer.name, ""]


async def apply_scorers(scorers: Sequence[Scorer], output: Any, sample: Sample) -> Scores:
    """Score one output with all scorers, in order. Never raises for what a scorer does."""
    scores = Scores()
    for scorer in scorers:
        try:
            raw = scorer(output, sample)
            score = _score(await raw if inspect.isawaitable(raw) else raw)
        except Exception as error:  # noqa: BLE001 (a scorer is the user's code: whatever it raises belongs to the sample)
            scores.errors[scorer.name] = f"{type(error).__name__}: {error}"[:LONGEST_ERROR]
        else:
            scores.values[scorer.name] = score.value
            if score.detail:
                scores.details[scorer.name] = score.detail[:LONGEST_DETAIL]
            scores.values.update({f"{scorer.name}.{part}": value for part, value in score.parts.items()})
    return scores


def _score(raw: Any) -> Score:
    score = raw if isinstance(raw, Score) else Score(_number(raw))
    return Score(_number(score.value), score.detail, {part: _number(value) for part, value in score.parts.items()})


def _number(raw: Any) -> float:
    try:
        value = float(raw)
    except (TypeError, ValueError):
        raise TypeError(f"a score is a number, a bool or a Score; got {type(raw).__name__}") from None
    if isinstance(raw, str) or not math.isfinite(value):
        raise ValueError(f"a score must be a finite number; got {raw!r}")
    return value


@dataclass(frozen=True, slots=True)
class _Options:
    name: str
    fields: tuple[str, ...] = ()
    normalise: bool = False

    def check(self, output_type: type[BaseModel]) -> None:
        """Refuse a field that the output type does not have."""
        known = output_type.model_fields
        for path in self.fields:
            if path.partition(".")[0] not in known:
                raise LLMEvaluationError(
                    f"{self.name}: {output_type.__name__} has no field {path!r}; its fields: {', '.join(known)}"
                )


@dataclass(frozen=True, slots=True)
class _ExactMatch(_Options):
    def __call__(self, output: Any, sample: Sample, /) -> Score:
        expected = _expected(output, sample)
        missing = set(type(output).model_fields) - set(expected)
        wrong = [
            name for name, value in expected.items() if not _equal(_at(output, name), value, normalise=self.normalise)
        ]
        wrong += [name for name in sorted(missing) if not _is_default(output, name)]
        return Score(float(not wrong), ", ".join(wrong))


@dataclass(frozen=True, slots=True)
class _FieldMatch(_Options):
    def __call__(self, output: Any, sample: Sample, /) -> Score:
        expected = _expected(output, sample)
        paths = self.fields or tuple(type(output).model_fields)
        hits = {path: float(_equal(_at(output, path), _at(expected, path), normalise=self.normalise)) for path in paths}
        wrong = ", ".join(path for path, hit in hits.items() if not hit)
        return Score(sum(hits.values()) / len(hits), wrong, hits if len(hits) > 1 else {})


@dataclass(frozen=True, slots=True)
class _NumericTolerance(_Options):
    absolute: float = 0.0
    relative: float = 0.0

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        path = self.fields[0] if self.fields else _only_field(type(output))
        got, wanted = float(_at(output, path)), float(_at(_expected(output, sample), path))
        allowed = max(self.absolute, self.relative * abs(wanted))
        return Score(float(abs(got - wanted) <= allowed), f"off by {got - wanted:g}")


@dataclass(frozen=True, slots=True)
class _SetF1(_Options):
    def __call__(self, output: Any, sample: Sample, /) -> Score:
        path = self.fields[0] if self.fields else _only_field(type(output))
        got = _items(_at(output, path), self.normalise)
        wanted = _items(_at(_expected(output, sample), path), self.normalise)
        precision, recall = _share(got & wanted, got, wanted), _share(got & wanted, wanted, got)
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return Score(f1, "", {"precision": precision, "recall": recall})


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
        field: Name or dotted path; None for an output type with one field.
        absolute: Allowed distance in the number's own unit.
        relative: Allowed distance as a share of the target.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: Neither tolerance is above 0.
    """
    if max(absolute, relative) <= 0 or min(absolute, relative) < 0:
        raise LLMEvaluationError("numeric_tolerance needs absolute= or relative= above 0.")
    return _NumericTolerance(name, (field,) if field else (), absolute=absolute, relative=relative)


def set_f1(field: str | None = None, *, normalise: bool = False, name: str = "set_f1") -> Scorer:
    """F1 of two collections taken as sets, with the metrics `name.precision` and `name.recall` beside it.

    Two empty sets agree: 1. Source: van Rijsbergen, Information Retrieval (1979), chapter 7, with beta = 1.

    Args:
        field: Name or dotted path of the collection; None for an output type with one field.
        normalise: Compare texts without regard to case, width of characters and runs of spaces.
        name: Name of the metric.
    """
    return _SetF1(name, (field,) if field else (), normalise)


def _only_field(output_type: type[BaseModel]) -> str:
    names = list(output_type.model_fields)
    if len(names) != 1:
        raise ValueError(f"name the field to compare; {output_type.__name__} has {', '.join(names) or 'none'}")
    return names[0]


def _expected(output: BaseModel, sample: Sample) -> dict[str, Any]:
    """The target by field, each value converted to the type of its field where that is possible."""
    if sample.target is None:
        raise ValueError("the sample has no target to compare with")
    model = type(output)
    target = sample.target if isinstance(sample.target, dict) else {_only_field(model): sample.target}
    names = {info.alias or name: name for name, info in model.model_fields.items()}
    return {names.get(key, key): _converted(model, names.get(key, key), value) for key, value in target.items()}


def _converted(model: type[BaseModel], name: str, value: Any) -> Any:
    if name not in model.model_fields:
        return value
    try:
        return _adapter(model, name).validate_python(value)
    except ValidationError:
        return value


@lru_cache(maxsize=1024)
def _adapter(model: type[BaseModel], name: str) -> TypeAdapter[Any]:
    kind: Any = model.model_fields[name].annotation
    return TypeAdapter(kind)


def _at(value: Any, path: str) -> Any:
    for name in path.split("."):
        known = dict(value) if isinstance(value, BaseModel | Mapping) else {}
        if name not in known:
            raise ValueError(f"the target has no field {path!r}")
        value = known[name]
    return value


def _is_default(output: BaseModel, name: str) -> bool:
    info = type(output).model_fields[name]
    default = None if info.is_required() else info.get_default(call_default_factory=True, validated_data={})
    return not info.is_required() and _equal(getattr(output, name), default, normalise=False)


def _equal(got: Any, wanted: Any, *, normalise: bool) -> bool:
    got, wanted = _plain(got), _plain(wanted)
    if isinstance(got, str) and isinstance(wanted, str):
        return _folded(got) == _folded(wanted) if normalise else got == wanted
    if isinstance(got, dict) and isinstance(wanted, dict):
        return got.keys() == wanted.keys() and all(_equal(got[key], wanted[key], normalise=normalise) for key in got)
    if isinstance(got, list) and isinstance(wanted, list):
        return len(got) == len(wanted) and all(
            _equal(*pair, normalise=normalise) for pair in zip(got, wanted, strict=True)
        )
    if isinstance(got, frozenset) and isinstance(wanted, frozenset):
        return _items(got, normalise) == _items(wanted, normalise)
    if _is_number(got) and _is_number(wanted):
        return math.isclose(got, wanted, rel_tol=FLOAT_TOLERANCE)
    return type(got) is type(wanted) and bool(got == wanted)


def _plain(value: Any) -> Any:
    """One kind for each shape: models and mappings as dict, sequences as list, sets as frozenset, enums by value."""
    if isinstance(value, BaseModel | Mapping):
        return dict(value)
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, set | frozenset):
        return frozenset(value)
    return value.value if isinstance(value, Enum) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal) and not isinstance(value, bool)


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _items(values: Iterable[Any], normalise: bool) -> frozenset[str]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"set_f1 compares collections; got {type(values).__name__}")
    return frozenset(_item(value, normalise) for value in values)


def _item(value: Any, normalise: bool) -> str:
    plain = TypeAdapter(Any).dump_python(value, mode="json")
    return sha256_of(_folded(plain) if normalise and isinstance(plain, str) else plain)


def _share(common: frozenset[str], part: frozenset[str], other: frozenset[str]) -> float:
    """Share of `part` that is common; an empty one is perfect only when the other is empty too."""
    return len(common) / len(part) if part else float(not other)
