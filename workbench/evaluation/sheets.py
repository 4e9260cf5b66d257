"""Pictures of answers: rows are cases, columns the source, the target and the models, all from the same noise."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from datamodules.shards.sources import source_name
from workbench.common.files import write_bytes
from workbench.evaluation.answers import Answers
from workbench.evaluation.cases.case import Case
from workbench.sampling.contact_sheet import contact_sheet

ROWS = 4


def chosen_cases(cases: Sequence[Case], rows: int = ROWS) -> dict[tuple[str, str], list[Case]]:
    """(task, category) -> its first cases."""
    chosen: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        group = chosen.setdefault((case.task, case.category), [])
        if len(group) < rows:
            group.append(case)
    return chosen


def write_grids(cases: Sequence[Case], answers: Mapping[str, Answers], seed: int, folder: Path) -> None:
    """`TASK-CATEGORY.png` of every category, and `index.json` with the prompts and scores of its rows."""
    index: list[dict[str, Any]] = []
    scores = {
        (model, row.case): row.judgement.score
        for model, of in answers.items()
        for row in of.rows
        if row.seed == seed and row.judgement is not None
    }
    for (task, category), group in chosen_cases(cases).items():
        sources = zip_longest(*(case.sources for case in group))
        given = {source_name(number): [*column] for number, column in enumerate(sources, 1)}
        given["target"] = [case.target for case in group]
        columns = {name: images for name, images in given.items() if any(image is not None for image in images)}
        columns |= {model: [of.images[case.id, seed] for case in group] for model, of in answers.items()}
        sheet = contact_sheet({name.replace("_", " "): column for name, column in columns.items()})
        encoded = io.BytesIO()
        sheet.save(encoded, format="PNG")
        write_bytes(folder / f"{task}-{category}.png", encoded.getvalue())
        rows = [
            {
                "prompt": case.prompt,
                "scores": {model: round(scores[model, case.id], 2) for model in answers if (model, case.id) in scores},
            }
            for case in group
        ]
        place = {"file": f"{task}-{category}.png", "task": task, "category": category}
        index.append({**place, "columns": list(columns), "rows": rows})
    write_bytes(folder / "index.json", json.dumps(index, indent=1).encode())
    kept = {entry["file"] for entry in index}
    for former in folder.glob("*.png"):
        if former.name not in kept:
            former.unlink()
