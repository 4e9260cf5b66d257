"""Tables that fit their terminal without cutting a word; plain text where the output is a pipe. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from rich import table as rich_table
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.text import Text

_PIPE_WIDTH = 100_000


def stdout_console() -> Console:
    """For standard output; a pipe has no width, so nothing is broken there."""
    found = Console()
    return found if found.is_terminal else Console(width=_PIPE_WIDTH)


class Table(rich_table.Table):
    """Columns are at least as wide as their longest word. Where those do not fit next to each other, every row is a
    block of lines `header: value`; a pipe gets one line a row, without a frame."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not console.is_terminal:
            self._flatten()
        needed = [self._measured(console, options, i) for i in range(len(self.columns))]
        left, gap = self.padding[3], self.padding[1]
        frame = 0 if self.box is None else len(self.columns) - 1 + 2 * self.show_edge
        room = options.max_width - frame - len(self.columns) * (left + gap)
        widths = fitted([each.minimum for each in needed], [each.maximum for each in needed], room)
        if widths is None:
            yield from self._stacked()
            return
        for column, width in zip(self.columns, widths, strict=True):
            column.width = width
        yield from super().__rich_console__(console, options)

    def _measured(self, console: Console, options: ConsoleOptions, i: int) -> Measurement:
        """The longest word and the longest line of a column."""
        column = self.columns[i]
        found = [Measurement.get(console, options, cell) for cell in (column.header, *column.cells)]
        return Measurement(max(each.minimum for each in found), max(each.maximum for each in found))

    def _flatten(self) -> None:
        self.box = None
        for column in self.columns:
            column.header = Text(_one_line(column.header))
            column._cells = [Text(_one_line(cell)) for cell in column._cells]

    def _stacked(self) -> RenderResult:
        if self.title:
            yield Text.from_markup(self.title) if isinstance(self.title, str) else self.title
        headers = [_one_line(column.header) for column in self.columns]
        for row in zip(*(column.cells for column in self.columns), strict=True):
            first, *rest = (_one_line(cell) for cell in row)
            yield Text(first, overflow="fold")
            for header, value in zip(headers[1:], rest, strict=True):
                yield Padding(Text(f"{header}: {value}", overflow="fold"), (0, 0, 0, 2))


def _one_line(cell: object) -> str:
    text = cell.plain if isinstance(cell, Text) else Text.from_markup(str(cell)).plain
    return " ".join(text.replace("-\n", "").split())


def fitted(least: Sequence[int], most: Sequence[int], room: int) -> list[int] | None:
    """Widths between `least` and `most` of columns that share `room`, the narrowest widened first; None where even the
    least do not fit."""
    widths = list(least)
    if sum(widths) > room:
        return None
    while sum(widths) < room and any(width < full for width, full in zip(widths, most, strict=True)):
        open_columns = [i for i, width in enumerate(widths) if width < most[i]]
        widths[min(open_columns, key=lambda i: widths[i])] += 1
    return widths
