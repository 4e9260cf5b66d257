"""Files with one JSON object a line: numbers by name, and their update. A killed process may leave half a last line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import FiniteFloat

from workbench.common.errors import UserError
from workbench.common.files import write_bytes
from workbench.common.outside import Count, Outside, parse, read_bytes

MILESTONE_CASES = "milestone_cases.jsonl"
"""In a run folder: benchmark -> category -> case -> score of the student, a line a milestone."""


def read_scalars(path: Path) -> list[tuple[int, dict[str, float]]]:
    """Update and finite numbers of each logged line; incomplete lines and others are left out."""
    return read_lines(path, FiniteFloat)


def read_lines(path: Path, value: Any = Any) -> list[tuple[int, dict[str, Any]]]:
    """Update and what else there is, each a `value`, of each line; incomplete lines and others are left out."""
    rows = []
    for line in _lines(path):
        try:
            row = parse(line, dict[str, value], str(path), "")
            rows.append((parse(line, _Line, str(path), "").update, row))
        except UserError:
            continue
        del row["update"]
    return rows


def drop_lines_after(path: Path, update: int) -> None:
    """Drop lines beyond the checkpoint that the run continues from, and an incomplete last line. Any other line that
    cannot be read is dropped with a word."""
    lines = _lines(path)
    updates = [_update(line) for line in lines]
    for number, found in enumerate(updates[:-1], 1):
        if found is None:
            print(f"{path}:{number} cannot be read, and is dropped")
    if lines:
        kept = [line for line, found in zip(lines, updates, strict=True) if found is not None and found <= update]
        write_bytes(path, b"".join(line + b"\n" for line in kept))


def _lines(path: Path) -> list[bytes]:
    return [line for line in read_bytes(path, "").split(b"\n") if line.strip()] if path.is_file() else []


def _update(line: bytes) -> int | None:
    """The update of a line of scalars, None where it is none."""
    try:
        return parse(line, _Line, "", "").update
    except UserError:
        return None


class _Line(Outside):
    """What every line has."""

    update: Count
