"""How far the means of arms lie apart, in standard errors of one of them: whether a world can tell recipes apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from workbench.evaluation.measures.statistics import CONFIDENCE


@dataclass(frozen=True)
class MeanSpread:
    """sd: of the arms' means. standard_error: of one mean over its seeds, pooled. ratio: sd / standard_error, with the
    interval for other arms drawn likewise; its square is the F of a one-way analysis of variance.

    reliability: share of the variance of the means that is the arms' own, not their seeds', without the bias of 1 / F
    (Efron & Morris, Journal of the American Statistical Association 68, 1973).
    """

    arms: int
    seeds: int
    sd: float
    standard_error: float
    ratio: float
    low: float
    high: float

    @property
    def reliability(self) -> float:
        shrunk = max(1, self.arms - 3) / (self.arms - 1)
        return max(0.0, 1 - shrunk / self.ratio**2) if self.ratio > 0 else 0.0


def mean_spread(runs: Sequence[Sequence[float]]) -> MeanSpread | None:
    """Of the score of every run, by arm, arms as if drawn at random from a space (Searle, Casella & McCulloch 1992,
    section 3.6). Arms have as many seeds as the arm with the fewest, the first ones; None for fewer than three arms,
    two seeds, or runs that do not differ at all."""
    seeds = min((len(of) for of in runs), default=0)
    if len(runs) < 3 or seeds < 2:
        return None
    scores = np.array([list(of[:seeds]) for of in runs], float)
    within = float(scores.var(axis=1, ddof=1).mean()) / seeds
    if not within > 0:
        return None
    between, tail = float(scores.mean(axis=1).var(ddof=1)), (1 - CONFIDENCE) / 2
    df, rest = len(runs) - 1, len(runs) * (seeds - 1)
    f = between / within
    low, high = (math.sqrt(f / scipy.special.fdtri(df, rest, p)) for p in (1 - tail, tail))
    return MeanSpread(len(runs), seeds, math.sqrt(between), math.sqrt(within), math.sqrt(f), low, high)
