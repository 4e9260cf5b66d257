"""Students against the reference by one judge: what the scores of the same cases show, with verdicts for all at once.

A student is one set of weights, so that cases alone vary. Differences are paired over cases, each case with the mean of
its seeds; the intervals of all students hold together (`families.LargestT`, Dunnett's test), those of categories by
Holm's procedure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from studies.analysis.crossed import Components, Contrast, Table, Variance, components, run_scores, two_sided
from studies.analysis.decisions import Decision, decide
from studies.analysis.families import LargestT, against_first, holm_levels
from studies.analysis.power import CONFIDENCE
from workbench.common.outside import read_lines
from workbench.evaluation.case_scores import Key, ScoredAnswer, read_difficulties, read_scores
from workbench.evaluation.compare import compare_parts
from workbench.evaluation.judges.judge import LOCAL
from workbench.evaluation.measures.interval import Interval
from workbench.evaluation.measures.statistics import MIN_CASES
from workbench.evaluation.places import first_files

FEW_CASES = f"fewer than {MIN_CASES} cases in a category"


class _Row(ScoredAnswer):
    judge: str


@dataclass(frozen=True)
class Difference:
    """A student less the reference. categories: (bench, category) -> better or worse, where either is shown. parts: of
    a category, by difficulty, each with the interval of its own cases alone."""

    name: str
    value: float
    low: float | None
    high: float | None
    verdict: str
    categories: Mapping[tuple[str, str], str]
    parts: Mapping[tuple[str, str], Mapping[str, Interval]] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """One judge on all students. order: names, best first; scores: mean of the benchmarks' means of categories."""

    judge: str
    order: Sequence[str]
    scores: Mapping[str, float]
    num_cases: int
    differences: Sequence[Difference]


def judgements(folder: Path, names: Sequence[str], reference: str, margin: float) -> list[Judgement]:
    """Of every judge of an evaluation, the local one first."""
    scores = _scores(folder)
    difficulties = read_difficulties(folder) if scores else {}
    found = {name: compare(name, by_judge, names, reference, margin) for name, by_judge in scores.items()}
    return [
        _with_parts(judged, scores[name], reference, difficulties)
        for name, judged in found.items()
        if judged is not None
    ]


def _with_parts(
    judged: Judgement, scores: Mapping[str, Mapping[Key, float]], reference: str, difficulties: Mapping[str, str]
) -> Judgement:
    differences = [
        replace(of, parts=compare_parts(scores[of.name], scores[reference], difficulties)) for of in judged.differences
    ]
    return replace(judged, differences=differences)


def _scores(folder: Path) -> dict[str, dict[str, dict[Key, float]]]:
    """Judge -> student -> score of every case and seed."""
    found: dict[str, dict[str, dict[Key, float]]] = {}
    local = read_scores(folder, needed=False)
    if local:
        found[LOCAL] = local
    verdicts = first_files(folder).verdicts
    if verdicts.is_file():
        for _, row in read_lines(verdicts, _Row, "run the same command again"):
            if row.score is not None:
                found.setdefault(row.judge, {}).setdefault(row.model, {})[row.key] = row.score
    return found


def compare(
    judge: str, scores: Mapping[str, Mapping[Key, float]], names: Sequence[str], reference: str, margin: float
) -> Judgement | None:
    """What one judge's scores show, over the cases and seeds that it scored for every student; None without any."""
    shared = set.intersection(*(set(scores.get(name, {})) for name in names))
    if not shared:
        return None
    ordered = [reference, *(name for name in names if name != reference)]
    tables = [_table(scores[name], sorted(shared)) for name in ordered]
    means = {name: float(run_scores(table)[0]) for name, table in zip(ordered, tables, strict=True)}
    num_cases = sum(of.shape[1] for of in tables[0].values())
    differences = _differences(ordered, tables, margin)
    return Judgement(judge, sorted(names, key=lambda name: -means[name]), means, num_cases, differences)


def _table(scores: Mapping[Key, float], keys: Sequence[Key]) -> Table:
    """(bench, category) -> (1, cases) means over seeds."""
    cases: dict[tuple[str, str], dict[str, list[float]]] = {}
    for key in keys:
        cases.setdefault(key[:2], {}).setdefault(key[2], []).append(scores[key])
    return {place: np.array([[np.mean(values) for values in of.values()]]) for place, of in cases.items()}


def fixed(tables: Sequence[Table]) -> Components:
    """Variance components of students that are what they are: no fresh runs, fresh cases alone."""
    none = [Variance(0.0, math.inf)]
    return replace(components(tables, [0] * len(tables)), runs=none, residual=none)


def _differences(names: Sequence[str], tables: Sequence[Table], margin: float) -> list[Difference]:
    """Of every student but the first, less the first."""
    values = [float(run_scores(table)[0] - run_scores(tables[0])[0]) for table in tables[1:]]
    if min(of.shape[1] for of in tables[0].values()) < MIN_CASES:
        return [Difference(*pair, None, None, FEW_CASES, {}) for pair in zip(names[1:], values, strict=True)]
    found, contrasts = fixed(tables), against_first(len(names))
    estimates = [found.contrast(row) for row in contrasts]
    quantile = two_sided(CONFIDENCE)
    if len(estimates) > 1:
        quantile = LargestT(found.correlation(contrasts)).quantile(CONFIDENCE)
    decisions = [decide(estimate, quantile, margin) for estimate in estimates]
    categories = _categories(names, tables)
    return [
        Difference(name, of.value, decision.low, decision.high, _words(decision, of, name, names[0]), categories[name])
        for name, of, decision in zip(names[1:], estimates, decisions, strict=True)
    ]


def _words(decision: Decision, difference: Contrast, name: str, reference: str) -> str:
    if decision.kind != "better":
        return "alike within the margin" if decision.kind == "equivalent" else "no difference shown"
    within = ", by less than the margin" if decision.small else ""
    return f"{name if difference.value > 0 else reference} better{within}"


def _categories(names: Sequence[str], tables: Sequence[Table]) -> dict[str, dict[tuple[str, str], str]]:
    """Student -> (bench, category) -> better or worse than the first, by Holm's procedure over all of them."""
    places, tested = [], []
    for key in tables[0]:
        found = fixed([{key: table[key]} for table in tables])
        for name, row in zip(names[1:], against_first(len(names)), strict=True):
            places.append((name, key))
            tested.append(found.contrast(row))
    p = [contrast.p() for contrast in tested]
    shown: dict[str, dict[tuple[str, str], str]] = {name: {} for name in names[1:]}
    for (name, key), contrast, value, level in zip(places, tested, p, holm_levels(p), strict=True):
        if value <= level:
            shown[name][key] = "better" if contrast.value > 0 else "worse"
    return shown
