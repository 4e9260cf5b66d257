"""Arms of one study against its first: differences with intervals, and verdicts that hold for the whole family.

Runs of all arms are scored on the same cases from the same noise, so differences are paired over cases. What runs of
one recipe differ by is taken from this study alone: another one has other recipes, another length, other cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from studies.analysis import arms, power
from studies.analysis.arms import Arm
from studies.analysis.crossed import Components, Contrast, Quantile, Table, components, of_runs, run_scores, two_sided
from studies.analysis.decisions import Decision, decide, is_equivalent
from studies.analysis.families import LargestT, against_first, all_pairs, holm_levels, pools_of
from studies.analysis.power import CONFIDENCE
from workbench.evaluation.measures.interval import Interval

Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """An objective of the arms that have it, the reference arm first. tables: of each arm, none where the cases are not
    known."""

    objective: str
    reference: str | None
    arms: Sequence[Arm]
    found: Components
    tables: Sequence[Table]

    @property
    def compares(self) -> bool:
        """Whether the reference arm has finished, and another one to compare with it."""
        return self.arms[0].name == self.reference and len(self.arms) > 1

    @property
    def num_cases(self) -> int | None:
        """Cases that all runs share."""
        return sum(scores.shape[1] for scores in self.tables[0].values()) if self.tables else None

    def interval(self, arm: Arm) -> Interval | None:
        """The arm's mean over seeds, for fresh runs and, where cases are known, fresh cases; n counts runs. None for an
        arm without any."""
        place = next((i for i, other in enumerate(self.arms) if other is arm), None)
        if place is None:
            return None
        mean = self.found.contrast(np.eye(len(self.arms))[place])
        low, high = mean.interval(two_sided(CONFIDENCE)) if mean.known else (None, None)
        return Interval(mean.value, low, high, int(self.found.seeds[place]))


def measure(found: Sequence[Arm], objective: str, reference: str | None) -> Measured | None:
    """The objective of all arms with a finished run; None where no arm has any."""
    finished = sorted((arm for arm in found if arm.values(objective)), key=lambda arm: arm.name != reference)
    if not finished:
        return None
    tables = [table for table in arms.tables(finished, objective) if _has_cases(table)]
    if len(tables) < len(finished):
        runs = [np.array(arm.values(objective)) for arm in finished]
        return Measured(objective, reference, finished, of_runs(runs, pools_of(runs)), [])
    pools = pools_of([run_scores(table) for table in tables])
    return Measured(objective, reference, finished, components(tables, pools), tables)


def _has_cases(table: Table) -> bool:
    """Whether every category has the two cases that a variance takes."""
    return bool(table) and all(scores.shape[1] > 1 for scores in table.values())


def against_reference(measured: Measured | None, margin: float) -> list[Row]:
    """Every arm less the reference arm, adjusted for as many comparisons (Dunnett's test, with Welch's variances where
    an arm is noisier than the others); none without the reference's own runs.

    margin: a difference below it does not matter.
    """
    if measured is None or not measured.compares:
        return []
    contrasts = against_first(len(measured.arms))
    differences = [measured.found.contrast(row) for row in contrasts]
    quantile, p = _family(measured.found, contrasts, differences)
    rows = []
    for place, (arm, difference) in enumerate(zip(measured.arms[1:], differences, strict=True), start=1):
        decision = decide(difference, quantile, margin)
        rows.append(
            {
                "arm": arm.name,
                "reference": measured.reference,
                "objective": measured.objective,
                "num_cases": measured.num_cases,
                "seeds": [int(measured.found.seeds[place]), int(measured.found.seeds[0])],
                "difference": difference.value,
                "low": decision.low,
                "high": decision.high,
                "p": p[place - 1],
                "kind": decision.kind,
                "verdict": _verdict(decision, difference, arm.name, measured.arms[0].name),
                "takes": _takes(measured, difference, place, margin) if decision.kind == "undecided" else "",
            }
        )
    return rows


def among_all(measured: Measured | None) -> list[Row]:
    """Every arm less every other one, adjusted for all pairs (Tukey's test): a row an arm, its `cells` by the other's
    name; none for fewer than three arms, which the comparison with the first one covers, or where nothing is known of
    other seeds."""
    if measured is None or len(measured.arms) < 3:
        return []
    names, contrasts = [arm.name for arm in measured.arms], all_pairs(len(measured.arms))
    differences = [measured.found.contrast(row) for row in contrasts]
    if not all(difference.known for difference in differences):
        return []
    quantile = LargestT(measured.found.correlation(contrasts)).quantile(CONFIDENCE)
    cells: dict[str, dict[str, Row]] = {name: {} for name in names}
    for row, difference in zip(contrasts, differences, strict=True):
        a, b = names[int(row.argmax())], names[int(row.argmin())]
        low, high = difference.interval(quantile)
        for one, other, sign in ((a, b, 1), (b, a, -1)):
            value = sign * difference.value
            shown = "" if low <= 0 <= high else "better" if value > 0 else "worse"
            bounds = sorted((sign * low, sign * high))
            cells[one][other] = {"difference": value, "low": bounds[0], "high": bounds[1], "shown": shown}
    return [{"name": name, "cells": of} for name, of in cells.items()]


def _family(found: Components, contrasts: np.ndarray, differences: Sequence[Contrast]) -> tuple[Quantile, list[float]]:
    """What intervals reach to, and the adjusted p-values."""
    if len(differences) == 1 or not all(difference.known for difference in differences):
        return two_sided(CONFIDENCE), [difference.p() for difference in differences]
    largest = LargestT(found.correlation(contrasts))
    return largest.quantile(CONFIDENCE), [largest.p(difference) for difference in differences]


def _verdict(decision: Decision, difference: Contrast, arm: str, reference: str) -> str:
    match decision.kind:
        case "better":
            within = ", by less than the margin" if decision.small else ""
            return f"{arm if difference.value > 0 else reference} better{within}"
        case "one seed":
            return arms.ONE_SEED
        case kind:
            return kind


def _takes(measured: Measured, difference: Contrast, place: int, margin: float) -> str:
    """How many seeds, or how many times the cases, would decide about `margin` in four studies of five."""
    found = measured.found
    pool, seeds = found.pools[place], int(min(found.seeds[place], found.seeds[0]))
    noise = power.noise_of(found.runs[pool], found.residual[pool], difference, len(measured.arms))
    # Bonferroni's level is close to Dunnett's, and above what it takes.
    confidence = 1 - (1 - CONFIDENCE) / (len(measured.arms) - 1)
    num_seeds = power.seeds_needed(noise, margin, confidence=confidence)
    factor = power.cases_needed(noise, margin, seeds, confidence=confidence) if measured.tables and seeds > 1 else None
    ways = [f"{max(num_seeds, seeds + 1)} seeds an arm"] if num_seeds is not None else []
    ways += [f"{factor:.1f} times the cases"] if factor is not None and factor > 1 else []
    return " or ".join(ways) or f"more than {power.MAX_SEEDS} seeds an arm"


def by_category(measured: Measured | None, margin: float) -> Mapping[tuple[str, tuple[str, str]], str]:
    """(arm, (bench, category)) -> "better" or "worse" than the reference arm there, where Holm's procedure shows it
    (one chance in twenty of any false one among all arms and categories); otherwise "equivalent" within the margin, or
    "undecided"."""
    if measured is None or not measured.compares or not measured.tables:
        return {}
    names, tested = [], []
    for key in sorted(measured.tables[0], key=lambda key: key[0] != "t2i_bench"):
        of_category = components([{key: table[key]} for table in measured.tables], measured.found.pools.tolist())
        for arm, row in zip(measured.arms[1:], against_first(len(measured.arms)), strict=True):
            names.append((arm.name, key))
            tested.append(of_category.contrast(row))
    p = [difference.p() for difference in tested]
    return {
        name: _of_category(difference, value <= level, margin)
        for name, difference, value, level in zip(names, tested, p, holm_levels(p), strict=True)
    }


def _of_category(difference: Contrast, shown: bool, margin: float) -> str:
    if not difference.known:
        return ""
    if shown:
        return "better" if difference.value > 0 else "worse"
    return "equivalent" if is_equivalent(difference, margin) else "undecided"
