"""The scorer of numbers in free text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

from llmkit.errors import LLMEvaluationError
from llmkit.evals.dataset.dataset import Sample
from llmkit.evals.scorers.base import Score, Scorer
from llmkit.evals.scorers.conversion import refuse_target
from llmkit.evals.scorers.numerals import ROUNDED, DecimalMark, Numeral, Which, choose_numerals
from llmkit.evals.scorers.target import SingleField, score_absent

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["number_match"]

Percent: TypeAlias = Literal["either", "number", "share"]

# As for numbers in fields: quotients and decimals that were written down are rounded somewhere.
_TOLERANCE = Decimal("1e-9")
_HUNDREDTH = Decimal("0.01")
_SHOWN = Context(prec=20, Emin=MIN_EMIN, Emax=MAX_EMAX, traps=[])


@dataclass(frozen=True, slots=True)
class _NumberMatch(SingleField):
    # A megabyte of text takes noticeable time.
    is_quick: ClassVar[bool] = False

    absolute: float = 0.0
    relative: float = 0.0
    which: Which = "last"
    decimal: DecimalMark = "auto"
    percent: Percent = "either"

    def check_target(self, output_type: type[BaseModel], sample: Sample) -> None:
        """See `Options`. Text in which there is a number is one."""
        wanted = self.find_wanted(output_type, sample)
        if wanted is not None and not self._read_targets(wanted):
            refuse_target(sample, f"{self.get_path(output_type)}: there is no number in it")

    def describe_target(self, output_type: type[BaseModel], sample: Sample) -> str | None:
        """Return the numbers that are read from the target, for people; None where there are none."""
        wanted = self.find_wanted(output_type, sample)
        return None if wanted is None else " or ".join(map(_format, self._read_targets(wanted)))

    def __call__(self, output: Any, sample: Sample, /) -> Score:
        got, target = self.get_value(output), self.get_target(output, sample)
        if got is None or target is None:
            return score_absent(got, target)
        wanted = self._read_targets(target)
        if not wanted:
            raise ValueError(f"there is no number in the target {target!r:.100}")
        found = _read(got, self.which, self.decimal)
        if not found:
            return Score(0.0, "there is no number in the answer")
        if len({(each.value, each.is_percent) for each in found}) > 1:
            return Score(0.0, f"there are {len(found):,} numbers in the answer; which='only' accepts one")
        is_right = any(self._is_close(a, b) for each in wanted for a, b in self._pair(found[0], each))
        return Score(float(is_right), f"read {_format(found[0])}" + ("" if is_right else f", not {_format(wanted[0])}"))

    def _read_targets(self, target: Any) -> list[Numeral]:
        return [
            numeral
            for each in (target if isinstance(target, list | tuple) else [target])
            for numeral in _read(each, "last", self.decimal)
        ]

    def _pair(self, got: Numeral, wanted: Numeral) -> Iterator[tuple[Decimal, Decimal]]:
        """Yield what to compare: 50% is 50 or 0.5, and the same on both sides where both have the sign."""
        if self.percent != "share" or got.is_percent == wanted.is_percent:
            yield got.value, wanted.value
        if self.percent != "number" and got.is_percent != wanted.is_percent:
            yield tuple(  # type: ignore[misc]  # two of them
                ROUNDED.multiply(each.value, _HUNDREDTH) if each.is_percent else each.value for each in (got, wanted)
            )

    def _is_close(self, got: Decimal, wanted: Decimal) -> bool:
        if got == wanted:
            return True
        # Whole numbers are exact however large they are: a product of ten digits may be off by one.
        is_whole = _is_whole(got) and _is_whole(wanted)
        relative = Decimal(repr(self.relative))
        relative = relative if is_whole else max(relative, _TOLERANCE)
        allowed = ROUNDED.max(Decimal(repr(self.absolute)), ROUNDED.multiply(relative, wanted.copy_abs()))
        return bool(ROUNDED.subtract(got, wanted).copy_abs() <= allowed)


def _is_whole(value: Decimal) -> bool:
    # Not value % 1, which would write out all digits of 1e999999.
    return value.is_finite() and value.normalize(ROUNDED).as_tuple().exponent >= 0  # type: ignore[operator]  # finite


def _read(value: Any, which: Which, decimal: DecimalMark) -> list[Numeral]:
    if isinstance(value, str):
        return choose_numerals(value, which, decimal)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise TypeError(f"number_match reads strings and numbers; got {type(value).__name__}")
    # The shortest text of a float is the number that was meant: 0.1 and not its binary neighbour.
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    return [Numeral(number)] if number.is_finite() else []


def _format(numeral: Numeral) -> str:
    plain = numeral.value.normalize(_SHOWN)
    return (f"{plain:f}" if abs(plain.adjusted()) < _SHOWN.prec else f"{plain:.12g}") + (
        "%" if numeral.is_percent else ""
    )


def number_match(
    field: str | None = None,
    *,
    absolute: float = 0.0,
    relative: float = 0.0,
    which: Which = "last",
    decimal: DecimalMark = "auto",
    percent: Percent = "either",
    name: str = "number_match",
) -> Scorer:
    r"""Score 1 when the number in a text is that of the target, else 0. An answer without a number scores 0.

    Reads `$1,080.50`, `1 080`, `1.080,50`, `-3`, `50%`, `3/4`, `1 1/2`, `2 million`, `1.08e3` and `1.08 x 10^3`. A line
    `#### 72` or a `\boxed{72}` has priority over the rest of the text. Digits in a name (`H2O`) do not count.
    The target may be a number, such a text, or a list of accepted ones. Whole numbers are compared exactly, others
    within 1e-9 of the target.

    Args:
        field: Name or dotted path; None for an output type with one field.
        absolute: Allowed distance in the number's own unit.
        relative: Allowed distance as a share of the target. The larger of both counts.
        which: Number of the text to compare: the `last`, the `first`, or the `only` one, so that several score 0.
        decimal: Mark of decimals. `auto` reads `1,080` as 1080, `1.080` as 1.08 and `1.080,50` as 1080.5; with `","`,
            `1.080` is 1080 and `1,080` is 1.08; with `"."`, commas only group digits.
        percent: Meaning of a percent sign that only one side has. `number`: `50%` equals 50; `share`: it equals 0.5;
            `either`: both.
        name: Name of the metric.

    Raises:
        LLMEvaluationError: A tolerance is below 0, or another option is unknown.

    Example:
        >>> from llmkit.evals import Sample
        >>> from pydantic import BaseModel
        >>> class Solution(BaseModel):
        ...     text: str
        >>> number_match()(Solution(text="5 boxes of 216 make 1,080."), Sample("5 * 216?", 1080)).value
        1.0
    """
    if not (absolute >= 0 and relative >= 0):
        raise LLMEvaluationError("number_match needs absolute= and relative= of 0 or more.")
    for option, given, known in (
        ("which", which, Which),
        ("decimal", decimal, DecimalMark),
        ("percent", percent, Percent),
    ):
        if given not in get_args(known):
            raise LLMEvaluationError(
                f"number_match has no {option}={given!r}; choose from {', '.join(get_args(known))}."
            )
    return _NumberMatch(
        name,
        (field,) if field else (),
        absolute=absolute,
        relative=relative,
        which=which,
        decimal=decimal,
        percent=percent,
    )
