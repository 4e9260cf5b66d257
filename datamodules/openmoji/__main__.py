"""`python -m datamodules.openmoji TASK/CATEGORY OUT.png [SPLIT]`: a contact sheet of 6 x 8 samples with their texts."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING, cast

from PIL import Image, ImageDraw

from datamodules.openmoji import draw

if TYPE_CHECKING:
    from workbench.batch import Task

COLUMNS, ROWS, TEXT_PX = 6, 8, 30


def contact_sheet(qualified: str, split: str = "train", resolution: int = 128) -> Image.Image:
    """48 samples of a qualified category such as `edit/text`; edits show source and target side by side."""
    task, category = qualified.split("/")
    columns = COLUMNS * (2 if task == "t2i" else 1)
    width = resolution * (1 if task == "t2i" else 2) + 6
    height = resolution + TEXT_PX
    rows = -(-COLUMNS * ROWS // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    for at in range(COLUMNS * ROWS):
        sample = draw(cast("Task", task), category, split, at, resolution=resolution)
        x, y = at % columns * width, at // columns * height
        for image in (sample.source, sample.target):
            if image is not None:
                sheet.paste(Image.fromarray(image), (x, y))
                x += resolution + 2
        lines = textwrap.wrap(sample.text, width // 6)[:3]
        pen.multiline_text((at % columns * width, y + resolution), "\n".join(lines), fill="black", spacing=1)
    return sheet


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    contact_sheet(sys.argv[1], sys.argv[3] if len(sys.argv) == 4 else "train").save(sys.argv[2])
