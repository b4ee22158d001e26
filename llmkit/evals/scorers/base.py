"""The protocol of scorers, and their scores."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from pydantic import BaseModel, RootModel

from llmkit.errors import LLMEvaluationError, describe_exception
from llmkit.evals.answer_type import ROOT, find_kinds
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.user_code import read_source

if TYPE_CHECKING:
    from llmkit.pydanticai.extraction import Extraction
    from llmkit.service import LLMService

__all__ = [
    "ContextScorer",
    "FunctionScorer",
    "Options",
    "Score",
    "ScoreLike",
    "Scorer",
    "ScorerLike",
    "Scores",
    "ScoringContext",
    "as_scorer",
    "describe_scorer",
    "is_lower_better",
    "lower_is_better",
]


@dataclass(frozen=True, slots=True)
class Score:
    """A scorer's verdict on one sample.

    Attributes:
        value: The number that is averaged; 1 is perfect and 0 is worthless unless the scorer defines otherwise.
        detail: The reason, for people.
        parts: Further numbers, each a separate metric named `scorer.part`.
    """

    value: float
    detail: str = ""
    parts: Mapping[str, float] = field(default_factory=dict)


ScoreLike: TypeAlias = Score | float | bool


@runtime_checkable
class Scorer(Protocol):
    """A named callable that scores an output. It may be asynchronous.

    An attribute `lower_is_better = True` declares that less is better for its score and the parts of it.

    Example:
        >>> class ShorterThan:
        ...     def __init__(self, chars):
        ...         self.name, self.chars = "shorter_than", chars
        ...
        ...     def __call__(self, output, sample):
        ...         return len(output.text) < self.chars
        >>> isinstance(ShorterThan(80), Scorer)
        True
    """

    @property
    def name(self) -> str:
        """The metric's name: unique within a task."""
        ...

    def __call__(self, output: Any, sample: Sample, /) -> ScoreLike | Awaitable[ScoreLike]:
        """Score a validated output against the sample."""
        ...


ScorerLike: TypeAlias = Scorer | Callable[[Any, Sample], ScoreLike | Awaitable[ScoreLike]]


@dataclass(frozen=True, slots=True)
class ScoringContext:
    """Origin of an output, and the service that a judge calls.

    Attributes:
        service: Answers and records a judge's requests.
        extract: The function `llmkit.pydanticai.extraction.extract`.
        workspace_id: Workspace of the evaluation.
        call_name: Name wrapped of run, sample, variant and epoch: `pipeline_run_id` of all calls about this output.
    """

    service: LLMService
    extract: Callable[..., Awaitable[Extraction[Any]]]
    workspace_id: str
    call_name: str


@runtime_checkable
class ContextScorer(Protocol):
    """A scorer that calls a model, and so needs the context of the output."""

    async def score_in(self, context: ScoringContext, output: Any, sample: Sample, /) -> ScoreLike:
        """Score a validated output against the sample."""
        ...


@dataclass(frozen=True, slots=True)
class Scores:
    """Results of all scorers for one output, by name: values, error messages and details."""

    values: dict[str, float] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FunctionScorer:
    """A plain function as a scorer."""

    name: str
    function: Callable[[Any, Sample], ScoreLike | Awaitable[ScoreLike]]
    lower_is_better: bool = False

    def __call__(self, output: Any, sample: Sample, /) -> ScoreLike | Awaitable[ScoreLike]:
        """Call the function."""
        return self.function(output, sample)


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a built-in scorer. Its fields are its definition, so an edit is noticed.

    Attributes:
        is_quick: Whether it never takes noticeable time, so it is called directly and not in a thread.
        accepts: Kinds of values that it can compare, as `find_kinds` names them; empty for all.
        advice: The scorers to use for other kinds.
        reads_fields: Whether it gets an output as a model, whose fields it looks up, and not as it is.
        lower_is_better: Whether less is better. Not part of the definition, because the scores are the same.
    """

    is_quick: ClassVar[bool] = True
    accepts: ClassVar[tuple[str, ...]] = ()
    advice: ClassVar[str] = "field_match or exact_match"
    reads_fields: ClassVar[bool] = True

    name: str
    fields: tuple[str, ...] = ()
    normalise: bool = False
    lower_is_better: bool = field(default=False, repr=False, kw_only=True)

    def check(self, output_type: type[BaseModel]) -> None:
        """Refuse a field that the output type does not have, and one whose values the scorer cannot compare.

        Args:
            output_type: The type of the answers; a `RootModel` where that has no fields.

        Raises:
            LLMEvaluationError: It has no such field, or one of another kind; the message says what to do.
        """
        known = output_type.model_fields
        is_bare = issubclass(output_type, RootModel)
        for path in self.fields:
            if path.partition(".")[0] in known:
                continue
            if is_bare:
                raise LLMEvaluationError(
                    f"{self.name}: an output of the type {output_type.__name__} has no fields; leave {path!r} out."
                )
            raise LLMEvaluationError(
                f"{self.name}: {output_type.__name__} has no field {path!r}; its fields: {', '.join(known)}"
            )
        # The fields of an object inside are not looked up here: the type may leave them open.
        for name in self.fields or (tuple(known) if len(known) == 1 else ()):
            if name not in known:
                continue
            kinds = find_kinds(known[name].annotation)
            if self.accepts and not kinds & {*self.accepts, "other"}:
                what = f"the output is {output_type.__name__}" if name == ROOT and is_bare else f"{name!r} is not one"
                raise LLMEvaluationError(
                    f"{self.name} compares values of the kind {' or '.join(self.accepts)}, and {what}: "
                    f"use {self.advice}."
                )

    def check_target(self, output_type: type[BaseModel], sample: Sample) -> None:
        """Refuse a target that no answer can equal. A sample without a target is a scorer error, and not refused.

        Raises:
            LLMEvaluationError: The target does not fit; the message names sample and field.
        """


def as_scorer(candidate: ScorerLike) -> Scorer:
    """Return a scorer unchanged, or wrap a named function.

    Raises:
        LLMEvaluationError: It cannot be called, or has no name (a lambda), or one that cannot be printed.
    """
    try:
        own_name = getattr(candidate, "name", None)
    except Exception as error:  # noqa: BLE001 - a property of the user's class may raise anything
        raise LLMEvaluationError(f"The name of a scorer cannot be read: {describe_exception(error)}") from None
    if callable(candidate) and isinstance(own_name, str):
        # Names become columns of frames, files and terminals.
        if not own_name or not own_name.isprintable():
            raise LLMEvaluationError(f"A scorer's name must be printable text; got {own_name!r:.80}")
        return candidate  # type: ignore[return-value]  # has a name and can be called
    name = getattr(candidate, "__name__", "")
    if not callable(candidate) or not name.isidentifier():
        raise LLMEvaluationError(
            f"A scorer must be a named function (output, sample) or have a name; got {candidate!r}."
        )
    _require_two_arguments(candidate, name)
    return FunctionScorer(name, candidate)


def _require_two_arguments(function: Callable[..., Any], name: str) -> None:
    """Refuse functions that would fail on every sample: a scorer factory that was not called, or a wrong signature."""
    if str(getattr(function, "__module__", "")).startswith(f"{__package__}."):
        raise LLMEvaluationError(f"{name} is a factory of scorers: call it, {name}(...).")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        raise LLMEvaluationError(f"The scorer {name} must take two arguments, (output, sample).") from None
    except ValueError:  # functions in C have no signature
        return


def lower_is_better(scorer: ScorerLike) -> Scorer:
    """Declare that less is better for a scorer. Also works as a decorator of functions.

    Comparisons, gates and rankings follow it, for the parts of its scores as well. A FAILED answer counts as 1 where
    all scores are within 0 and 1; else it has no worst score, and is left out or makes a mean unknown.

    Raises:
        LLMEvaluationError: It is not a scorer, or its class is your own: set the attribute `lower_is_better` there.

    Example:
        >>> @lower_is_better
        ... def length(output, sample):
        ...     return len(output.text)
        >>> is_lower_better(length)
        True
    """
    wrapped = as_scorer(scorer)
    if isinstance(wrapped, FunctionScorer | Options):
        return replace(wrapped, lower_is_better=True)
    raise LLMEvaluationError(f"Give {type(wrapped).__name__} the attribute lower_is_better = True.")


def is_lower_better(scorer: Scorer) -> bool:
    """Return whether less is better for the scores of a scorer."""
    return getattr(scorer, "lower_is_better", False) is True


def describe_scorer(scorer: Scorer) -> list[str]:
    """Describe a scorer by name and source text (functions) or options (the rest), so an edit is noticed."""
    if not isinstance(scorer, FunctionScorer):
        return [scorer.name, repr(scorer) if type(scorer).__repr__ is not object.__repr__ else type(scorer).__name__]
    try:
        return [scorer.name, read_source(scorer.function)]
    except (OSError, TypeError):
        return [scorer.name, ""]
