"""What stands beside the judges' scores: readings with intervals, and the answers' distribution against the targets'.

KID, precision and recall go by the local judge's features of the T2I answers under the first seed and of their targets,
so by equal numbers, each dimension in units of the targets' spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.evaluation.answers import Answers
from workbench.evaluation.cases.case import BENCHES
from workbench.evaluation.measures import distances
from workbench.evaluation.measures.statistics import bench_intervals
from workbench.recipe.config import Recipe

MIN_KID_IMAGES = 20
"""Of fewer neither the scale that features are told in is known well, nor the width of the interval."""
MAX_KID_IMAGES = 1000
"""From so many images on the Frechet distance alone is told."""


def beside_metrics(answers: Answers, targets: Answers, recipe: Recipe) -> dict[str, Any]:
    """All readings of one model with their intervals, and its distribution against that of the targets."""
    rows = answers.rows
    word = {
        bench: _interval([(r.case, r.reading.word) for r in rows if r.bench == bench], recipe)
        for bench in BENCHES.values()
    }
    distance: dict[str, list[tuple[str, float | None]]] = {}
    defects: dict[str, list[tuple[str, float | None]]] = {}
    for row in rows:
        if row.bench == BENCHES["edit"]:
            distance.setdefault(row.category, []).append((row.case, row.reading.target_distance))
        if row.reading.defect is not None:
            defects.setdefault(row.reading.defect, []).append((row.case, row.judgement.score))
    tables = {name: table for name, values in distance.items() if (table := _table(values)) is not None}
    intervals = bench_intervals(tables, recipe.evaluation.num_bootstrap)
    return {
        "word_accuracy": {bench: interval for bench, interval in word.items() if interval is not None},
        "residual_noise": _interval([(r.case, r.reading.noise) for r in rows], recipe),
        "target_distance": {name: interval.as_dict() for name, interval in intervals.items()} or None,
        "enhance_by_defect": {name: _interval(values, recipe) for name, values in sorted(defects.items())},
        **_distribution(answers, targets),
    }


def _distribution(answers: Answers, targets: Answers) -> dict[str, Any]:
    """KID, precision and recall of the T2I answers under the first seed against their targets: equal numbers."""
    real, drawn = _paired_features(answers, targets)
    n = len(real)
    if n < 2:
        return {"kid": None, "precision": None, "recall": None}
    real, drawn = distances.standardised(real, real), distances.standardised(drawn, real)
    found = distances.kid(drawn, real) if MIN_KID_IMAGES <= n < MAX_KID_IMAGES else None
    kid = None if found is None else dict(zip(("value", "low", "high"), found, strict=True)) | {"n": n}
    shares = {"precision": distances.coverage(drawn, real), "recall": distances.coverage(real, drawn)}
    told = {name: None if value is None else {"value": value, "n": n} for name, value in shares.items()}
    return {"kid": kid, **told}


def _paired_features(answers: Answers, targets: Answers) -> tuple[np.ndarray, np.ndarray]:
    """(n, D) of the targets and of their answers under the first seed, T2I, in the same order."""
    bench = BENCHES["t2i"]
    first = answers.rows[0].seed if answers.rows else 0
    of_case = {
        row.case: feature
        for row, feature in zip(answers.rows, answers.features, strict=True)
        if row.bench == bench and row.seed == first
    }
    pairs = [
        (feature, of_case[row.case])
        for row, feature in zip(targets.rows, targets.features, strict=True)
        if row.bench == bench and row.case in of_case
    ]
    if not pairs:
        return np.zeros((0, 0)), np.zeros((0, 0))
    return np.stack([real for real, _ in pairs]), np.stack([drawn for _, drawn in pairs])


def _table(values: Sequence[tuple[str, float | None]]) -> np.ndarray | None:
    """(cases, seeds) of (case, value) pairs; a case either has a value under every seed or under none."""
    cases: dict[str, list[float]] = {}
    for case, value in values:
        if value is not None:
            cases.setdefault(case, []).append(value)
    return np.array(list(cases.values())) if cases else None


def _interval(values: Sequence[tuple[str, float | None]], recipe: Recipe) -> dict[str, Any] | None:
    table = _table(values)
    if table is None:
        return None
    return bench_intervals({"all": table}, recipe.evaluation.num_bootstrap)["mean"].as_dict()
