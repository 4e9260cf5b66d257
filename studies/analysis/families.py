"""Families of comparisons: one chance in twenty that any of them is called a difference though there is none.

Against the first arm (Dunnett) and among all arms (Tukey) are one rule: the largest |t| of the family is compared with
its own distribution, a multivariate t with the contrasts' correlations (Hothorn, Bretz and Westfall, Biometrical
Journal 50, 2008); degrees of freedom may differ between contrasts (Hasler and Hothorn, Biometrical Journal 50, 2008).
Where no such structure is known, over categories of a benchmark, Holm's procedure holds for any dependence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import scipy

from studies.analysis.crossed import Contrast, Quantile

NUM_DRAWS = 20_000
"""Draws of the largest |t|: a level of .05 is then right to .0015."""
LEVEL = 0.05


def against_first(num_arms: int) -> np.ndarray:
    """(A - 1, A) contrasts of every arm with the first."""
    return np.eye(num_arms)[1:] - np.eye(num_arms)[0]


def all_pairs(num_arms: int) -> np.ndarray:
    """(A (A - 1) / 2, A) contrasts of every arm with every earlier one."""
    later, earlier = np.tril_indices(num_arms, -1)
    return np.eye(num_arms)[later] - np.eye(num_arms)[earlier]


class LargestT:
    """Distribution of the largest |t| among contrasts with `correlation` (C, C)."""

    def __init__(self, correlation: np.ndarray, num_draws: int = NUM_DRAWS) -> None:
        values, vectors = np.linalg.eigh(correlation)
        root = vectors * np.sqrt(np.clip(values, 0, None))
        generator = np.random.default_rng(0)
        self._normal = np.abs(generator.standard_normal((num_draws, len(root))) @ root.T).max(axis=1)
        self._uniform = (generator.permutation(num_draws) + 0.5) / num_draws
        self._sorted: dict[float, np.ndarray] = {}

    def draws(self, df: float) -> np.ndarray:
        """Sorted draws of it, for variances estimated with `df` degrees of freedom."""
        if df not in self._sorted:
            scale = np.sqrt(2 * scipy.special.gammaincinv(df / 2, self._uniform) / df) if math.isfinite(df) else 1.0
            self._sorted[df] = np.sort(self._normal / scale)
        return self._sorted[df]

    def quantile(self, confidence: float) -> Quantile:
        """For simultaneous intervals of all contrasts."""
        return lambda df: float(np.quantile(self.draws(df), confidence))

    def p(self, contrast: Contrast) -> float:
        """p-value adjusted for the family: one less the confidence at which its simultaneous interval ends at 0."""
        if not contrast.known or contrast.value == 0:
            return 1.0
        parts = [part for part in (contrast.runs, contrast.cases) if part.value > 0]
        squares = sum((part.value * self.draws(part.df) ** 2 for part in parts), np.zeros(len(self._normal)))
        return float(np.mean(squares >= contrast.value**2))


def holm_levels(p: Sequence[float], level: float = LEVEL) -> np.ndarray:
    """Level at which Holm's procedure (Scandinavian Journal of Statistics 6, 1979) tests each of m hypotheses: that of
    the smallest p at level / m, the next at level / (m - 1) and so on until one is kept, all others at that one's
    level. A hypothesis is rejected where its p is at most its level."""
    order = np.argsort(p, kind="stable")
    levels = level / (len(p) - np.arange(len(p)))
    kept = np.flatnonzero(np.asarray(p)[order] > levels)
    if len(kept):
        levels[kept[0] :] = levels[kept[0]]
    found = np.empty(len(p))
    found[order] = levels
    return found


def pools_of(groups: Sequence[np.ndarray], level: float = LEVEL) -> list[int]:
    """Pool of each arm (runs,): all arms vary alike, but one whose variance an F test finds above that of the others
    together, as of an arm that collapses under some seeds, is a pool of its own; Holm's procedure over the arms."""
    squares = np.array([float(((runs - np.mean(runs)) ** 2).sum()) for runs in groups])
    dfs = np.array([len(runs) - 1 for runs in groups])
    rest, rest_df = squares.sum() - squares, dfs.sum() - dfs
    tested = np.flatnonzero((dfs > 0) & (rest_df > 0) & (rest > 0))
    ratios = squares[tested] * rest_df[tested] / (rest[tested] * dfs[tested])
    p = scipy.special.fdtrc(dfs[tested], rest_df[tested], ratios)
    apart = tested[p <= holm_levels(p, level)]
    pools = np.zeros(len(groups), int)
    pools[apart] = 1 + np.arange(len(apart)) if len(apart) < len(groups) else np.arange(len(groups))
    return pools.tolist()
