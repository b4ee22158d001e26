"""Plot of a confusion matrix: how often each class of the targets got each class of answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmkit.dataframes.plotting import choose_axes, shorten

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["plot_confusion"]

LEAST_INCHES: Final = 2.4
ROW_INCHES: Final = 0.45
# From this share of a row on, the number is white, because the field behind it is dark.
DARK_SHARE: Final = 0.6
MOST_COUNTS: Final = 20


def plot_confusion(frame: pd.DataFrame, title: str, ax: Axes | None) -> Axes:
    """Draw a confusion matrix; colours are shares of a target's answers, so that rare classes can be read as well."""
    counts = frame.to_numpy(dtype="float64")
    ax = choose_axes(ax, LEAST_INCHES + ROW_INCHES * len(frame))
    totals = counts.sum(axis=1, keepdims=True)
    shares = counts / totals.clip(min=1)
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(len(frame.columns)), [shorten(str(name)) for name in frame.columns], rotation=30, ha="right")
    ax.set_yticks(range(len(frame)), [shorten(str(name)) for name in frame.index])
    if max(frame.shape) <= MOST_COUNTS:
        for row in range(len(frame)):
            for column in range(len(frame.columns)):
                colour = "white" if shares[row, column] > DARK_SHARE else "black"
                ax.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", color=colour)
    ax.set_xlabel("answer")
    ax.set_ylabel("target")
    ax.set_title(title, loc="left")
    ax.tick_params(length=0)
    return ax
