"""A table that stays readable in a narrow terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

__all__ = ["FittingTable"]

COLUMN_GAP = 2


class FittingTable(Table):
    """A table that breaks lines between words only.

    Rich shrinks the widest columns, also below their longest word. Where the words of all columns do not fit beside
    each other, each row becomes a block of lines: the name of a column, and its value.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the table, or the blocks."""
        cells = [[console.render_str(str(each)) for each in (column.header, *column.cells)] for column in self.columns]
        shortest = [max(_measure_longest_word(cell) for cell in column) for column in cells]
        slack = options.max_width - sum(shortest) - COLUMN_GAP * (len(cells) - 1)
        if slack < 0:
            yield from _render_blocks(cells)
            return
        wanted = [max(cell_len(line) for cell in column for line in cell.plain.split("\n")) for column in cells]
        for column, width in zip(self.columns, _share_width(shortest, wanted, slack), strict=True):
            column.width = width
        yield from super().__rich_console__(console, options)


def _measure_longest_word(cell: Text) -> int:
    return max(map(cell_len, cell.plain.split()), default=0)


def _share_width(shortest: Sequence[int], wanted: Sequence[int], slack: int) -> list[int]:
    """Return the width of each column: what it must have, and an equal share of the rest up to what it could use."""
    widths = list(shortest)
    # Those that need least come first, and leave the rest of their share to the others.
    order = sorted(range(len(widths)), key=lambda number: wanted[number] - shortest[number])
    for position, number in enumerate(order):
        share = slack // (len(order) - position)
        more = min(share, max(0, wanted[number] - shortest[number]))
        widths[number] += more
        slack -= more
    return widths


def _render_blocks(cells: Sequence[Sequence[Text]]) -> RenderResult:
    headers, *rows = zip(*cells, strict=True)
    width = max(cell_len(header.plain) for header in headers)
    for number, row in enumerate(rows):
        if number:
            yield Text()
        block = Table.grid(padding=(0, COLUMN_GAP))
        block.add_column(width=width)
        block.add_column(overflow="fold")
        for header, cell in zip(headers, row, strict=True):
            if cell.plain.strip():
                block.add_row(header, cell)
        yield block
