"""Plot of the frontier: score against cost, latency or tokens, with the policies that are worth it joined by a line."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from llmkit.dataframes.plotting import GREY, choose_axes, draw_legend, iterate_marks, shorten

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["plot_frontier"]

LABELS: Final = {
    "cost": "cost of a sample (USD, mean)",
    "latency": "latency of a sample (ms, mean)",
    "tokens": "tokens of a sample, input and output (mean)",
}
HEIGHT_INCHES: Final = 3.6
LINE_INCHES: Final = 0.22


def plot_frontier(frame: pd.DataFrame, title: str, ax: Axes | None) -> Axes:
    """Draw the frame of `EvalReport.frontier`; see `EvalReport.plot_frontier`."""
    is_own, ax = ax is None, choose_axes(ax, HEIGHT_INCHES + LINE_INCHES * len(frame))
    rows: list[dict[str, Any]] = [dict(zip(frame.columns, row, strict=True)) for row in frame.itertuples(index=False)]
    for row, mark in zip(rows, iterate_marks(), strict=False):
        _draw_policy(ax, row, mark)
    joined = [row for row in rows if row["on_frontier"] and _has_place(row)]
    if len(joined) > 1:
        ax.plot([row["value"] for row in joined], [row["mean"] for row in joined], color=GREY, linewidth=1, zorder=1)
    if not any(map(_has_place, rows)):
        ax.text(
            0.5, 0.5, "Nothing has both a score and a known value.", transform=ax.transAxes, color=GREY, ha="center"
        )
    first = rows[0] if rows else {"against": "cost", "metric": "", "lower_is_better": False}
    direction = " (less is better)" if first["lower_is_better"] else ""
    ax.set_xlabel(LABELS[str(first["against"])])
    ax.set_ylabel(f"{first['metric']}{direction}: mean with 95 % interval")
    ax.set_title(title, loc="left")
    ax.grid(color=GREY, alpha=0.3)
    ax.set_axisbelow(True)
    draw_legend(ax, is_own=is_own)
    return ax


def _has_place(row: dict[str, Any]) -> bool:
    return not (math.isnan(row["value"]) or math.isnan(row["mean"]))


def _draw_policy(ax: Axes, row: dict[str, Any], mark: Any) -> None:
    """Draw a policy, hollow when it is dominated; one without a place has only a grey entry in the legend."""
    name = shorten(row["policy"])
    if not _has_place(row):
        ax.plot([], [], mark.marker, color=GREY, markerfacecolor="none", label=f"{name} (unknown)")
        return
    is_dominated = not row["on_frontier"]
    label = f"{name} (dominated by {shorten(row['dominated_by'])})" if is_dominated else name
    if not math.isnan(row["ci_low"]):
        ax.vlines([row["value"]], [row["ci_low"]], [row["ci_high"]], color=mark.colour)
    face = "none" if is_dominated else mark.colour
    ax.plot([row["value"]], [row["mean"]], mark.marker, color=mark.colour, markerfacecolor=face, label=label, zorder=3)
