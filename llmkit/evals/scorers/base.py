"""What a scorer is, and what it says."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, runtime_checkable

from llmkit.errors import LLMEvaluationError
from llmkit.evals.dataset.dataset import Sample

if TYPE_CHECKING:
    from pydantic import BaseModel

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
    """Something with a name that scores an output. It may be asynchronous.

    An attribute `lower_is_better = True` says that less is better of its score and of the parts of it.
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
    """Where an output comes from, and who can be asked about it.

    Attributes:
        service: Answers a judge's questions, and records them.
        extract: What `llmkit.pydanticai.extraction.extract` is.
        workspace_id: Whose evaluation this is.
        call_name: Name of run, sample, route and epoch: `pipeline_run_id` of all calls about this output.
    """

    service: LLMService
    extract: Callable[..., Awaitable[Extraction[Any]]]
    workspace_id: str
    call_name: str


@runtime_checkable
class ContextScorer(Protocol):
    """A scorer that asks a model, and so has to know on whose behalf."""

    async def score_in(self, context: ScoringContext, output: Any, sample: Sample, /) -> ScoreLike:
        """Score a validated output against the sample."""
        ...


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
    lower_is_better: bool = False

    def __call__(self, output: Any, sample: Sample, /) -> ScoreLike | Awaitable[ScoreLike]:
        """Call the function."""
        return self.function(output, sample)


@dataclass(frozen=True, slots=True)
class Options:
    """A built-in scorer's options; its fields are its definition, by which an edit of it is noticed.

    Attributes:
        is_quick: Never takes noticeable time, so that it is called where it stands and not in a thread.
        lower_is_better: Whether less is better. Not in the definition: the scores are the same.
    """

    is_quick: ClassVar[bool] = True

    name: str
    fields: tuple[str, ...] = ()
    normalise: bool = False
    lower_is_better: bool = field(default=False, repr=False, kw_only=True)

    def check(self, output_type: type[BaseModel]) -> None:
        """Refuse a field that the output type does not have.

        Raises:
            LLMEvaluationError: It has no such field; the message lists those that there are.
        """
        known = output_type.model_fields
        for path in self.fields:
            if path.partition(".")[0] not in known:
                raise LLMEvaluationError(
                    f"{self.name}: {output_type.__name__} has no field {path!r}; its fields: {', '.join(known)}"
                )


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
    _require_two_arguments(candidate, name)
    return FunctionScorer(name, candidate)


def _require_two_arguments(function: Callable[..., Any], name: str) -> None:
    """Refuse what every sample would fail on: one of ours that makes scorers, or another kind of function."""
    if str(getattr(function, "__module__", "")).startswith(f"{__package__}."):
        raise LLMEvaluationError(f"{name} makes a scorer and is none: write {name}(...), with brackets.")
    try:
        inspect.signature(function).bind(None, None)
    except TypeError:
        raise LLMEvaluationError(f"The scorer {name} must take two arguments, (output, sample).") from None
    except ValueError:  # of a function in C nobody knows
        return


def lower_is_better(scorer: ScorerLike) -> Scorer:
    """The scorer, declared as one of which less is better; a decorator of functions too.

    Comparisons, gates and rankings follow it, for the parts of its scores as well. An answer that FAILED counts as 1
    where all scores are within 0 and 1; else it has no worst score, and is left out or makes a mean unknown.

    Raises:
        LLMEvaluationError: It is no scorer, or one of a class of your own: give that an attribute `lower_is_better`.
    """
    made = as_scorer(scorer)
    if isinstance(made, FunctionScorer | Options):
        return replace(made, lower_is_better=True)
    raise LLMEvaluationError(f"Give {type(made).__name__} the attribute lower_is_better = True; it is your own class.")


def is_lower_better(scorer: Scorer) -> bool:
    """Whether less is better of its scores."""
    return getattr(scorer, "lower_is_better", False) is True


def describe_scorer(scorer: Scorer) -> list[str]:
    """Name and substance of a scorer, to notice that it was edited: source text of functions, options of the rest."""
    if not isinstance(scorer, FunctionScorer):
        return [scorer.name, repr(scorer) if type(scorer).__repr__ is not object.__repr__ else type(scorer).__name__]
    try:
        return [scorer.name, inspect.getsource(scorer.function)]
    except (OSError, TypeError):
        return [scorer.name, ""]
