"""What `cases.jsonl` of an evaluation says of every case, read without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from workbench.common.errors import UserError
from workbench.common.outside import Outside, read_lines
from workbench.evaluation.judges.judge import NEEDS_LOCAL
from workbench.evaluation.measures.catalogue import MEASURES
from workbench.evaluation.places import first_files

Key = tuple[str, str, str, int]
"""(bench, category, case, seed)."""


class ScoredAnswer(Outside):
    """A line of a file of scores: one answer of one model, as one judge scored it."""

    model: str
    bench: str
    category: str
    case: str
    seed: int
    score: float | None

    @property
    def key(self) -> Key:
        return self.bench, self.category, self.case, self.seed


class _Row(ScoredAnswer):
    measures: dict[str, Any] = {}
    asked: str = ""
    difficulty: str = ""


def read_scores(path: Path, needed: bool = True) -> dict[str, dict[Key, float]]:
    """Model -> score of every case and seed in a file, or in a run folder's first evaluation; cases that the local
    judge did not score are left out.

    Raises: UserError if the file is missing or broken, or holds no score although one is `needed`.
    """
    scores: dict[str, dict[Key, float]] = {}
    for row in _rows(path):
        if row.score is not None:
            scores.setdefault(row.model, {})[row.key] = row.score
    if not scores and needed:
        raise UserError(f"{path} holds no score of the local judge: {NEEDS_LOCAL} and evaluate the run again")
    return scores


def read_measures(path: Path, model: str) -> dict[str, dict[Key, float]]:
    """Name in MEASURES -> its value for every case and seed of `model` that has one.

    Raises: UserError if the file is missing or broken.
    """
    found: dict[str, dict[Key, float]] = {}
    for row in _rows(path):
        for name, measure in MEASURES.items() if row.model == model else ():
            if row.bench == measure.bench and (value := measure.of(row.measures)) is not None:
                found.setdefault(name, {})[row.key] = value
    return found


def read_asked(path: Path) -> dict[str, str]:
    """Id of every case -> hash of what models were asked; empty in files that older versions wrote.

    Raises: UserError if the file is missing or broken.
    """
    return {row.case: row.asked for row in _rows(path)}


def read_difficulties(path: Path) -> dict[str, str]:
    """Id of every case that belongs to a part of its category -> which; empty in files that older versions wrote.

    Raises: UserError if the file is missing or broken.
    """
    return {row.case: row.difficulty for row in _rows(path) if row.difficulty}


def part_scores(
    scores: Mapping[Key, float], difficulties: Mapping[str, str]
) -> dict[tuple[str, str], dict[Key, float]]:
    """(bench, category) -> the scores of its cases that have a difficulty, with that in the place of the category: its
    parts as if they were the categories of a benchmark."""
    found: dict[tuple[str, str], dict[Key, float]] = {}
    for (bench, category, case, seed), score in scores.items():
        if difficulty := difficulties.get(case):
            found.setdefault((bench, category), {})[bench, difficulty, case, seed] = score
    return found


def _rows(path: Path) -> Iterator[_Row]:
    path = first_files(path).cases if path.is_dir() else path
    for _, row in read_lines(path, _Row, "run `workbench evaluate` on the run first"):
        yield row
