"""Tables that fit their terminal without cutting a word; plain text where the output is a pipe. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from rich import table as rich_table
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.text import Text

_PIPE_WIDTH = 100_000


def stdout_console() -> Console:
    """For standard output: brackets are no markup. A pipe has no width, so nothing is broken there."""
    found = Console(markup=False)
    return found if found.is_terminal else Console(width=_PIPE_WIDTH, markup=False)


class Table(rich_table.Table):
    """Columns are at least as wide as their longest word. Where those do not fit next to each other, every row is a
    block of lines `header: value`; a pipe gets one line a row, without a frame."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if not console.is_terminal:
            lines = self._lines()
            if max(map(cell_len, lines)) <= options.max_width:
                yield Text("\n".join(lines), no_wrap=True)
                return
        needed = [_measured(column) for column in self.columns]
        left, gap = self.padding[3], self.padding[1]
        frame = 0 if self.box is None else len(self.columns) - 1 + 2 * self.show_edge
        room = options.max_width - frame - len(self.columns) * (left + gap)
        widths = fitted([least for least, _ in needed], [most for _, most in needed], room)
        if widths is None:
            yield from self._stacked()
            return
        for column, width in zip(self.columns, widths, strict=True):
            column.width = width
        yield from super().__rich_console__(console, options)

    def _lines(self) -> list[str]:
        """Title, header and one line a row, columns two spaces apart."""
        columns = [[_header(column.header), *map(_one_line, column.cells)] for column in self.columns]
        widths = [max(map(cell_len, cells)) for cells in columns]
        padded = [
            [
                " " * (width - cell_len(cell)) + cell if of.justify == "right" else set_cell_size(cell, width)
                for cell in cells
            ]
            for cells, width, of in zip(columns, widths, self.columns, strict=True)
        ]
        rows = ["  ".join(row).rstrip() for row in zip(*padded, strict=True)]
        return [*([_plain(self.title)] if self.title else []), *rows]

    def _stacked(self) -> RenderResult:
        if self.title:
            yield Text(self.title) if isinstance(self.title, str) else self.title
        headers = [_header(column.header) for column in self.columns]
        for first, *rest in zip(*(column.cells for column in self.columns), strict=True):
            yield Text(_plain(first), overflow="fold")
            for header, value in zip(headers[1:], rest, strict=True):
                yield Padding(Text(f"{header}: {_one_line(value)}", overflow="fold"), (0, 0, 0, 2))


def _measured(column: rich_table.Column) -> tuple[int, int]:
    """The longest word and the longest line of a column."""
    texts = [_plain(cell) for cell in (column.header, *column.cells)]
    words = max((cell_len(word) for text in texts for word in text.split()), default=0)
    return words, max((cell_len(line) for text in texts for line in text.split("\n")), default=0)


def _plain(cell: object) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def _one_line(cell: object) -> str:
    return " ".join(_plain(cell).split())


def _header(cell: object) -> str:
    """In one line, a hyphenated word whole again."""
    return " ".join(_plain(cell).replace("-\n", "").split())


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
