"""Shared parts of all plots: axes, and marks that differ in more than colour.

matplotlib is the extra `plot`. A plot never shows itself, and leaves the backend and the user's defaults unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, Final

from llmkit.errors import LLMConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["COLOURS", "GREY", "Mark", "choose_axes", "draw_legend", "iterate_marks", "shorten"]

# Based on Okabe and Ito (https://jfly.uni-koeln.de/color/), whose colours people with any colour vision can tell apart.
# They are darkened or lightened until each has a contrast of at least 3 to a white page and to a black one.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#B56A97", "#A67C00", "#7F7F7F")
# Seven markers and six colours give 42 marks before one is repeated.
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X")
_LINES: Final = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
GREY: Final = "#7F7F7F"
WIDTH_INCHES: Final = 7.0
LONGEST_NAME: Final = 80


@dataclass(frozen=True, slots=True)
class Mark:
    """Style of one series. No two styles differ by colour alone."""

    colour: str
    marker: str
    line: Any


def iterate_marks() -> Iterator[Mark]:
    """Yield styles in a fixed order, endlessly."""
    for colour, marker, line in zip(cycle(COLOURS), cycle(_MARKERS), cycle(_LINES), strict=False):
        yield Mark(colour, marker, line)


def choose_axes(ax: Axes | None, height_inches: float) -> Axes:
    """Return the given axes, or those of a new pyplot figure, which a notebook shows at the end of its cell.

    Args:
        ax: Axes to return unchanged.
        height_inches: Height of a new figure.

    Raises:
        LLMConfigurationError: matplotlib is not installed.
    """
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError:
        raise LLMConfigurationError("Plots need matplotlib: pip install 'llmkit-research[plot]'") from None
    _, new_ax = pyplot.subplots(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    new_ax.spines[["top", "right"]].set_visible(False)
    return new_ax


def draw_legend(ax: Axes, *, is_own: bool) -> None:
    """Draw the legend: below our own figure, where long names have room, otherwise inside the axes."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    if is_own and ax.figure is not None:
        ax.figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize="small")
    else:
        ax.legend(handles, labels, fontsize="small")


def shorten(name: str) -> str:
    """Return the name, without its middle if it is too long for a line."""
    if len(name) <= LONGEST_NAME:
        return name
    half = (LONGEST_NAME - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
