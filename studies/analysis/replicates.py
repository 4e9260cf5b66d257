"""How far runs of one recipe differ, and the difference that a number of seeds can show by it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from workbench.evaluation.measures.statistics import CONFIDENCE

POWER = 0.8
NUM_QUANTILES = 2000


@dataclass(frozen=True)
class Spread:
    """Standard deviation between runs that differ in the seed alone, from `df` degrees of freedom."""

    sd: float
    df: int

    def interval(self) -> tuple[float, float]:
        """Bounds of the standard deviation of normal runs, by the chi-square distribution."""
        tail = (1 - CONFIDENCE) / 2
        low, high = (math.sqrt(self.df / chi_square(p, self.df)) * self.sd for p in (1 - tail, tail))
        return float(low), float(high)


def chi_square(p: float | np.ndarray, df: float) -> Any:
    """Quantile p of the chi-square distribution; scipy.stats, which has it too, takes half a second to import."""
    return 2 * scipy.special.gammaincinv(df / 2, p)


def spread_of(groups: Iterable[Sequence[float]]) -> Spread | None:
    """Pooled over groups (arms) of runs; None if no group has two."""
    several = [np.asarray(group, dtype=float) for group in groups if len(group) > 1]
    if not several:
        return None
    df = sum(len(group) - 1 for group in several)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in several)
    return Spread(math.sqrt(squares / df), df)


def minimal_difference(spread: Spread, num_a: int, num_b: int, df: int) -> float:
    """Smallest true difference that a two-sided t-test at 5 % over so many runs finds in 80 % of studies.

    df: degrees of freedom of the test's own estimate of the spread. Infinite for none.
    """
    if df < 1:
        return math.inf
    critical = scipy.special.stdtrit(df, (1 + CONFIDENCE) / 2)
    # Power of the noncentral t as a mean over what the estimated spread may be: scipy's own is NaN far out.
    estimated = np.sqrt(chi_square((np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES, df) / df)

    def lacking(noncentrality: float) -> float:
        above = scipy.special.ndtr(noncentrality - critical * estimated)
        return float(np.mean(above + scipy.special.ndtr(-noncentrality - critical * estimated))) - POWER

    noncentrality = scipy.optimize.brentq(lacking, 0.1, 4 * critical + 4)
    return float(noncentrality) * spread.sd * math.sqrt(1 / num_a + 1 / num_b)
