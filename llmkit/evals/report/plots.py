"""Plots of a report: scores with their intervals, and quality against latency, tokens or cost."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from llmkit.dataframes.plotting import GREY, Mark, choose_axes, draw_legend, iterate_marks, shorten
from llmkit.errors import LLMEvaluationError
from llmkit.eval_ports import EvalResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from llmkit.evals.report.analysis import Analysis

__all__ = ["KINDS", "PlotKind", "Prices", "plot_report"]

PlotKind: TypeAlias = Literal["score", "latency", "tokens", "cost"]
Prices: TypeAlias = Mapping[str, tuple[float, float]]
"""Variant to USD for a million tokens: of prompts, of answers."""

KINDS: Final[Mapping[str, str]] = {
    "score": "mean score",
    "latency": "latency of a sample (ms): median, line to the 95th percentile",
    "tokens": "tokens of a sample, prompt and answer (mean)",
    "cost": "cost of 1,000 samples (USD)",
}
_PER_MILLION: Final = 1e6
_INTERVAL: Final = "mean with 95 % interval"
# Room for the names below the plot, in inches.
_LINE_INCHES: Final = 0.22
# Longest line of a variant's name on the axis, in characters.
NAME_CHARS: Final = 24
# Share of a variant's height for the dots in the plot of scores; the rest is for its counts.
_DOTS_SHARE: Final = 0.6


@dataclass(frozen=True, slots=True)
class _Position:
    """The value of a variant on the horizontal axis; NaN when unknown."""

    value: float
    up_to: float = math.nan
    left_out: int = 0


def plot_report(
    report: Analysis,
    kind: str,
    metric: str | Sequence[str] | None,
    prices: Prices | None,
    ax: Axes | None,
) -> Axes:
    """Draw a report; see `EvalReport.plot`."""
    if kind not in KINDS:
        raise LLMEvaluationError(f"There is no plot {kind!r}; there are: {', '.join(KINDS)}.")
    metrics = _choose_metrics(report, metric)
    _require_variants(report, prices or {})
    if kind == "score":
        return _draw_scores(report, metrics, ax)
    return _draw_tradeoff(report, kind, metrics[0], prices or {}, ax)


def _choose_metrics(report: Analysis, metric: str | Sequence[str] | None) -> tuple[str, ...]:
    usual = report.metrics or report.main_dataset_metrics
    wanted = (metric,) if isinstance(metric, str) else tuple(metric or usual)
    unknown = [name for name in wanted if name not in (*report.metrics, *report.dataset_metrics)]
    if unknown or not wanted:
        known = ", ".join((*report.metrics, *report.dataset_metrics)) or "none, because the task has no scorers"
        raise LLMEvaluationError(f"There is no metric {unknown[0] if unknown else 'to plot'!r}; there are: {known}.")
    return wanted


def _require_variants(report: Analysis, prices: Prices) -> None:
    unknown = [label for label in prices if label not in report.variants]
    if unknown:
        raise LLMEvaluationError(
            f"There is no variant {unknown[0]!r} to price; there are: {', '.join(report.variants)}."
        )


def _label_metric(report: Analysis, metric: str) -> str:
    is_lower = any(row["lower_is_better"] for row in _get_rows(report, metric))
    return f"{metric} (less is better)" if is_lower else metric


def _get_rows(report: Analysis, metric: str) -> list[dict[str, Any]]:
    frame = report.summary()
    return [
        {str(name): value for name, value in row.items()} for row in frame[frame["metric"] == metric].to_dict("records")
    ]


# --- scores -------------------------------------------------------------------------------------------------------


def _draw_scores(report: Analysis, metrics: Sequence[str], ax: Axes | None) -> Axes:
    """Draw the variants from top to bottom, named on the axis, with a dot for every metric below their counts."""
    variants = report.variants
    key_lines = len(metrics) if len(metrics) > 1 else 0
    height = 1.0 + len(variants) * (0.45 + 0.2 * len(metrics)) + _LINE_INCHES * key_lines
    is_own, ax = ax is None, choose_axes(ax, height)
    by_metric = {name: _get_rows(report, name) for name in metrics}
    for number, (name, mark) in enumerate(zip(metrics, iterate_marks(), strict=False)):
        shift = (number + 0.5) / len(metrics) * _DOTS_SHARE + 0.5 - _DOTS_SHARE
        _draw_dots(ax, by_metric[name], shift, mark, _label_metric(report, name))
    for place, variant in enumerate(variants):
        at = ax.get_yaxis_transform()
        ax.text(0.01, place - 0.45, _describe_scored(variant, by_metric), transform=at, va="top", fontsize="small")
    # A name stands beside the middle of its dots.
    middle = 0.5 - _DOTS_SHARE / 2
    ax.set_yticks([place + middle for place in range(len(variants))], [_wrap_name(variant) for variant in variants])
    ax.set_ylim(len(variants) - 0.5, -0.5)
    ax.set_xlabel(f"{_label_metric(report, metrics[0])}: {_INTERVAL}" if len(metrics) == 1 else f"score: {_INTERVAL}")
    _show_unit_range(ax, [row for rows in by_metric.values() for row in rows], "x")
    _finish(report, ax, "x")
    if key_lines:
        draw_legend(ax, is_own=is_own)
    return ax


def _draw_dots(ax: Axes, rows: Sequence[Mapping[str, Any]], shift: float, mark: Mark, name: str) -> None:
    """Draw means as dots and intervals as lines; a dot without an interval is hollow, a missing score is text."""
    there = [(place + shift, row) for place, row in enumerate(rows) if row["scored"]]
    sure = [(y, row) for y, row in there if _has_interval(row)]
    ax.hlines(
        [y for y, _ in sure], [row["ci_low"] for _, row in sure], [row["ci_high"] for _, row in sure], color=mark.colour
    )
    _draw_points(ax, [(row["mean"], y) for y, row in sure], mark, hollow=False)
    _draw_points(ax, [(row["mean"], y) for y, row in there if not _has_interval(row)], mark, hollow=True)
    ax.plot([], [], mark.marker, color=mark.colour, linestyle="-", label=name)
    for place, row in enumerate(rows):
        if not row["scored"]:
            at = ax.get_yaxis_transform()
            ax.text(0.01, place + shift, f"no {name}", transform=at, color=GREY, va="center", fontsize="small")


def _draw_points(ax: Axes, points: Sequence[tuple[float, float]], mark: Mark, *, hollow: bool) -> None:
    if points:
        face = "none" if hollow else mark.colour
        x, y = zip(*points, strict=True)
        ax.scatter(x, y, marker=mark.marker, s=45, facecolors=face, edgecolors=mark.colour, zorder=3)


def _describe_scored(variant: str, by_metric: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    rows = [row for rows in by_metric.values() for row in rows if row["variant"] == variant]
    scored = sorted({int(row["scored"]) for row in rows})
    scored_text = f"{scored[0]}" if len(scored) == 1 else f"{scored[0]} to {scored[-1]}"
    failed = f", {rows[0]['failed']} failed" if rows[0]["failed"] else ""
    lone = ", no interval" if any(row["scored"] and not _has_interval(row) for row in rows) else ""
    return f"{scored_text} of {rows[0]['n']} scored{failed}{lone}"


def _wrap_name(variant: str) -> str:
    """Return the name in lines that leave room for the plot, broken after punctuation where there is some."""
    lines = [""]
    for part in re.findall(rf"[^-/@:_]{{1,{NAME_CHARS}}}[-/@:_]?|[-/@:_]", shorten(variant)):
        if lines[-1] and len(lines[-1]) + len(part) > NAME_CHARS:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _has_interval(row: Mapping[str, Any]) -> bool:
    return not (math.isnan(row["ci_low"]) or math.isnan(row["ci_high"]))


# --- quality against latency, tokens and cost ---------------------------------------------------------------------


def _draw_tradeoff(report: Analysis, kind: str, metric: str, prices: Prices, ax: Axes | None) -> Axes:
    """Draw a mark for each variant that has both; the labels of the others say what is missing."""
    variants = report.variants
    is_own, ax = ax is None, choose_axes(ax, 3.6 + _LINE_INCHES * len(variants))
    rows = {row["variant"]: row for row in _get_rows(report, metric)}
    position = {
        variant: _measure_position(report.of(variant), rows[variant], kind, prices.get(variant)) for variant in variants
    }
    for variant, mark in zip(variants, iterate_marks(), strict=False):
        _draw_variant(
            ax, rows[variant], position[variant], mark, _label_mark(variant, kind, rows[variant], position[variant])
        )
    if not any(_is_known(rows[variant], position[variant]) for variant in variants):
        ax.text(0.5, 0.5, _explain_empty_plot(kind), transform=ax.transAxes, color=GREY, ha="center", va="center")
    ax.set_xlabel(KINDS[kind])
    ax.set_ylabel(f"{_label_metric(report, metric)}: {_INTERVAL}")
    right = ax.get_xlim()[1]
    ax.set_xlim(-0.02 * right, right)
    if kind != "cost":
        from matplotlib.ticker import MaxNLocator

        # Whole numbers: ticks at 2.5 and 7.5 would be labelled 2 and 8.
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.xaxis.set_major_formatter("{x:,.0f}")
    _show_unit_range(ax, list(rows.values()), "y")
    _finish(report, ax, "both")
    draw_legend(ax, is_own=is_own)
    return ax


def _measure_position(
    results: Sequence[EvalResult], row: Mapping[str, Any], kind: str, price: tuple[float, float] | None
) -> _Position:
    if kind == "latency":
        return _Position(row["latency_p50_ms"], row["latency_p95_ms"])
    known = [(r.input_tokens, r.output_tokens) for r in results]
    counted = [
        (input_tokens, output_tokens)
        for input_tokens, output_tokens in known
        if input_tokens is not None and output_tokens is not None
    ]
    left_out = sum(r.requests > 0 for r in results) - len(counted)
    if not counted:
        return _Position(math.nan)
    if kind == "tokens":
        return _Position(
            _average(input_tokens + output_tokens for input_tokens, output_tokens in counted), left_out=left_out
        )
    if price is None:
        return _Position(math.nan)
    input_usd, output_usd = price
    each = _average(input_tokens * input_usd + output_tokens * output_usd for input_tokens, output_tokens in counted)
    return _Position(1000 * each / _PER_MILLION, left_out=left_out)


def _average(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


def _is_known(row: Mapping[str, Any], position: _Position) -> bool:
    return bool(row["scored"]) and not math.isnan(position.value)


def _draw_variant(ax: Axes, row: Mapping[str, Any], position: _Position, mark: Mark, label: str) -> None:
    """Draw the mark and label of a variant; one without a position only gets a label with a grey, hollow mark."""
    if not _is_known(row, position):
        ax.plot([], [], mark.marker, color=GREY, markerfacecolor="none", label=label)
        return
    x, y = position.value, row["mean"]
    if _has_interval(row):
        ax.vlines([x], [row["ci_low"]], [row["ci_high"]], color=mark.colour)
    if not math.isnan(position.up_to):
        ax.hlines([y], [x], [position.up_to], color=mark.colour, linewidth=1)
    face = mark.colour if _has_interval(row) else "none"
    ax.plot([x], [y], mark.marker, color=mark.colour, markerfacecolor=face, markersize=7, label=label, zorder=3)


def _label_mark(variant: str, kind: str, row: Mapping[str, Any], position: _Position) -> str:
    remarks = []
    if not row["scored"]:
        remarks.append("no score")
    elif not _has_interval(row):
        remarks.append("no interval")
    if math.isnan(position.value):
        remarks.append(f"{kind} unknown")
    elif position.left_out > 0:
        remarks.append(f"{position.left_out} without token counts left out")
    return f"{shorten(variant)} ({', '.join(remarks)})" if remarks else shorten(variant)


def _explain_empty_plot(kind: str) -> str:
    if kind == "cost":
        return "No cost is known.\nGive prices={variant: (USD per million prompt tokens, answer tokens)}."
    return f"No variant has both a score and its {kind}."


# --- both ---------------------------------------------------------------------------------------------------------


def _show_unit_range(ax: Axes, rows: Sequence[Mapping[str, Any]], axis: Literal["x", "y"]) -> None:
    """Show the whole range of scores within 0 and 1, because a part of it makes small differences look large."""
    ends = [row[name] for row in rows for name in ("mean", "ci_low", "ci_high") if not math.isnan(row[name])]
    if all(0 <= end <= 1 for end in ends):
        (ax.set_xlim if axis == "x" else ax.set_ylim)(-0.02, 1.02)


def _finish(report: Analysis, ax: Axes, grid: Literal["x", "both"]) -> None:
    ax.set_title(report.run.name, loc="left")
    ax.grid(axis=grid, color=GREY, alpha=0.3)
    ax.set_axisbelow(True)
