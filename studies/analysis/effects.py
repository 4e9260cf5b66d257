"""Main effects of a screening: what each factor does to an objective, and which of them matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from studies.analysis import power
from studies.analysis.comparisons import Measured, Row
from studies.analysis.crossed import Contrast, Variance, two_sided
from studies.analysis.decisions import is_equivalent
from studies.analysis.families import holm_levels
from studies.analysis.power import CONFIDENCE
from studies.analysis.screening import design, effects_of_single_runs, main_effects


def missing_runs(measured: Measured | None, factors: Sequence[Mapping[str, Any]]) -> int:
    """Runs of the design that have no score yet."""
    return len(design(len(factors))) - (len(measured.arms) if measured is not None else 0)


def effect_rows(measured: Measured | None, factors: Sequence[Mapping[str, Any]], margin: float) -> list[Row]:
    """The main effect of every factor, largest first; none before every run of the design has a score.

    Verdicts are Holm's over the factors; the intervals are 95 % each. With two seeds of every run they are over fresh
    runs and cases; with one the runs' noise is Lenth's, and the cases are these.
    """
    if measured is None or missing_runs(measured, factors):
        return []
    order = np.argsort([arm.name for arm in measured.arms])
    seeds = int(measured.found.seeds.min())
    if seeds > 1:
        coefficients = np.zeros((len(factors), len(order)))
        coefficients[:, order] = main_effects(len(factors))
        found = [measured.found.contrast(row) for row in coefficients]
    else:
        found = effects_of_single_runs(len(factors), measured.found.means[order])
    p = [effect.p() for effect in found]
    rows = []
    for factor, effect, value, level in zip(factors, found, p, holm_levels(p), strict=True):
        low, high = effect.interval(two_sided(CONFIDENCE))
        kind = "matters" if value <= level else "equivalent" if is_equivalent(effect, margin) else "undecided"
        rows.append(
            {
                "name": factor["name"],
                "arm": factor["name"],
                "low_level": factor["low"],
                "high_level": factor["high"],
                "objective": measured.objective,
                "difference": effect.value,
                "low": low,
                "high": high,
                "p": value,
                "kind": kind,
                "seeds": seeds,
                "takes": _takes(effect, seeds, margin, len(factors)) if kind == "undecided" else "",
            }
        )
    return sorted(rows, key=lambda row: -abs(row["difference"]))


def _takes(effect: Contrast, seeds: int, margin: float, num_factors: int) -> str:
    """How many seeds a run would decide about `margin` in four studies of five."""
    confidence = 1 - (1 - CONFIDENCE) / num_factors
    for num in range(seeds + 1, power.MAX_SEEDS + 1):
        scaled = Variance(effect.runs.value * seeds / num, effect.runs.df)
        planned = replace(effect, runs=scaled)
        if max(power.detectable(planned, confidence), power.provable(planned)) <= margin:
            return f"{num} seeds a run"
    return f"more than {power.MAX_SEEDS} seeds a run, or more cases"
