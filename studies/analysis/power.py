"""What a number of seeds and cases can show, and how many a decision takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import scipy

from studies.analysis.crossed import Contrast, Variance, one_sided, two_sided

POWER = 0.8
CONFIDENCE = 0.95
MAX_SEEDS = 64
MAX_CASES = 64
"""Times as many cases as there are."""


@dataclass(frozen=True)
class Noise:
    """What makes two arms' means differ by chance: variances of the seed, of the interaction of arm and case in a
    difference of two arms, and of the residual of run and case; the last two with the `num_cases` cases there are."""

    seed: float
    interaction: float
    residual: float
    interaction_df: float
    num_arms: int

    def difference(self, seeds: int, cases: float = 1.0) -> Contrast:
        """Difference of two arms of `seeds` each on `cases` times as many cases, with the variances it would have."""
        runs = 2 / seeds * (self.seed + self.residual / cases)
        df = self.num_arms * (seeds - 1)
        known = Variance(runs, df) if df else Variance(math.nan, math.nan)
        return Contrast(0.0, known, Variance(self.interaction / cases, self.interaction_df * cases))


def noise_of(runs: Variance, residual: Variance, difference: Contrast, num_arms: int) -> Noise:
    """Estimated from a study: S2 and R of its arms and one difference between two of them."""
    seed = max(0.0, runs.value - residual.value)
    return Noise(seed, difference.cases.value, min(residual.value, runs.value), difference.cases.df, num_arms)


def detectable(planned: Contrast, confidence: float = CONFIDENCE) -> float:
    """Smallest true difference that is found in 80 % of studies: (t_.975 + t_.8) sqrt(V), each term a half-width.

    Infinite where nothing would be known of other seeds."""
    if not planned.known:
        return math.inf
    return planned.half_width(two_sided(confidence)) + planned.half_width(one_sided(POWER))


def provable(planned: Contrast) -> float:
    """Smallest margin within which two equal arms are shown equivalent in 80 % of studies: (t_.95 + t_.9) sqrt(V), by
    two one-sided tests at 5 % (Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15, 1987)."""
    if not planned.known:
        return math.inf
    return planned.half_width(one_sided(CONFIDENCE)) + planned.half_width(one_sided((1 + POWER) / 2))


def decides(noise: Noise, margin: float, seeds: int, cases: float = 1.0, confidence: float = CONFIDENCE) -> bool:
    """Whether so much would show a difference of `margin`, and show that equal arms differ by less, in 80 % each.

    confidence: of the interval that shows a difference, as a family of comparisons asks for it."""
    planned = noise.difference(seeds, cases)
    return max(detectable(planned, confidence), provable(planned)) <= margin


def seeds_needed(noise: Noise, margin: float, cases: float = 1.0, confidence: float = CONFIDENCE) -> int | None:
    """Fewest seeds an arm that decide; None beyond MAX_SEEDS."""
    numbers = range(2, MAX_SEEDS + 1)
    return next((seeds for seeds in numbers if decides(noise, margin, seeds, cases, confidence)), None)


def cases_needed(noise: Noise, margin: float, seeds: int, confidence: float = CONFIDENCE) -> float | None:
    """How many times as many cases decide with `seeds` an arm; None beyond MAX_CASES."""
    if not decides(noise, margin, seeds, MAX_CASES, confidence):
        return None
    low, high = 0.0, float(MAX_CASES)
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if decides(noise, margin, seeds, middle, confidence) else (middle, high)
    return high


def case_share(runs: Variance, residual: Variance, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Bounds of the share R / S2 of the variance between runs that more cases would average away, by the F
    distribution of the estimates' ratio; the share itself lies between 0 and 1."""
    tail = (1 - confidence) / 2
    if not runs.df > 0 or runs.value == 0:
        return 0.0, 1.0
    estimate = residual.value / runs.value
    low, high = (estimate * float(scipy.special.fdtri(runs.df, residual.df, p)) for p in (tail, 1 - tail))
    return min(1.0, low), min(1.0, high)
