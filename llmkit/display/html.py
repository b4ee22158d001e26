"""HTML for notebooks: every value is escaped, and looks come from the theme around it, light or dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

__all__ = ["Html", "card", "chat", "html", "table"]

MAX_TEXT_CHARS = 20_000
MAX_ROWS = 100
# Of all that one table or conversation shows: a notebook keeps it in its file, up to five bytes a character.
MAX_CHARS = 25_000

# Thinned grey reads on light and on dark. Jupyter strips borders and backgrounds with `var()` from a notebook that is
# not trusted, and keeps these.
_RULE = "rgba(128, 128, 128, 0.45)"
_TINT = "rgba(128, 128, 128, 0.14)"
_ACCENT = "#5b8def"
_FAINT = "var(--jp-ui-font-color2, gray)"
# A notebook would set what stands between two dollars as a formula: "from $5 to $10" is none.
_AS_IT_IS = "tex2jax_ignore mathjax_ignore"
_WARN = "var(--jp-warn-color1, #c77c02)"


class Html(str):
    """Text that is HTML already and goes in as it is."""

    __slots__ = ()


def html(template: str, *values: Any, **named: Any) -> Html:
    """Fill a template of ours; every value that is not `Html` is escaped."""
    return Html(template.format(*map(_escape, values), **{name: _escape(value) for name, value in named.items()}))


def join_html(parts: Iterable[Html]) -> Html:
    """Several pieces as one."""
    return Html("".join(parts))


def card(text: str, facts: Sequence[str], warnings: Sequence[str] = ()) -> Html:
    """Return a text with a line of facts below it, and a line for each warning."""
    body = html('<div dir="auto" style="white-space:pre-wrap;overflow-wrap:anywhere">{}</div>', _cut(text))
    return html(
        '<div class="{as_it_is}" style="border-left:3px solid {accent};padding:2px 0 2px 12px;margin:4px 0">'
        "{body}{warnings}{facts}</div>",
        as_it_is=_AS_IT_IS,
        accent=Html(_ACCENT),
        body=body,
        warnings=join_html(
            html('<div style="color:{};margin-top:4px">{}</div>', Html(_WARN), each) for each in warnings
        ),
        facts=_facts(facts),
    )


def chat(turns: Sequence[tuple[str, str, Sequence[str]]], title: str) -> Html:
    """Return a conversation: who, what, and facts of each turn, the oldest first; of a long one the newest."""
    left_out = len(turns) - MAX_ROWS
    lead = [_note(f"{left_out} earlier messages")] if left_out > 0 else []
    budget = MAX_CHARS // max(1, min(len(turns), MAX_ROWS))
    shown = [_bubble(who, _cut(text, budget), facts) for who, text, facts in turns[-MAX_ROWS:]]
    talk = join_html([*lead, *shown])
    return html('<div class="{}" style="max-width:60em">{}{}</div>', _AS_IT_IS, talk, _facts([title]))


def table(
    headings: Sequence[str], rows: Sequence[Sequence[Any]], *, caption: str = "", notes: Sequence[str] = ()
) -> Html:
    """Return a table with right-aligned numbers, a caption above it and notes below; of a long one the first rows."""
    shown = rows[:MAX_ROWS]
    budget = max(40, MAX_CHARS // max(1, len(shown) * len(headings)))
    left_out = [f"{len(rows) - MAX_ROWS} more rows"] if len(rows) > MAX_ROWS else []
    return html(
        '<div class="{as_it_is}" style="overflow-x:auto">{caption}'
        '<table style="border-collapse:collapse;color:inherit;font:inherit">'
        "<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}</div>",
        as_it_is=_AS_IT_IS,
        caption=html('<div style="font-weight:600;margin-bottom:4px">{}</div>', caption) if caption else Html(),
        head=join_html(_cell("th", each, f"white-space:nowrap;border-bottom:1px solid {_RULE}") for each in headings),
        body=join_html(
            html("<tr>{}</tr>", join_html(_cell("td", value, limit=budget) for value in row)) for row in shown
        ),
        notes=join_html(_note(note) for note in [*left_out, *notes]),
    )


def _escape(value: Any) -> str:
    return value if isinstance(value, Html) else escape(str(value))


def _cell(tag: str, value: Any, style: str = "", limit: int = 200) -> Html:
    align = "right" if isinstance(value, int | float) else "left"
    return html(
        '<{tag} style="text-align:{align};padding:2px 10px;vertical-align:top;max-width:40em;overflow-wrap:break-word;'
        '{style}">{value}</{tag}>',
        tag=Html(tag),
        align=align,
        style=Html(style),
        value=_cut(value, limit) if isinstance(value, str) else value,
    )


def _bubble(who: str, text: str, facts: Sequence[str]) -> Html:
    mine = who == "user"
    return html(
        '<div style="margin:6px 0;padding:6px 12px;border-radius:8px;{side}">'
        '<div style="font-size:85%;color:{faint}">{who}</div>'
        '<div dir="auto" style="white-space:pre-wrap;overflow-wrap:anywhere">{text}</div>{facts}</div>',
        side=Html(
            f"background-color:{_TINT};margin-left:20%" if mine else f"border:1px solid {_RULE};margin-right:20%"
        ),
        faint=Html(_FAINT),
        who=who,
        text=text,
        facts=_facts(facts) if facts else Html(),
    )


def _facts(facts: Sequence[str]) -> Html:
    return html('<div style="font-size:85%;color:{};margin-top:4px">{}</div>', Html(_FAINT), " · ".join(facts))


def _note(note: str) -> Html:
    return html('<div style="font-size:90%;color:{};margin-top:2px">{}</div>', Html(_FAINT), _cut(note, 2_000))


def _cut(value: str, limit: int = MAX_TEXT_CHARS) -> str:
    return (
        value
        if isinstance(value, Html) or len(value) <= limit
        else f"{value[:limit]}… {len(value) - limit:,} more characters"
    )
