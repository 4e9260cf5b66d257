"""What a study predicted before it was run, against what it measured.

An arm is noisier than the reference if its runs wander more from milestone to milestone: the variance of their scores
about a straight line, over the later milestones, by the F distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy

from studies.analysis.arms import Arm
from studies.analysis.collapse import Milestones, milestones_of
from studies.analysis.crossed import Variance, run_scores
from workbench.evaluation.measures.statistics import CONFIDENCE

NOISIER = "noisier"
SETTLED = 1 / 3
"""Share of the milestones that is left out: a student that still learns fast follows no straight line."""
MOST_ALIKE = 0.95
"""Correlation of neighbouring milestones, at most: so few know nothing of a higher one."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Ratio:
    """Of two variances, with its interval."""

    value: float
    low: float
    high: float


def wandering(scores: np.ndarray) -> Variance:
    """Variance of scores (milestones, runs) about each run's own straight line; NaN for fewer than three milestones.

    An average over updates makes neighbouring milestones alike: with a correlation r from one to the next, n of them
    know a variance as well as n (1 - r^2) / (1 + r^2) apart do (Bayley & Hammersley, JRSS Supplement 8, 1946). Taken
    about a fitted line r comes out too small, by some (1 + 3 r) / n (Marriott & Pope, Biometrika 41, 1954). So an
    interval of a ratio holds what it should in 93 to 95 % of simulated pairs, where it did in 81 % (r = .7, n = 27).
    """
    num, runs = scores.shape
    if num < 3:
        return Variance(math.nan, math.nan)
    line = np.vander(np.arange(num), 2)
    rest = scores - line @ np.linalg.lstsq(line, scores, rcond=None)[0]
    squares, df = float((rest**2).sum()), runs * (num - 2)
    found = float((rest[1:] * rest[:-1]).sum()) / squares if squares else 0.0
    r = min(max(0.0, found + (1 + 3 * found) / num), MOST_ALIKE)
    return Variance(squares / df, df * (1 - r**2) / (1 + r**2))


def variance_ratio(ours: Variance, theirs: Variance) -> Ratio | None:
    """Of independent estimates, by the F distribution; None where one is unknown or 0."""
    if not (ours.value > 0 and theirs.value > 0):
        return None
    value, tail = ours.value / theirs.value, (1 - CONFIDENCE) / 2
    low = value / scipy.special.fdtri(ours.df, theirs.df, 1 - tail)
    return Ratio(value, float(low), float(value / scipy.special.fdtri(ours.df, theirs.df, tail)))


def settled_scores(milestones: Milestones) -> np.ndarray:
    """(milestones, runs) scores at the later milestones."""
    updates = sorted(milestones)
    later = updates[math.ceil(SETTLED * len(updates)) :]
    return np.array([run_scores(milestones[update]) for update in later]) if later else np.zeros((0, 0))


def expectation_rows(
    folder: Path, found: Sequence[Arm], expects: Mapping[str, str], reference: str | None, compared: Sequence[Row]
) -> list[Row]:
    """Per prediction: arm, expected, observed (a difference or a ratio), low, high, and whether it is `as expected`,
    the `opposite`, or `undecided`; the last where the interval holds both, or nothing is known yet.

    compared: differences from the reference, of all objectives.
    """
    by_name = {arm.name: arm for arm in found}
    rows = []
    for arm, expected in expects.items():
        if expected == NOISIER:
            ratio = _noise_ratio(folder, by_name, arm, reference)
            interval, even, sign = (ratio.value, ratio.low, ratio.high) if ratio else None, 1.0, 1
        else:
            objective, _, direction = expected.partition(" ")
            row = next((row for row in compared if (row["arm"], row["objective"]) == (arm, objective)), None)
            known = row is not None and row["low"] is not None
            interval = (row["difference"], row["low"], row["high"]) if row is not None and known else None
            even, sign = 0.0, 1 if direction == "better" else -1
        value, low, high = interval or (None, None, None)
        rows.append(
            {"arm": arm, "expected": expected, "observed": value, "low": low, "high": high,
             "is_ratio": expected == NOISIER, "outcome": _outcome(low, high, even, sign)}
        )  # fmt: skip
    return rows


def _noise_ratio(folder: Path, by_name: Mapping[str, Arm], arm: str, reference: str | None) -> Ratio | None:
    if arm not in by_name or reference not in by_name:
        return None
    ours, theirs = (settled_scores(milestones_of(folder, by_name[name])) for name in (arm, str(reference)))
    return variance_ratio(wandering(ours), wandering(theirs))


def _outcome(low: float | None, high: float | None, even: float, sign: int) -> str:
    if low is None or high is None or low <= even <= high:
        return "undecided"
    return "as expected" if (low > even) == (sign > 0) else "opposite"
