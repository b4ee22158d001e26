"""HTML for notebooks, from autoescaped templates; colours come from the notebook's theme, light or dark."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["Explained", "render_answers", "render_card", "render_chat", "render_line", "render_table"]

MAX_TEXT_CHARS = 20_000
MAX_ROWS = 100
# Characters of one whole table or conversation: a notebook keeps them in its file, up to five bytes for each.
MAX_CHARS = 25_000

# Classes that keep a notebook from setting text between two dollars as a formula: "from $5 to $10".
PLAIN_TEXT = "tex2jax_ignore mathjax_ignore"


class Explained(NamedTuple):
    """A cell with a sentence about it, which shows when it is pointed at or has the focus."""

    value: Any
    why: str


def render_card(text: str, facts: Sequence[str], warnings: Sequence[str] = ()) -> str:
    """Render a text with a line of facts below it, and a line for each warning."""
    return _render("card.html", text=text, facts=facts, warnings=warnings, max_text_chars=MAX_TEXT_CHARS)


def render_chat(turns: Sequence[tuple[str, str, Sequence[str]]], title: str) -> str:
    """Render a conversation: speaker, text and facts of each turn, oldest first; of a long one only the newest."""
    shown = turns[-MAX_ROWS:]
    max_chars = MAX_CHARS // max(1, len(shown))
    return _render("chat.html", turns=shown, title=title, left_out=len(turns) - MAX_ROWS, max_chars=max_chars)


def render_answers(answers: Sequence[tuple[str, str, str, str]]) -> str:
    """Render a line for each answer: status, label, input and output."""
    return _render("answers.html", answers=answers)


def render_line(text: str) -> str:
    """Render a line that says what is going on."""
    return _render("line.html", text=text)


def render_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    caption: str = "",
    lead: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """Render a table with right-aligned numbers, a caption and a lead above it, and notes below.

    Of a long table only the first rows are shown. A cell may be `Explained`.
    """
    shown = rows[:MAX_ROWS]
    left_out = [f"{len(rows) - MAX_ROWS} more rows"] if len(rows) > MAX_ROWS else []
    return _render(
        "table.html",
        headings=headings,
        rows=shown,
        caption=caption,
        lead=lead,
        has_explanations=any(isinstance(cell, Explained) for row in shown for cell in row),
        notes=[*left_out, *notes],
        max_chars=max(40, MAX_CHARS // max(1, len(shown) * len(headings))),
    )


def _render(template: str, **values: Any) -> str:
    return _get_environment().get_template(template).render(values)


@lru_cache(maxsize=1)
def _get_environment() -> Environment:
    # Imported here, because every process imports this module and few show HTML.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    # Jupyter strips borders and backgrounds with `var()` from a notebook that is not trusted, so the templates use a
    # translucent grey for these, which is readable on light and on dark.
    environment = Environment(loader=PackageLoader("llmkit.display"), autoescape=True, undefined=StrictUndefined)
    environment.filters["cut"] = _cut_text
    environment.globals["plain_text"] = PLAIN_TEXT
    return environment


def _cut_text(value: Any, limit: int) -> Any:
    """Return a long string's beginning and the number of characters left out; other values unchanged."""
    if not isinstance(value, str) or len(value) <= limit:
        return value
    return f"{value[:limit]}… {len(value) - limit:,} more characters"
