"""Small pictures as inline SVG, and tables: no style attribute anywhere, which the page's policy forbids."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from llmkit.display.html import Html, html, join_html

__all__ = ["Scale", "Section", "count", "definitions", "number", "ranged", "section", "signed", "table", "unknown"]

WIDTH: Final = 160
HEIGHT: Final = 18
MARGIN: Final = 6

unknown: Final = html('<span class="faint">-</span>')


@dataclass(frozen=True, slots=True)
class Scale:
    """From a value to a place on a bar."""

    low: float
    high: float

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, float | None]]) -> Scale:
        """From 0 to 1 when the means are within, wide enough for means and intervals otherwise."""
        means = [row["mean"] for row in rows]
        if all(mean is None or 0 <= mean <= 1 for mean in means):
            return cls(0.0, 1.0)
        known = [row[name] for row in rows for name in ("mean", "ci_low", "ci_high")]
        low, high = (pick(value for value in known if value is not None) for pick in (min, max))
        return cls(low, high) if high > low else cls(low - 0.5, low + 0.5)

    @classmethod
    def around_zero(cls, values: Iterable[float | None]) -> Scale:
        """Symmetric, so that zero is in the middle."""
        reach = max((abs(value) for value in values if value is not None), default=0.0) or 1.0
        return cls(-reach, reach)

    def place(self, value: float) -> str:
        """Horizontal place of a value."""
        share = (value - self.low) / (self.high - self.low)
        return f"{MARGIN + share * (WIDTH - 2 * MARGIN):.1f}"

    def interval(self, middle: float | None, low: float | None, high: float | None, label: str) -> Html:
        """A dot with its interval, on a line with marks at both ends and in the middle of the scale."""
        if middle is None:
            return unknown
        marks = [self.place(self.low + part * (self.high - self.low)) for part in (0, 0.5, 1)]
        ticks = join_html(html('<line class="tick" x1="{x}" x2="{x}" y1="2" y2="16"/>', x=Html(x)) for x in marks)
        whisker = Html()
        if low is not None and high is not None:
            ends = (Html(self.place(max(low, self.low))), Html(self.place(min(high, self.high))))
            whisker = html('<line class="whisker" x1="{}" x2="{}" y1="9" y2="9"/>', *ends)
        dot = html('<circle class="dot" cx="{}" cy="9" r="4"/>', Html(self.place(middle)))
        return _picture(label, ticks, whisker, dot)

    def span(self, low: float | None, high: float | None, label: str) -> Html:
        """A bar from one value to another."""
        if low is None or high is None:
            return unknown
        x, end = float(self.place(low)), float(self.place(high))
        base = html('<line class="tick" x1="{}" x2="{}" y1="9" y2="9"/>', MARGIN, WIDTH - MARGIN)
        bar = html(
            '<rect class="bar" x="{}" y="4" width="{}" height="10"/>', Html(f"{x:.1f}"), Html(f"{max(end - x, 2):.1f}")
        )
        return _picture(label, base, bar)


def _picture(label: str, *parts: Html) -> Html:
    return html(
        '<svg class="mark" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>',
        WIDTH,
        HEIGHT,
        label,
        join_html(parts),
    )


def table(headings: Sequence[Any], rows: Iterable[Sequence[Any]], *, caption: str = "") -> Html:
    """A table whose first column names its rows; numbers stand to the right."""
    head = join_html(html('<th scope="col">{}</th>', heading) for heading in headings)
    body = join_html(
        html("<tr>{}</tr>", join_html(_cell(place, cell) for place, cell in enumerate(row))) for row in rows
    )
    title = html("<caption>{}</caption>", caption) if caption else Html()
    return html(
        '<div class="wide" tabindex="0" role="region" aria-label="{}"><table>{}<thead><tr>{}</tr></thead>'
        "<tbody>{}</tbody></table></div>",
        caption or str(headings[0]),
        title,
        head,
        body,
    )


def _cell(place: int, value: Any) -> Html:
    if place == 0:
        return html('<th scope="row">{}</th>', value)
    numeric = isinstance(value, int | float)
    return html("<td{}>{}</td>", Html(' class="number"' if numeric else ""), count(value) if numeric else value)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page."""

    anchor: str
    title: str
    parts: tuple[Html, ...]

    @property
    def html(self) -> Html:
        """As it stands on the page."""
        return html(
            '<section id="{a}" aria-labelledby="{a}-title"><h2 id="{a}-title">{title}</h2>{body}</section>',
            a=self.anchor,
            title=self.title,
            body=join_html(self.parts),
        )

    @property
    def link(self) -> Html:
        """What leads to it."""
        return html('<a href="#{}">{}</a> ', self.anchor, self.title)


def section(anchor: str, title: str, *parts: Html) -> Section:
    """A part of the page from its pieces."""
    return Section(anchor, title, parts)


def definitions(pairs: Iterable[tuple[str, Any]]) -> Html:
    """Names and what they stand for."""
    return html("<dl>{}</dl>", join_html(html("<dt>{}</dt><dd>{}</dd>", name, value) for name, value in pairs))


def count(value: float) -> str:
    """A number for people, its digits in groups."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3g}"


def number(value: float | None, form: str) -> Html:
    """A number in a form, to the right; a dash when it is not known."""
    return unknown if value is None else html('<span class="number">{}</span>', format(value, form))


def signed(value: float | None, low: float | None, high: float | None) -> str:
    """A difference with its interval."""
    if value is None:
        return "-"
    return f"{value:+.3f}" if low is None or high is None else f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def ranged(value: float | None, low: float | None, high: float | None) -> str:
    """A mean with its interval."""
    if value is None:
        return "-"
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"
