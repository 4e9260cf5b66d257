"""The scores of a run's student from its small files, without the checks that cost a list of runs its time."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.common.errors import UserError
from workbench.common.outside import read_json
from workbench.evaluation.places import METRICS
from workbench.evaluation.trained_student import TRAINING
from workbench.runs.run_folder import RunFolder

BENCHES = {"t2i": "t2i_bench", "editing": "editing_bench"}


@dataclass(frozen=True)
class Score:
    """Mean over the categories of a benchmark, its interval, and the number of cases. seeds: of the noise."""

    mean: float
    low: float | None
    high: float | None
    n: int
    seeds: int


def student_metrics(path: Path) -> dict[str, Any]:
    """The student's part of `metrics.json` and what was scored; empty where there is none."""
    try:
        content = read_json(path, dict, "")
    except UserError:
        return {}
    models = content.get("models")
    student = models.get("student") if isinstance(models, dict) else None
    if not isinstance(student, dict):
        return {}
    seeds = content.get("seeds")
    more = {"seeds": len(seeds) if isinstance(seeds, list) else 1, "scored": _of(content, "student")}
    return {**student, **more}


def outdated(folder: RunFolder, metrics: Mapping[str, Any]) -> str:
    """`update N` or the hash of weights that were scored, where the student there is of others."""
    scored = _of(metrics, "scored")
    try:
        now = read_json(folder.student / TRAINING, dict, "")
    except UserError:
        return ""
    if not scored.get("weights") or not now.get("weights") or scored["weights"] == now["weights"]:
        return ""
    update = whole(scored.get("update"))
    return f"weights {str(scored['weights'])[:12]}" if update in (None, now.get("update")) else f"update {update}"


def further_numbers(folder: Path) -> dict[str, float]:
    """`NAME:t2i` and so on of every further evaluation."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        return {}
    found = {name: numbers_of(student_metrics(folder / name / METRICS)) for name in names}
    return {f"{name}:{key}": value for name, numbers in found.items() for key, value in numbers.items()}


def scores_of(metrics: Mapping[str, Any]) -> dict[str, Score]:
    found = {}
    for name, bench in BENCHES.items():
        mean = _of(metrics, bench, "mean")
        if (value := _number(mean.get("mean"))) is not None:
            n = whole(mean.get("n")) or 0
            found[name] = Score(value, _number(mean.get("low")), _number(mean.get("high")), n, metrics["seeds"])
    return found


def numbers_of(metrics: Mapping[str, Any]) -> dict[str, float]:
    """`t2i`, `editing`, `score` (the mean of both), each of their categories, and the other numbers of a student."""
    scores = {name: score.mean for name, score in scores_of(metrics).items()}
    found: dict[str, float | None] = {**scores, "score": sum(scores.values()) / len(scores) if scores else None}
    for name, bench in BENCHES.items():
        categories = metrics.get(bench)
        for category in categories if isinstance(categories, dict) else ():
            if category != "mean":
                found[f"{name}/{category}"] = _number(_of(metrics, bench, category).get("mean"))
    found["frechet"] = _number(_of(metrics, "frechet").get("value"))
    found["diversity"] = _number(_of(metrics, "diversity").get("mean"))
    found["seconds_per_image"] = _number(metrics.get("seconds_per_image"))
    return {name: value for name, value in found.items() if value is not None}


def _of(value: Any, *keys: str) -> Mapping[str, Any]:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if number else None


def whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
