"""Contact sheets of answers: rows are cases, columns the source, the target and the models, all from the same noise."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datamodules.files import write_bytes
from workbench.evaluation.answers import Answers
from workbench.evaluation.benchmark import Case

ROWS = 4
GAP = 4
HEADER = 18


def chosen_cases(cases: Sequence[Case], rows: int = ROWS) -> dict[tuple[str, str], list[Case]]:
    """(task, category) -> its first cases."""
    chosen: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        group = chosen.setdefault((case.task, case.category), [])
        if len(group) < rows:
            group.append(case)
    return chosen


def contact_sheet(columns: Sequence[str], rows: Sequence[Sequence[np.ndarray | None]]) -> Image.Image:
    """Images (H, W, 3) under the column names; None leaves a cell empty."""
    first = next(cell for row in rows for cell in row if cell is not None)
    height, width = first.shape[:2]
    sheet = Image.new("RGB", ((width + GAP) * len(columns) + GAP, (height + GAP) * len(rows) + GAP + HEADER), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 11)
    for i, name in enumerate(columns):
        draw.text((GAP + i * (width + GAP) + width / 2, GAP), name, fill="black", font=font, anchor="ma")
    for j, row in enumerate(rows):
        for i, cell in enumerate(row):
            if cell is not None:
                picture = Image.fromarray(cell).resize((width, height))
                sheet.paste(picture, (GAP + i * (width + GAP), HEADER + GAP + j * (height + GAP)))
    return sheet


def cut_sheet(sheet: Image.Image, columns: Sequence[str], num_rows: int) -> dict[str, list[np.ndarray]]:
    """The cells of a contact sheet again, (H, W, 3) uint8, by column."""
    width = (sheet.width - GAP) // len(columns) - GAP
    height = (sheet.height - GAP - HEADER) // num_rows - GAP
    pixels = np.asarray(sheet.convert("RGB"))
    found: dict[str, list[np.ndarray]] = {}
    for i, name in enumerate(columns):
        left = GAP + i * (width + GAP)
        tops = [HEADER + GAP + j * (height + GAP) for j in range(num_rows)]
        found[name] = [pixels[top : top + height, left : left + width] for top in tops]
    return found


def write_grids(cases: Sequence[Case], answers: Mapping[str, Answers], seed: int, folder: Path) -> None:
    """`TASK-CATEGORY.png` of every category, and `index.json` with the prompts and scores of its rows."""
    index: list[dict[str, Any]] = []
    scores = {
        (model, row.case): row.judgement.score for model, of in answers.items() for row in of.rows if row.seed == seed
    }
    for (task, category), group in chosen_cases(cases).items():
        given = {"source": [case.source for case in group], "target": [case.target for case in group]}
        columns = {name: cells for name, cells in given.items() if any(cell is not None for cell in cells)}
        columns |= {model: [of.images[case.id, seed] for case in group] for model, of in answers.items()}
        sheet = contact_sheet([name.replace("_", " ") for name in columns], list(zip(*columns.values(), strict=True)))
        encoded = io.BytesIO()
        sheet.save(encoded, format="PNG")
        write_bytes(folder / f"{task}-{category}.png", encoded.getvalue())
        rows = [
            {"prompt": case.prompt, "scores": {model: round(scores[model, case.id], 2) for model in answers}}
            for case in group
        ]
        place = {"file": f"{task}-{category}.png", "task": task, "category": category}
        index.append({**place, "columns": list(columns), "rows": rows})
    write_bytes(folder / "index.json", json.dumps(index, indent=1).encode())
