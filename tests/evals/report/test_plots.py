"""Plots of a report say what the numbers say: positions, intervals, names, units, and what is not known."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from llmkit.dataframes.plotting import COLOURS, iterate_marks
from llmkit.errors import LLMConfigurationError, LLMEvaluationError
from llmkit.evals import EvalReport
from tests.evals.report.test_report import ROUTES, worse_on_b
from tests.support.eval_fakes import FakeExtract, run, sentiment_task

pyplot = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def _no_window() -> Iterator[None]:
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")


async def reported(**options: Any) -> EvalReport:
    return await run(routes=ROUTES, extract=FakeExtract(worse_on_b), **options)


def changed(report: EvalReport, route: str, **changes: Any) -> EvalReport:
    results = (replace(each, **changes) if each.route == route else each for each in report.results)
    return replace(report, results=tuple(results))


def texts(ax: Any) -> list[str]:
    return [each.get_text() for each in ax.texts]


def names(ax: Any) -> list[str]:
    """Names on the vertical axis."""
    return [each.get_text() for each in ax.get_yticklabels()]


def scatters(ax: Any) -> list[Any]:
    return [each for each in ax.collections if hasattr(each, "get_sizes")]


def points(ax: Any) -> list[tuple[float, float]]:
    """Marks of scatter plots and of lines that show a mark."""
    scattered = [tuple(map(float, at)) for each in scatters(ax) for at in each.get_offsets()]
    drawn = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in ax.lines if len(line.get_xdata())]
    return scattered + drawn


def spans(ax: Any, axis: int) -> list[tuple[float, float]]:
    """Both ends of every straight line, on one axis."""
    segments = [part for each in ax.collections if hasattr(each, "get_segments") for part in each.get_segments()]
    ends = [tuple(sorted(float(at[axis]) for at in part)) for part in segments]
    return [(low, high) for low, high in ends if low != high]


async def test_scores_stand_at_their_means_with_their_intervals() -> None:
    report = await reported()
    ax = report.plot()
    summary = report.summary()
    assert [x for x, _ in points(ax)] == pytest.approx(summary["mean"].tolist())
    expected = [(row["ci_low"], row["ci_high"]) for row in summary.to_dict("records")]
    assert spans(ax, 0) == [pytest.approx(ends) for ends in expected]
    assert [y for _, y in points(ax)] == sorted(y for _, y in points(ax))
    assert texts(ax) == ["4 of 4 scored", "4 of 4 scored"]
    assert names(ax) == ["ollama/a", "gemini/b"]
    assert ax.get_xlabel() == "label: mean with 95 % interval".replace("label", report.metrics[0])
    assert ax.get_xlim() == pytest.approx((-0.02, 1.02))


async def test_a_long_name_is_broken_into_lines_and_kept_whole() -> None:
    long = "ollama/hf.co/someone/Some-Model-3B-Instruct-GGUF:Q4_K_M@few-shot"
    report = await reported()
    renamed = replace(report, results=tuple(replace(each, route=long) for each in report.results))
    (name,) = names(renamed.plot())
    assert name.replace("\n", "") == long
    assert max(map(len, name.splitlines())) <= 24


async def test_ticks_of_tokens_are_whole_numbers() -> None:
    ax = (await reported()).plot("tokens")
    ax.figure.canvas.draw()
    assert [float(tick) for tick in ax.get_xticks()] == [round(float(tick)) for tick in ax.get_xticks()]


async def test_a_route_without_a_score_has_words_and_no_mark() -> None:
    ax = changed(await reported(), "gemini/b", scores={}, status="FAILED").plot()
    assert len(points(ax)) == 1
    assert any(text.startswith("no ") for text in texts(ax))
    assert "0 of 4 scored, 4 failed" in texts(ax)


async def test_one_sample_without_an_interval_is_hollow_and_says_so() -> None:
    report = await reported(limit=1)
    ax = changed(report, "gemini/b", scores={report.metrics[0]: 0.4}).plot()
    hollow = [each for each in scatters(ax) if len(each.get_facecolors()) == 0]
    assert [float(each.get_offsets()[0][0]) for each in hollow] == [0.4]
    assert "1 of 4 scored, no interval" in texts(ax)


async def test_several_metrics_differ_in_more_than_colour() -> None:
    from llmkit.evals import Score

    def half(_output: Any, _sample: Any) -> Score:
        return Score(0.5)

    def third(_output: Any, _sample: Any) -> Score:
        return Score(1 / 3)

    task = sentiment_task()
    report = await reported(task=replace(task, scorers=[*task.scorers, half, third]))
    ax = report.plot()
    handles, labels = ax.get_legend_handles_labels()
    assert labels == list(report.metrics)
    assert len({each.get_marker() for each in handles}) == len({each.get_color() for each in handles}) == 3
    assert len(points(ax)) == 6
    assert len(points(report.plot(metric="half"))) == 2


async def test_quality_stands_against_latency_tokens_and_cost() -> None:
    report = await reported()
    means = report.summary()["mean"].tolist()
    for kind, prices, x in (
        ("latency", None, 20.0),
        ("tokens", None, 14.0),
        ("cost", {"ollama/a": (1.0, 2.0), "gemini/b": (1.0, 2.0)}, 1000 * (10 * 1.0 + 4 * 2.0) / 1e6),
    ):
        ax = report.plot(kind, prices=prices)  # type: ignore[arg-type]
        assert points(ax) == [pytest.approx((x, mean)) for mean in means]
        assert any(unit in ax.get_xlabel() for unit in ("(ms)", "tokens", "(USD)"))
        assert "mean with 95 % interval" in ax.get_ylabel()


async def test_what_is_unknown_is_said_and_never_drawn_at_zero() -> None:
    report = await reported()
    ax = report.plot("cost", prices={"gemini/b": (0.0, 0.0)})
    assert [x for x, _ in points(ax)] == [0.0]  # that is what the price said
    assert ax.get_legend_handles_labels()[1] == ["ollama/a (cost unknown)", "gemini/b"]
    ax = report.plot("cost")
    assert points(ax) == []
    assert texts(ax)[0].startswith("No cost is known")
    ax = changed(report, "ollama/a", input_tokens=None).plot("tokens")
    assert ax.get_legend_handles_labels()[1] == ["ollama/a (tokens unknown)", "gemini/b"]


async def test_samples_without_token_counts_are_left_out_and_counted() -> None:
    report = await reported()
    first, *rest = report.results
    ax = replace(report, results=(replace(first, output_tokens=None), *rest)).plot("tokens")
    assert f"{first.route} (1 without token counts left out)" in ax.get_legend_handles_labels()[1]
    assert [x for x, _ in points(ax)] == [14.0, 14.0]


async def test_a_plot_goes_where_it_is_told_and_changes_no_default() -> None:
    import matplotlib

    report = await reported()
    _, ax = pyplot.subplots()
    # The data of a style are compared, not its order.
    before, backend = dict(matplotlib.rcParams), matplotlib.get_backend()
    assert report.plot(ax=ax) is ax
    assert report.plot("latency", ax=ax) is ax
    report.plot()
    assert (dict(matplotlib.rcParams), matplotlib.get_backend()) == (before, backend)


async def test_what_cannot_be_plotted_is_said_with_what_can() -> None:
    report = await reported()
    with pytest.raises(LLMEvaluationError, match="score, latency, tokens, cost"):
        report.plot("pie")  # type: ignore[arg-type]
    with pytest.raises(LLMEvaluationError, match=report.metrics[0]):
        report.plot(metric="nothing")
    with pytest.raises(LLMEvaluationError, match="ollama/a, gemini/b"):
        report.plot("cost", prices={"ollama/c": (1, 1)})
    with pytest.raises(LLMEvaluationError, match="no scorers"):
        (await run(sentiment_task(scorers=[]), routes=ROUTES)).plot()


async def test_without_matplotlib_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    report = await reported()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(LLMConfigurationError, match=r"pip install 'llmkit-research\[plot\]'"):
            report.plot()


def _luminance(colour: str) -> float:
    """Relative luminance, as WCAG 2 defines it (https://www.w3.org/TR/WCAG22/#dfn-relative-luminance)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_colour_stands_out_from_a_light_and_a_dark_page() -> None:
    for colour in COLOURS:
        seen = _luminance(colour)
        assert 1.05 / (seen + 0.05) >= 3, f"{colour} on white"
        assert (seen + 0.05) / (_luminance("#111111") + 0.05) >= 3, f"{colour} on JupyterLab's dark"


def test_no_two_marks_of_the_first_42_are_alike() -> None:
    first = [mark for mark, _ in zip(iterate_marks(), range(42), strict=False)]
    assert len({(mark.colour, mark.marker) for mark in first}) == 42
