"""Files of one JSON object a line, numbers by name and the update they were taken at; a kill may cut the last short."""

from __future__ import annotations

import json
import os
from pathlib import Path


def read_lines(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Update and scalars of each logged line, those cut short aside."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            rows.append((int(row.pop("update")), row))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return rows


def drop_lines_after(path: Path, update: int) -> None:
    """Forget logged lines beyond the checkpoint that the run continues from, and a last line cut short by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["update"] <= update:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    temporary = path.with_suffix(".partial")
    temporary.write_text("".join(f"{line}\n" for line in kept))
    os.replace(temporary, path)
