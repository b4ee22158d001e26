"""Plots of usage over time: on both databases, the lines are the billed amounts, and unknown is not zero."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmkit.dataframes.usage import SLOTS, RouteSpending, Timeline, UsageFrame, read_usage
from llmkit.types import Route, TokenUsage
from tests.support.repositories import JournalHome, journal_home
from tests.support.run_values import a_start, a_success, an_attempt

pyplot = pytest.importorskip("matplotlib.pyplot")

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
UNKNOWN = TokenUsage()


@pytest.fixture
def home(database_url: str) -> Iterator[JournalHome]:
    yield from journal_home(database_url)


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")


async def billed(home: JournalHome, *requests: tuple[str, float, TokenUsage, float | None]) -> UsageFrame:
    """Return the usage after requests: each with route, seconds after the first, tokens and cost."""
    for route, after_s, usage, cost_usd in requests:
        start = a_start()
        await home.repo.create_started(start)
        attempt = an_attempt(
            route=Route.parse(route), started_at_utc=BEGAN + timedelta(seconds=after_s), usage=usage, cost_usd=cost_usd
        )
        await home.repo.mark_succeeded(a_success(start.id, attempts=(attempt,)))
    await home.journal.flush()
    return home.journal.read_here(lambda connection: read_usage(connection, "lab"))


def tokens(asked: int, said: int) -> TokenUsage:
    return TokenUsage(input_tokens=asked, output_tokens=said)


def lines(ax: Any) -> dict[str, list[tuple[datetime, float]]]:
    """Return every drawn line by its name."""
    from matplotlib.dates import num2date

    found = {}
    for line in ax.lines:
        if len(line.get_xdata()) > 1:
            times = num2date(line.get_xdata(orig=False))
            found[line.get_label()] = list(zip(times, line.get_ydata(), strict=True))
    return found


async def test_lines_rise_at_each_request_and_end_at_the_sum(home: JournalHome) -> None:
    usage = await billed(
        home,
        ("ollama/a", 0, tokens(10, 5), None),
        ("gemini/b", 50, tokens(100, 1), 0.25),
        ("ollama/a", 200, tokens(20, 5), None),
    )
    drawn = lines(usage.plot())
    assert list(drawn) == ["gemini/b", "ollama/a"]
    ends = {name: points[-1] for name, points in drawn.items()}
    assert {name: amount for name, (_, amount) in ends.items()} == {"gemini/b": 101, "ollama/a": 40}
    sums = usage[usage["requests"] > 0].set_index("route")
    assert (sums["billed_input_tokens"] + sums["billed_output_tokens"]).to_dict() == {"gemini/b": 101, "ollama/a": 40}
    for time, amount in drawn["ollama/a"][1:-1]:
        assert amount == 15, time
    rose = next(time for time, amount in drawn["gemini/b"] if amount)
    assert abs((rose - BEGAN).total_seconds() - 50) <= 2 * 200 / SLOTS
    first, last = drawn["ollama/a"][0][0], drawn["ollama/a"][-1][0]
    assert abs((first - BEGAN).total_seconds()) < 0.01
    assert abs((last - BEGAN).total_seconds() - 200) < 0.01


async def test_axes_have_units_and_given_axes_are_used(home: JournalHome) -> None:
    usage = await billed(home, ("ollama/a", 0, tokens(10, 5), 0.5))
    _, ax = pyplot.subplots()
    assert usage.plot(ax=ax) is ax
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("time (UTC)", "billed tokens so far")
    assert usage.plot("cost").get_ylabel() == "billed cost so far (USD)"


async def test_a_single_request_is_drawn_at_its_time(home: JournalHome) -> None:
    ax = (await billed(home, ("ollama/a", 0, tokens(1, 1), None))).plot()
    (points,) = lines(ax).values()
    assert (points[-1][0] - points[0][0]).total_seconds() == pytest.approx(1, abs=0.01)
    assert all(float(tick).is_integer() for tick in ax.get_yticks())


async def test_an_unknown_route_has_no_line_and_a_label(home: JournalHome) -> None:
    usage = await billed(
        home,
        ("ollama/a", 0, UNKNOWN, None),
        ("gemini/b", 1, tokens(10, 5), 0.25),
        ("gemini/b", 2, UNKNOWN, None),
    )
    ax = usage.plot()
    assert ax.get_legend_handles_labels()[1] == [
        "gemini/b (1 with unknown tokens left out)",
        "ollama/a (tokens unknown)",
    ]
    assert [points[-1][1] for points in lines(ax).values()] == [15]
    ax = usage.plot("cost")
    assert "ollama/a (cost unknown)" in ax.get_legend_handles_labels()[1]
    assert [points[-1][1] for points in lines(ax).values()] == [0.25]


async def test_an_empty_plot_says_that_nothing_was_sent(home: JournalHome) -> None:
    ax = (await billed(home)).plot()
    assert [text.get_text() for text in ax.texts] == ["Nothing was sent."]
    ax = (await billed(home, ("ollama/a", 0, tokens(1, 1), None))).plot("cost")
    assert [text.get_text() for text in ax.texts] == ["Cost of these requests: unknown."]


async def test_since_limits_the_plot(home: JournalHome) -> None:
    await billed(home, ("ollama/a", 0, tokens(1, 1), None))
    later = datetime.now(UTC) + timedelta(hours=1)
    usage = home.journal.read_here(lambda connection: read_usage(connection, "lab", since=later))
    assert usage.timeline.spending == ()
    assert len(usage) == 0


async def test_pandas_plots_work_and_derived_frames_are_plain(home: JournalHome) -> None:
    usage = await billed(home, ("ollama/a", 0, tokens(10, 5), None))
    bars = usage.plot.bar(x="route", y="requests"), usage.plot(kind="bar", x="route", y="requests")
    for ax in bars:
        assert [bar.get_height() for bar in ax.patches] == usage["requests"].tolist()
    assert {type(usage[["route"]]), type(usage.copy()), type(usage.head(1))} == {pd.DataFrame}


def a_spent(slot: int, amount: int | None) -> RouteSpending:
    return RouteSpending("ollama/a", slot, 1, amount, amount is None, None, 1)


amounts = st.dictionaries(st.integers(0, SLOTS - 1), st.none() | st.integers(0, 10**6), max_size=20)


@settings(max_examples=60, deadline=None)
@given(amounts)
def test_a_line_never_falls_and_ends_at_the_known_sum(by_slot: dict[int, int | None]) -> None:
    timeline = Timeline(BEGAN, 1.0, tuple(a_spent(slot, amount) for slot, amount in by_slot.items()))
    known = [amount for amount in by_slot.values() if amount is not None]
    sums = timeline.sum_spending("ollama/a", "tokens")
    if not known:
        assert sums is None
    else:
        assert sums == sorted(sums or [])
        assert sums[-1] == sum(known)
        assert len(sums) == len(timeline.compute_times())
    assert timeline.count_unknown("ollama/a", "tokens") == len(by_slot) - len(known)
