"""Secondary metrics: measures of the answers with intervals, and the answers' distribution against the targets'.

KID, precision and recall compare the local judge's features of the T2I answers under the first seed with those of their
targets: equally many of both, each dimension in units of the targets' spread.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.evaluation.answers import Answers
from workbench.evaluation.cases.case import BENCHES
from workbench.evaluation.measures import choices, distances
from workbench.evaluation.measures.answer_measures import Measures
from workbench.evaluation.measures.catalogue import MEASURES
from workbench.evaluation.measures.category_frechet import category_frechet
from workbench.evaluation.measures.interval import Interval
from workbench.evaluation.measures.statistics import bench_intervals
from workbench.evaluation.metrics_file import Bounded, Secondary, Value

MIN_KID_IMAGES = 20
"""With fewer neither the scale of the features is known well, nor the width of the interval."""
MAX_KID_IMAGES = 1000
"""From so many images on the Frechet distance alone is given."""


def secondary_metrics(answers: Answers, targets: Answers, num_bootstrap: int) -> Secondary:
    """All measures of one model with their intervals, and its distribution against that of the targets."""
    rows = answers.rows
    word = {
        bench: _interval([(r.case, r.measures.word) for r in rows if r.bench == bench], num_bootstrap)
        for bench in BENCHES.values()
    }
    distance: dict[str, list[tuple[str, float | None]]] = {}
    defects: dict[str, list[tuple[str, float | None]]] = {}
    for row in rows:
        if row.bench == BENCHES["edit"]:
            distance.setdefault(row.category, []).append((row.case, row.measures.target_distance))
        if row.measures.defect is not None and row.judgement is not None:
            defects.setdefault(row.measures.defect, []).append((row.case, row.judgement.score))
    tables = {name: table for name, values in distance.items() if (table := _table(values)) is not None}
    kid, precision, recall = _distribution(answers, targets)
    found = _choices(answers, targets)
    return Secondary(
        word_accuracy={bench: interval for bench, interval in word.items() if interval is not None},
        residual_noise=_interval([(r.case, r.measures.noise) for r in rows], num_bootstrap),
        target_distance=bench_intervals(tables, num_bootstrap) or None,
        enhance_by_defect={name: _interval(values, num_bootstrap) for name, values in sorted(defects.items())},
        kid=kid,
        precision=precision,
        recall=recall,
        measures=_measures(answers, num_bootstrap),
        choices=found,
        variety=choices.variety(found),
        category_frechet=_category_frechet(answers, targets),
    )


def _measures(answers: Answers, num_bootstrap: int) -> dict[str, Interval]:
    """Mean of every measure that any answer has. A case that has it under some seeds alone counts with their mean."""
    found = {}
    for name, measure in MEASURES.items():
        cases: dict[str, list[float]] = {}
        for row in answers.rows:
            if row.bench == measure.bench and (value := measure.of(vars(row.measures))) is not None:
                cases.setdefault(row.case, []).append(value)
        interval = _interval([(case, float(np.mean(values))) for case, values in cases.items()], num_bootstrap)
        if interval is not None:
            found[name] = interval
    return found


def _choices(answers: Answers, targets: Answers) -> dict[str, Bounded]:
    """What prompts leave open -> total variation of the answers' choices from those of the targets to the same
    prompts."""
    real = {row.case: row.measures for row in targets.rows if row.bench == BENCHES["t2i"]}
    drawn: dict[str, list[Measures]] = {}
    for row in answers.rows:
        if row.case in real:
            drawn.setdefault(row.case, []).append(row.measures)
    found: dict[str, Bounded | None] = {}
    for name in choices.COLOURS:
        chosen = {case: str(of.choices[name]) for case, of in real.items() if of.choices and name in of.choices}
        ours = [[(of.choices or {}).get(name, "") for of in drawn[case]] for case in chosen if case in drawn]
        found[name] = choices.compared_choices(ours, [chosen[case] for case in chosen if case in drawn])
    placed = {case: of.placement for case, of in real.items() if of.placement is not None and case in drawn}
    for at, name in enumerate(choices.PLACES):
        world = np.array([place[at] for place in placed.values()])
        ours = [[_bin(of.placement, at, world) for of in drawn[case]] for case in placed]
        found[name] = choices.compared_choices(ours, [_bin(place, at, world) for place in placed.values()])
    return {name: of for name, of in found.items() if of is not None}


def _bin(place: Sequence[float] | None, at: int, world: np.ndarray) -> str:
    return "none" if place is None else str(int(choices.binned(np.array(place[at]), world)))


def _category_frechet(answers: Answers, targets: Answers) -> dict[str, Bounded]:
    """T2I category -> Frechet distance of the answers under the first seed from their targets."""
    if not answers.features or not targets.features:
        return {}
    bench = BENCHES["t2i"]
    return {
        name: category_frechet(
            answers.features_of(bench, answers.rows[0].seed, name),
            targets.features_of(bench, targets.rows[0].seed, name),
        )
        for name in dict.fromkeys(row.category for row in answers.rows if row.bench == bench)
    }


def _distribution(answers: Answers, targets: Answers) -> tuple[Value | None, Value | None, Value | None]:
    """KID, precision and recall of the T2I answers under the first seed against their targets: equal numbers."""
    real, drawn = _paired_features(answers, targets)
    n = len(real)
    if n < 2:
        return None, None, None
    real, drawn = distances.standardised(real, real), distances.standardised(drawn, real)
    found = distances.kid(drawn, real) if MIN_KID_IMAGES <= n < MAX_KID_IMAGES else None
    precision, recall = distances.coverage(drawn, real), distances.coverage(real, drawn)
    return (
        None if found is None else Value(*found, n=n),
        None if precision is None else Value(precision, n=n),
        None if recall is None else Value(recall, n=n),
    )


def _paired_features(answers: Answers, targets: Answers) -> tuple[np.ndarray, np.ndarray]:
    """(n, D) of the targets and of their answers under the first seed, T2I, in the same order."""
    if not answers.features or not targets.features:
        return np.zeros((0, 0)), np.zeros((0, 0))
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


def _interval(values: Sequence[tuple[str, float | None]], num_bootstrap: int) -> Interval | None:
    table = _table(values)
    return None if table is None else bench_intervals({"all": table}, num_bootstrap)["mean"]
