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
        start_utc: Time of the first request; None if there was none.
        slot_s: Length of a slot, in seconds.
        spending: Spending of each route and slot, unordered.
    """

    start_utc: datetime | None
    slot_s: float
    spending: tuple[RouteSpending, ...]

    def compute_times(self) -> list[datetime]:
        """Return the beginning of the first slot and the end of every slot."""
        if self.start_utc is None:
            return []
        return [self.start_utc + timedelta(seconds=self.slot_s * number) for number in range(SLOTS + 1)]

    def sum_spending(self, route: str, kind: str) -> list[float] | None:
        """Return the cumulative spending of a route at each time; None if none of it is known."""
        mine = [each for each in self.spending if each.route == route]
        amounts = {each.slot: each.tokens if kind == "tokens" else each.cost_usd for each in mine}
        if all(amount is None for amount in amounts.values()):
            return None
        sums = [0.0]
        for slot in range(SLOTS):
            sums.append(sums[-1] + (amounts.get(slot) or 0))
        return sums

    def count_unknown(self, route: str, kind: str) -> int:
        """Return the number of a route's requests that are not in its sums."""
        mine = [each for each in self.spending if each.route == route]
        return sum(each.uncounted if kind == "tokens" else each.unpriced for each in mine)


class UsagePlot(PlotAccessor):
    """Plot of the billed tokens or cost over time; `usage.plot.bar(...)` and other kinds are pandas' own."""

    def __init__(self, data: UsageFrame) -> None:
        super().__init__(data)
        self._timeline: Timeline = data.timeline

    def __call__(self, kind: str = "tokens", *, ax: Axes | None = None, **pandas_options: Any) -> Any:
        """Draw the cumulative billed tokens or cost over time: a line for each route.

        Tokens are those of prompts and answers. Sums cover known values; a route without any has no line, and its name
        in the legend says so. Times are in UTC, in 200 equal parts from the first request to the last. A notebook shows
        the figure at the end of the cell; a script saves it with `ax.figure.savefig(...)`.

        Args:
            kind: `tokens`, `cost` (USD), or one of pandas' own kinds.
            ax: Axes to draw into; default a new figure.
            **pandas_options: Options of pandas' own kinds.

        Returns:
            The matplotlib `Axes`.

        Raises:
            LLMConfigurationError: matplotlib is not installed.
        """
        if kind in _LABELS:
            return _draw_timeline(self._timeline, kind, ax)
        plot: Any = super().__call__
        return plot(kind=kind, ax=ax, **pandas_options)


class UsageFrame(pd.DataFrame):
    """The frame of `Session.usage`. Anything derived from it is an ordinary DataFrame.

    Attributes:
        timeline: Spending over time, at the time of the call.
    """

    _metadata: list[str] = ["timeline"]  # noqa: RUF012 - pandas requires this form
    timeline: Timeline

    @property
    def _constructor(self) -> type[pd.DataFrame]:
        return pd.DataFrame

    @property
    def plot(self) -> UsagePlot:
        """Plot of the usage over time; see `UsagePlot`."""
        return UsagePlot(self)


def read_usage(connection: Connection, workspace_id: str, *, since: datetime | None = None) -> UsageFrame:
    """Return calls, requests, tokens and cost of each route, with their history for `plot()`.

    Args:
        connection: Connection to a database at head.
        workspace_id: Name of the workspace.
        since: Only calls created at this time or later; an aware datetime.

    Returns:
        A frame with the columns of `USAGE_COLUMNS`; see `llmkit.dataframes.store.summarize_usage` for their meaning.
    """
    frame = UsageFrame(summarize_usage(connection, workspace_id, since=since))
    frame.timeline = _read_timeline(connection, workspace_id, since)
    return frame


def _read_timeline(connection: Connection, workspace_id: str, since: datetime | None) -> Timeline:
    dialect = connection.dialect.name
    names = ("run_id", "provider", "model", "started_at_utc", "input_tokens", "output_tokens", "cost_usd")
    sent = table("llm_attempts", *[column(name) for name in names])
    runs = table("llm_runs", *[column(name) for name in ("id", "workspace_id", "created_at_utc")])
    both = sent.join(runs, runs.c.id == sent.c.run_id)
    mine = [runs.c.workspace_id == workspace_id]
    if since is not None:
        mine.append(runs.c.created_at_utc >= to_stored_time(since, dialect))
    second = _convert_to_epoch_s(sent.c.started_at_utc, dialect)
    ends = select(func.min(second), func.max(second)).select_from(both).where(*mine)
    first, last = connection.execute(ends).one()
    if first is None:
        return Timeline(None, 0.0, ())
    # A single request gets a line that is one second long.
    slot_s = (float(last) - float(first) or 1.0) / SLOTS
    slot = _round_down((second - float(first)) / slot_s, dialect)
    tokens = sent.c.input_tokens + sent.c.output_tokens
    sums = (func.count(), func.sum(tokens), func.count(tokens), func.sum(sent.c.cost_usd), func.count(sent.c.cost_usd))
    grouped = (sent.c.provider, sent.c.model, slot)
    found = connection.execute(select(*grouped, *sums).select_from(both).where(*mine).group_by(*grouped))
    return Timeline(datetime.fromtimestamp(float(first), UTC), slot_s, tuple(_read_spending(row) for row in found))


def _convert_to_epoch_s(time: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    """Return a stored time as seconds since 1970."""
    if dialect == "sqlite":
        return (func.julianday(time) - func.julianday("1970-01-01")) * 86_400.0
    return func.extract("epoch", time)


def _round_down(number: ColumnElement[Any], dialect: str) -> ColumnElement[Any]:
    """Round down. A cast does this on SQLite only, and `floor` is missing in some SQLite builds."""
    return cast(number if dialect == "sqlite" else func.floor(number), Integer)


def _read_spending(row: Sequence[Any]) -> RouteSpending:
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
    routes = sorted({each.route for each in timeline.spending})
    is_own, ax = ax is None, choose_axes(ax, 3.4 + _LINE_INCHES * len(routes))
    times, known = timeline.compute_times(), 0
    for route, mark in zip(routes, iterate_marks(), strict=False):
        sums = timeline.sum_spending(route, kind)
        label = _label_route(route, kind, timeline, is_known=sums is not None)
        if sums is None:
            ax.plot([], [], mark.marker, color=GREY, markerfacecolor="none", label=label)
            continue
        known += 1
        xs: Any = times  # matplotlib accepts datetimes, but its types do not
        ax.plot(xs, sums, color=mark.colour, linestyle=mark.line, drawstyle="steps-post", label=label)
        ax.plot(xs[-1:], sums[-1:], mark.marker, color=mark.colour)
    if not known:
        text = "Nothing was sent." if not routes else f"{kind.capitalize()} of these requests: unknown."
        ax.text(0.5, 0.5, text, transform=ax.transAxes, color=GREY, ha="center", va="center")
    _format_axes(ax, kind, is_empty=not known)
    draw_legend(ax, is_own=is_own)
    return ax


def _label_route(route: str, kind: str, timeline: Timeline, *, is_known: bool) -> str:
    if not is_known:
        return f"{shorten(route)} ({kind} unknown)"
    left_out = timeline.count_unknown(route, kind)
    return f"{shorten(route)} ({left_out:,} with unknown {kind} left out)" if left_out else shorten(route)


def _format_axes(ax: Axes, kind: str, *, is_empty: bool) -> None:
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
