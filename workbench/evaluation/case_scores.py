"""The score of every case in `evaluation/cases.jsonl` of a run folder, read without torch."""

from __future__ import annotations

import json
from pathlib import Path

from workbench.common.errors import UserError
from workbench.evaluation.judges.judge import NEEDS_LOCAL

CASES = Path("evaluation") / "cases.jsonl"
"""Path inside a run folder."""
Key = tuple[str, str, str, int]
"""(bench, category, case, seed)."""


def read_scores(folder: Path) -> dict[str, dict[Key, float]]:
    """Model -> score of every case and seed in a run folder; cases that the local judge did not score are left out.

    Raises: UserError if the file is missing or broken, or holds no score.
    """
    path = folder / CASES
    scores: dict[str, dict[Key, float]] = {}
    try:
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row["score"] is not None:
                key = (row["bench"], row["category"], row["case"], int(row["seed"]))
                scores.setdefault(row["model"], {})[key] = float(row["score"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"no usable scores in {path} ({error}); run `workbench evaluate` on the run first") from error
    if not scores:
        raise UserError(f"{path} holds no score of the local judge: {NEEDS_LOCAL} and evaluate the run again")
    return scores
