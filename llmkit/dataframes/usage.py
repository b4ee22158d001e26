"""Usage of a workspace, as a DataFrame that can also plot its history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
from pandas.plotting import PlotAccessor
from sqlalchemy import ColumnElement, Connection, Integer, cast, column, func, select, table

from llmkit.dataframes.plotting import GREY, choose_axes, draw_legend, iterate_marks, shorten
from llmkit.dataframes.store import summarize_usage, to_stored_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Timeline", "UsageFrame", "UsagePlot", "read_usage"]

# Number of equal parts of the time from the first request to the last; a page cannot show more.
SLOTS: Final = 200
_LINE_INCHES: Final = 0.22
_LABELS: Final = {"tokens": "billed tokens so far", "cost": "billed cost so far (USD)"}


@dataclass(frozen=True, slots=True)
class RouteSpending:
    """Spending of one route in one time slot: sums of the known counts, None if none is known."""

    route: str
    slot: int
    requests: int
    tokens: int | None
    uncounted: int
    cost_usd: float | None
    unpriced: int


@dataclass(frozen=True, slots=True)
class Timeline:
    """Requests by route and slot of time.

    Attributes:
        start_utc: When the first request was sent; None when none was.
        slot_s: Length of a slot, in seconds.
        spent: In no certain order.
    """

    start_utc: datetime | None
    slot_s: float
    spent: tuple[RouteSpending, ...]

    def times(self) -> list[datetime]:
        """Beginning of the first slot and end of every slot."""
        if self.start_utc is None:
            return []
        return [self.start_utc + timedelta(seconds=self.slot_s * number) for number in range(SLOTS + 1)]

    def so_far(self, route: str, what: str) -> list[float] | None:
        """Return the cumulative spending of a route at each time; None if none of it is known."""
        mine = [each for each in self.spent if each.route == route]
        amounts = {each.slot: each.tokens if what == "tokens" else each.cost_usd for each in mine}
        if all(amount is None for amount in amounts.values()):
            return None
        sums = [0.0]
        for slot in range(SLOTS):
            sums.append(sums[-1] + (amounts.get(slot) or 0))
        return sums

    def unknown(self, route: str, what: str) -> int:
        """Return how many requests of a route are not in its sums."""
        mine = [each for each in self.spent if each.route == route]
        return sum(each.uncounted if what == "tokens" else each.unpriced for each in mine)


class UsagePlot(PlotAccessor):
    """`usage.plot()` draws what was billed over time; `usage.plot.bar(...)` and the like are pandas' own."""

    def __init__(self, data: UsageFrame) -> None:
        super().__init__(data)
        self._timeline: Timeline = data.timeline

    def __call__(self, kind: str = "tokens", *, ax: Axes | None = None, **pandas_options: Any) -> Any:
        """Draw what was billed so far, over time: a line for each route.

        Tokens are those of prompts and answers. Sums are over what is known; a route of which nothing is known has no
        line and says so beside its name. Times are in UTC, in 200 equal parts from the first request to the last.
        Nothing is shown and no default changed: a notebook shows the figure, a script saves it by
        `ax.figure.savefig(...)`.

        Args:
            kind: `tokens`, `cost` (USD), or one of pandas' own kinds, which then does the rest.
            ax: Axes to draw into; a new figure when None.
            **pandas_options: For pandas' own kinds only.

        Returns:
            The matplotlib `Axes`.

        Raises:
            LLMConfigurationError: matplotlib is not installed.
        """
        if kind in _LABELS:
            return _draw_timeline(self._timeline, kind, ax)
        theirs: Any = super().__call__
        return theirs(kind=kind, ax=ax, **pandas_options)


class UsageFrame(pd.DataFrame):
    """The frame of `Session.usage`; whatever is made of it is an ordinary DataFrame.

    Attributes:
        timeline: What was billed when, at the time of the call.
    """

    _metadata: list[str] = ["timeline"]  # noqa: RUF012 - so pandas asks for it
    timeline: Timeline

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    @property
    def plot(self) -> UsagePlot:
        """Draws what was billed over time: see `UsagePlot`."""
        return UsagePlot(self)


def read_usage(connection: Connection, workspace_id: str, *, since: datetime | None = None) -> UsageFrame:
    """Do the same as `llmkit.dataframes.store.summarize_usage`, with its timeline."""
    frame = UsageFrame(summarize_usage(connection, workspace_id, since=since))
    frame.timeline = _timeline(connection, workspace_id, since)
    return frame


def _timeline(connection: Connection, workspace_id: str, since: datetime | None) -> Timeline:
    dialect = connection.dialect.name
    names = ("run_id", "provider", "model", "started_at_utc", "input_tokens", "output_tokens", "cost_usd")
    sent = table("llm_attempts", *[column(name) for name in names])
    runs = table("llm_runs", *[column(name) for name in ("id", "workspace_id", "created_at_utc")])
    both = sent.join(runs, runs.c.id == sent.c.run_id)
    mine = [runs.c.workspace_id == workspace_id]
    if since is not None:
        mine.append(runs.c.created_at_utc >= to_stored_time(since, dialect))
    second = _epoch_s(sent.c.started_at_utc, dialect)
    ends = select(func.min(second), func.max(second)).select_from(both).where(*mine)
    first, last = connection.execute(ends).one()
    if first is None:
        return Timeline(None, 0.0, ())
    # After a single request the line is a second long.
    slot_s = (float(last) - float(first) or 1.0) / SLOTS
    slot = _whole((second - float(first)) / slot_s, dialect)
    tokens = sent.c.input_tokens + sent.c.output_tokens
    what = (func.count(), func.sum(tokens), func.count(tokens), func.sum(sent.c.cost_usd), func.count(sent.c.cost_usd))
    grouped = (sent.c.provider, sent.c.model, slot)
    found = connection.execute(select(*grouped, *what).select_from(both).where(*mine).group_by(*grouped))
    return Timeline(datetime.fromtimestamp(float(first), UTC), slot_s, tuple(_sum_spending(row) for row in found))


def _epoch_s(time: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    """Return a stored time as seconds since 1970."""
    if dialect == "sqlite":
        return (func.julianday(time) - func.julianday("1970-01-01")) * 86_400.0
    return func.extract("epoch", time)


def _whole(number: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    """Round down. A cast does this on SQLite only, and `floor` is missing in some SQLite builds."""
    return cast(number if dialect == "sqlite" else func.floor(number), Integer)


def _sum_spending(row: Sequence[Any]) -> RouteSpending:
    provider, model, slot, requests, tokens, counted, cost_usd, priced = row
    return RouteSpending(
        route=f"{provider}/{model}",
        slot=min(int(slot), SLOTS - 1),
        requests=requests,
        tokens=None if tokens is None else int(tokens),
        uncounted=requests - counted,
        cost_usd=None if cost_usd is None else float(cost_usd),
        unpriced=requests - priced,
    )


def _draw_timeline(timeline: Timeline, kind: str, ax: Axes | None) -> Axes:
    routes = sorted({each.route for each in timeline.spent})
    is_own, ax = ax is None, choose_axes(ax, 3.4 + _LINE_INCHES * len(routes))
    times, known = timeline.times(), 0
    for route, mark in zip(routes, iterate_marks(), strict=False):
        sums = timeline.so_far(route, kind)
        label = _label_route(route, kind, timeline, is_known=sums is not None)
        if sums is None:
            ax.plot([], [], mark.marker, color=GREY, markerfacecolor="none", label=label)
            continue
        known += 1
        # matplotlib takes times, which its types do not say.
        line: Any = times
        ax.plot(line, sums, color=mark.colour, linestyle=mark.line, drawstyle="steps-post", label=label)
        ax.plot(line[-1:], sums[-1:], mark.marker, color=mark.colour)
    if not known:
        nothing = "Nothing was sent." if not routes else f"{kind.capitalize()} of these requests: unknown."
        ax.text(0.5, 0.5, nothing, transform=ax.transAxes, color=GREY, ha="center", va="center")
    _label(ax, kind, is_empty=not known)
    draw_legend(ax, is_own=is_own)
    return ax


def _label_route(route: str, kind: str, timeline: Timeline, *, is_known: bool) -> str:
    if not is_known:
        return f"{shorten(route)} ({kind} unknown)"
    left_out = timeline.unknown(route, kind)
    return f"{shorten(route)} ({left_out:,} of unknown {kind} left out)" if left_out else shorten(route)


def _label(ax: Axes, kind: str, *, is_empty: bool) -> None:
    from matplotlib import dates
    from matplotlib.ticker import MaxNLocator

    ax.set_xlabel("time (UTC)")
    ax.set_ylabel(_LABELS[kind])
    if is_empty:
        ax.set(xticks=[], yticks=[])
    else:
        untyped: Any = dates
        locator = untyped.AutoDateLocator(tz=UTC)
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(untyped.ConciseDateFormatter(locator, tz=UTC))
        ax.set_ylim(bottom=0)
        if kind == "tokens":
            ax.yaxis.set_major_locator(MaxNLocator(integer=True))
            ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.grid(color=GREY, alpha=0.3)
    ax.set_axisbelow(True)
