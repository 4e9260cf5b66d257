"""Contact sheets: columns of pictures side by side, named on top and, where wanted, labelled at the left."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw
from rich.cells import chop_cells

from workbench.sampling.fonts import font_for

Picture = np.ndarray
"""uint8 (H, W, 3)."""
GAP_PX = 4
HEADER_PX = 18
LABEL_PX = 156
LABEL_CHARACTERS = 24
FONT_PX = 11


def contact_sheet(columns: Mapping[str, Sequence[Picture | None]], labels: Sequence[str] = ()) -> Image.Image:
    """`columns` by name, all as long as each other; None leaves a cell empty. labels: one a row, or none at all."""
    cells = [cell for column in columns.values() for cell in column if cell is not None]
    height, width = (max(cell.shape[axis] for cell in cells) for axis in (0, 1))
    num_rows = len(next(iter(columns.values())))
    left, top = GAP_PX + (LABEL_PX if labels else 0), GAP_PX + HEADER_PX
    size = (left + (width + GAP_PX) * len(columns), top + (height + GAP_PX) * num_rows)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(labels):
        font, drawn = font_for(label, FONT_PX)
        middle = top + row * (height + GAP_PX) + height // 2
        draw.multiline_text((GAP_PX, middle), "\n".join(_wrapped(drawn)), "black", font, anchor="lm")
    for index, (name, column) in enumerate(columns.items()):
        x = left + index * (width + GAP_PX)
        font, drawn = font_for(name, FONT_PX)
        draw.text((x + width / 2, GAP_PX), drawn, "black", font, anchor="ma")
        for row, cell in enumerate(column):
            if cell is not None:
                sheet.paste(Image.fromarray(cell).resize((width, height)), (x, top + row * (height + GAP_PX)))
    return sheet


def _wrapped(label: str) -> list[str]:
    """Lines that fit LABEL_PX; wide characters, between which no blank stands, count twice."""
    lines = [line for part in label.split("\n") for line in textwrap.wrap(part, LABEL_CHARACTERS)]
    return [piece for line in lines for piece in chop_cells(line, LABEL_CHARACTERS)]


def cut_sheet(sheet: Image.Image, columns: Sequence[str], num_rows: int) -> dict[str, list[Picture]]:
    """Pictures of an unlabelled contact sheet, by column: the inverse of `contact_sheet`."""
    width = (sheet.width - GAP_PX) // len(columns) - GAP_PX
    height = (sheet.height - GAP_PX - HEADER_PX) // num_rows - GAP_PX
    pixels = np.asarray(sheet.convert("RGB"))
    found: dict[str, list[Picture]] = {}
    for i, name in enumerate(columns):
        left = GAP_PX + i * (width + GAP_PX)
        tops = [HEADER_PX + GAP_PX + j * (height + GAP_PX) for j in range(num_rows)]
        found[name] = [pixels[top : top + height, left : left + width] for top in tops]
    return found
