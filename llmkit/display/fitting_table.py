"""A table that stays readable in a narrow terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

__all__ = ["FittingTable"]

COLUMN_GAP = 2
SHORTEST_BROKEN = 12


class FittingTable(Table):
    """A table that breaks lines between words only, and names of routes after a slash.

    Rich shrinks the widest columns, also below their longest word. Where the words of all columns do not fit beside
    each other, each row becomes a block of lines: the name of a column, and its value.
    """

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Render the table, or the blocks."""
        cells = [[console.render_str(str(each)) for each in (column.header, *column.cells)] for column in self.columns]
        widths = self._choose_widths(cells, options.max_width)
        whole = cells
        if widths is None:
            cells = [
                column if self.columns[number].no_wrap else [_break_names(cell) for cell in column]
                for number, column in enumerate(cells)
            ]
            widths = self._choose_widths(cells, options.max_width)
        if widths is None:
            yield from (Text(part) for part in [str(self.title)] if self.title)
            yield from _render_blocks(whole)
            yield from (part for part in [self.caption] if part)
            return
        for column, width, (header, *texts) in zip(self.columns, widths, cells, strict=True):
            column.width, column.header = width, header
            column._cells[:] = texts  # noqa: SLF001 - rich has no way to replace a cell
        yield from super().__rich_console__(console, options)

    def _choose_widths(self, cells: Sequence[Sequence[Text]], room: int) -> list[int] | None:
        """Return the width of each column; None if they do not fit."""
        wanted = [max(_measure_longest(cell.plain.split("\n")) for cell in column) for column in cells]
        shortest = [
            width if self.columns[number].no_wrap else max(_measure_longest(cell.plain.split()) for cell in column)
            for number, (column, width) in enumerate(zip(cells, wanted, strict=True))
        ]
        slack = room - sum(shortest) - COLUMN_GAP * (len(cells) - 1)
        return None if slack < 0 else _share_width(shortest, wanted, slack)


def _measure_longest(parts: Iterable[str]) -> int:
    return max(map(cell_len, parts), default=0)


def _break_names(cell: Text) -> Text:
    """Break `provider/model` after the slash."""
    place = cell.plain.find("/") + 1
    if not place or cell_len(cell.plain) < SHORTEST_BROKEN or " " in cell.plain:
        return cell
    return Text("\n").join(cell.divide([place]))


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
    names = [" ".join(header.plain.split()) for header in headers]
    width = max(map(cell_len, names))
    for number, row in enumerate(rows):
        if number:
            yield Text()
        block = Table.grid(padding=(0, COLUMN_GAP))
        block.add_column(width=width)
        block.add_column(overflow="fold")
        for name, cell in zip(names, row, strict=True):
            if cell.plain.strip():
                block.add_row(Text(name), cell)
        yield block
