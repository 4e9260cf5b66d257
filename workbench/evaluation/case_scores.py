"""The score of every case in `evaluation/cases.jsonl` of a run folder, read without torch."""

from __future__ import annotations

from pathlib import Path

from workbench.common.errors import UserError
from workbench.common.outside import Outside, read_lines
from workbench.evaluation.judges.judge import NEEDS_LOCAL

CASES = Path("evaluation") / "cases.jsonl"
"""Path inside a run folder."""
Key = tuple[str, str, str, int]
"""(bench, category, case, seed)."""


class _Row(Outside):
    model: str
    bench: str
    category: str
    case: str
    seed: int
    score: float | None


def read_scores(folder: Path) -> dict[str, dict[Key, float]]:
    """Model -> score of every case and seed in a run folder; cases that the local judge did not score are left out.

    Raises: UserError if the file is missing or broken, or holds no score.
    """
    path = folder / CASES
    scores: dict[str, dict[Key, float]] = {}
    for _, row in read_lines(path, _Row, "run `workbench evaluate` on the run first"):
        if row.score is not None:
            scores.setdefault(row.model, {})[row.bench, row.category, row.case, row.seed] = row.score
    if not scores:
        raise UserError(f"{path} holds no score of the local judge: {NEEDS_LOCAL} and evaluate the run again")
    return scores
