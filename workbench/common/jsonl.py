"""Files with one JSON object a line: numbers by name, and their update. A killed process may leave half a last line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from workbench.common.files import write_bytes

MILESTONE_CASES = "milestone_cases.jsonl"
"""In a run folder: benchmark -> category -> case -> score of the student, a line a milestone."""


def read_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Update and scalars, or what else there is, of each logged line; incomplete lines are left out."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            rows.append((int(row.pop("update")), row))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return rows


def drop_lines_after(path: Path, update: int) -> None:
    """Drop lines beyond the checkpoint that the run continues from, and an incomplete last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["update"] <= update:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
