"""Sections, tables and their cells as plain data. The templates turn them into markup; no Python here writes any."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, TypeAlias

__all__ = [
    "MARK_HEIGHT",
    "MARK_WIDTH",
    "SCALE_HEIGHT",
    "BarMark",
    "Block",
    "Cell",
    "CodeText",
    "CountCell",
    "Definitions",
    "DifferenceCell",
    "FaintText",
    "Figure",
    "FoldedText",
    "IntervalMark",
    "Scale",
    "ScaleMark",
    "Section",
    "ShareCell",
    "Table",
    "TaggedFacts",
    "format_count",
    "format_interval",
    "format_signed_interval",
    "make_figure",
]

MARK_WIDTH: Final = 160
MARK_HEIGHT: Final = 18
# With the values below the ticks.
SCALE_HEIGHT: Final = 32
MARGIN: Final = 6
# A bar of no length would be invisible.
SHORTEST_BAR: Final = 2


@dataclass(frozen=True, slots=True)
class Figure:
    """A number that was formatted already.

    Attributes:
        text: The number.
        why: Its meaning in a sentence, which the page shows when the number is pointed at or has the focus.
    """

    kind: ClassVar[str] = "figure"

    text: str
    why: str = ""


@dataclass(frozen=True, slots=True)
class CountCell:
    """A whole number with its meaning in a sentence."""

    kind: ClassVar[str] = "count"

    value: int
    why: str


@dataclass(frozen=True, slots=True)
class CodeText:
    """Text in a fixed-width font."""

    kind: ClassVar[str] = "code"

    text: str


@dataclass(frozen=True, slots=True)
class FaintText:
    """Text that matters less; as a block of its own a paragraph."""

    kind: ClassVar[str] = "faint"

    text: str


@dataclass(frozen=True, slots=True)
class TaggedFacts:
    """Short facts in boxes, such as versions of packages."""

    kind: ClassVar[str] = "facts"

    facts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IntervalMark:
    """A dot with its interval on a line, in units of the picture.

    Attributes:
        label: Text for screen readers.
        ticks: Horizontal places of the ends and the middle of the scale.
        whisker: Horizontal places of the interval's ends; None without an interval.
        dot: Horizontal place of the mean.
        labels: Values at the ticks; empty where the heading of the column has them.
    """

    kind: ClassVar[str] = "interval"

    label: str
    ticks: tuple[str, ...]
    whisker: tuple[str, str] | None
    dot: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScaleMark:
    """The scale of the pictures in a column, as its heading: ticks and their values."""

    kind: ClassVar[str] = "scale"

    label: str
    ticks: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BarMark:
    """A bar from one value to another, in units of the picture."""

    kind: ClassVar[str] = "bar"

    label: str
    base: tuple[int, int]
    x: str
    width: str


@dataclass(frozen=True, slots=True)
class ShareCell:
    """A share in words with a bar, and its meaning in a sentence."""

    kind: ClassVar[str] = "share"

    text: str
    bar: BarMark | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class DifferenceCell:
    """A paired difference with its verdict; without a p-value only the difference and its facts.

    Attributes:
        style: `better`, `worse` or `same`.
        arrow: The direction, so that colour is not the only sign of it.
        why: The meaning of the difference in a sentence.
        p_why: The meaning of the p-value in a sentence.
    """

    kind: ClassVar[str] = "difference"

    text: str
    facts: str
    p_value: str | None = None
    style: str = "same"
    arrow: str = ""
    mark: IntervalMark | None = None
    why: str = ""
    p_why: str = ""


Cell: TypeAlias = (
    str
    | int
    | float
    | Figure
    | CountCell
    | CodeText
    | FaintText
    | TaggedFacts
    | IntervalMark
    | BarMark
    | ShareCell
    | DifferenceCell
    | None
)


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first column names its rows."""

    kind: ClassVar[str] = "table"

    headings: tuple[str | ScaleMark, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""

    @classmethod
    def from_rows(
        cls, headings: Sequence[str | ScaleMark], rows: Iterable[Sequence[Cell]], *, caption: str = ""
    ) -> Table:
        """Build a table from any iterable of rows."""
        return cls(tuple(headings), tuple(tuple(row) for row in rows), caption)


@dataclass(frozen=True, slots=True)
class Definitions:
    """Names and what they stand for."""

    kind: ClassVar[str] = "definitions"

    pairs: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True, slots=True)
class FoldedText:
    """A long text that is folded below its title."""

    kind: ClassVar[str] = "folded"

    title: str
    text: str


Block: TypeAlias = Table | Definitions | FaintText | FoldedText


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page."""

    anchor: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """A mapping from values to horizontal places in a small picture."""

    low: float
    high: float

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, float | None]]) -> Scale:
        """Return 0 to 1 when all means are within, else the range of means and intervals."""
        means = [row["mean"] for row in rows]
        if all(mean is None or 0 <= mean <= 1 for mean in means):
            return cls(0.0, 1.0)
        known = [row[name] for row in rows for name in ("mean", "ci_low", "ci_high")]
        low, high = (pick(value for value in known if value is not None) for pick in (min, max))
        return cls(low, high) if high > low else cls(low - 0.5, low + 0.5)

    @classmethod
    def around_zero(cls, values: Iterable[float | None]) -> Scale:
        """Return a symmetric scale with zero in the middle."""
        reach = max((abs(value) for value in values if value is not None), default=0.0) or 1.0
        return cls(-reach, reach)

    def place(self, value: float) -> str:
        """Return the horizontal place of a value."""
        share = (value - self.low) / (self.high - self.low)
        return f"{MARGIN + share * (MARK_WIDTH - 2 * MARGIN):.1f}"

    @property
    def _values(self) -> tuple[float, float, float]:
        """The ends and the middle, which have ticks."""
        return self.low, (self.low + self.high) / 2, self.high

    def draw_scale(self, unit: str = "") -> ScaleMark:
        """Draw the scale alone, with its values."""
        labels = tuple(f"{value:.3g}" for value in self._values)
        return ScaleMark(
            f"scale from {labels[0]} to {labels[2]}{unit}", tuple(self.place(value) for value in self._values), labels
        )

    def draw_interval(
        self, middle: float | None, low: float | None, high: float | None, label: str, *, has_labels: bool = False
    ) -> IntervalMark | None:
        """Draw a mean with its interval, which is cut at the ends of the scale; None without a mean."""
        if middle is None:
            return None
        ticks = tuple(self.place(value) for value in self._values)
        labels = tuple(f"{value:+.2g}" if value else "0" for value in self._values) if has_labels else ()
        whisker = None
        if low is not None and high is not None:
            whisker = (self.place(max(low, self.low)), self.place(min(high, self.high)))
        return IntervalMark(label, ticks, whisker, self.place(middle), labels)

    def draw_bar(self, low: float | None, high: float | None, label: str) -> BarMark | None:
        """Draw a bar from one value to another; None when one is unknown."""
        if low is None or high is None:
            return None
        x, end = float(self.place(low)), float(self.place(high))
        width = f"{max(end - x, SHORTEST_BAR):.1f}"
        return BarMark(label, (MARGIN, MARK_WIDTH - MARGIN), f"{x:.1f}", width)


def format_count(value: float) -> str:
    """Format a number for people, with its digits in groups."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"


def make_figure(value: float | None, form: str, why: str = "") -> Figure | None:
    """Format a number as a cell; None when it is not known."""
    return None if value is None else Figure(format(value, form), why)


def format_signed_interval(value: float | None, low: float | None, high: float | None) -> str:
    """Format a difference with its interval."""
    if value is None:
        return "-"
    return f"{value:+.3f}" if low is None or high is None else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def format_interval(value: float | None, low: float | None, high: float | None) -> str:
    """Format a mean with its interval."""
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
