"""Intervals over seeds and cases, and what a number of seeds can show.

A run's score has two sources of chance: the run (its seed) and the cases it is scored on. Cases are redrawn by
bootstrap, within each category. Seeds are not: a percentile bootstrap over two or three of them covers far too little
(with two, half of its draws hold one run twice). Their part is Student's t with the standard error of the mean over
seeds, which is exact for normal runs; both parts are added, draw by draw.

Runs of all arms are scored on the same cases from the same noise, so differences are paired over cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from workbench.evaluation.measures.statistics import CONFIDENCE, Interval

POWER = 0.8
NUM_RESAMPLES = 2000
MAX_SEEDS = 64

Table = Mapping[tuple[str, str], np.ndarray]
"""(bench, category) -> scores (runs, cases)."""


@dataclass(frozen=True)
class Spread:
    """Standard deviation between runs that differ in the seed alone, from `df` degrees of freedom."""

    sd: float
    df: int

    def interval(self) -> tuple[float, float]:
        """Bounds of the standard deviation of normal runs, by the chi-square distribution."""
        tail = (1 - CONFIDENCE) / 2
        low, high = (math.sqrt(self.df / stats.chi2.ppf(p, self.df)) * self.sd for p in (1 - tail, tail))
        return float(low), float(high)


def spread_of(groups: Iterable[Sequence[float]]) -> Spread | None:
    """Pooled over groups (arms) of runs; None if no group has two."""
    several = [np.asarray(group, dtype=float) for group in groups if len(group) > 1]
    if not several:
        return None
    df = sum(len(group) - 1 for group in several)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in several)
    return Spread(math.sqrt(squares / df), df)


def pooled(*spreads: Spread | None) -> Spread | None:
    """Several spreads as one, each by its degrees of freedom."""
    known = [spread for spread in spreads if spread is not None]
    df = sum(spread.df for spread in known)
    return Spread(math.sqrt(sum(spread.df * spread.sd**2 for spread in known) / df), df) if df else None


def run_scores(table: Table) -> np.ndarray:
    """(runs,) score of each run: mean over benches of the mean over their categories."""
    return np.sum([weight * table[key].mean(axis=1) for key, weight in _weights(table).items()], axis=0)


def mean_interval(table: Table, spread: Spread | None, num_resamples: int = NUM_RESAMPLES, seed: int = 0) -> Interval:
    """Interval of the score that a fresh run has on fresh cases, from the runs of one arm. n counts runs.

    spread: between seeds; without it nothing is known of other seeds, and there is no interval.
    """
    runs = run_scores(table)
    cases = {key: scores.mean(axis=0) for key, scores in table.items()}
    return _interval(float(runs.mean()), cases, spread, 1 / len(runs), len(runs), num_resamples, seed)


def difference_interval(
    a: Table, b: Table, spread: Spread | None, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> Interval:
    """Interval of a - b over seeds, and over the cases, which both arms share in the same order. n counts runs of the
    smaller arm."""
    num_a, num_b = len(run_scores(a)), len(run_scores(b))
    cases = {key: a[key].mean(axis=0) - b[key].mean(axis=0) for key in a}
    mean = float(run_scores(a).mean() - run_scores(b).mean())
    return _interval(mean, cases, spread, 1 / num_a + 1 / num_b, min(num_a, num_b), num_resamples, seed)


def seeds_alone(runs: Sequence[float], spread: Spread | None) -> Interval:
    """Student's interval of a mean over runs, for numbers that no case has a share in."""
    return _student(float(np.mean(runs)), spread, 1 / len(runs), len(runs))


def difference_alone(a: Sequence[float], b: Sequence[float], spread: Spread | None) -> Interval:
    """Student's interval of the difference of two means over runs, likewise."""
    return _student(float(np.mean(a) - np.mean(b)), spread, 1 / len(a) + 1 / len(b), min(len(a), len(b)))


def minimal_difference(spread: Spread, num_a: int, num_b: int, df: int) -> float:
    """Smallest true difference that a two-sided t-test at 5 % over so many runs finds in 80 % of studies.

    df: degrees of freedom of the test's own estimate of the spread. Infinite for none.
    """
    if df < 1:
        return math.inf
    critical = stats.t.ppf((1 + CONFIDENCE) / 2, df)
    # Power of the noncentral t as a mean over what the estimated spread may be: scipy's own is NaN far out.
    estimated = np.sqrt(stats.chi2.ppf((np.arange(NUM_RESAMPLES) + 0.5) / NUM_RESAMPLES, df) / df)

    def lacking(noncentrality: float) -> float:
        above = stats.norm.cdf(noncentrality - critical * estimated)
        return float(np.mean(above + stats.norm.cdf(-noncentrality - critical * estimated))) - POWER

    noncentrality = optimize.brentq(lacking, 0.1, 4 * critical + 4)
    return float(noncentrality) * spread.sd * math.sqrt(1 / num_a + 1 / num_b)


def seeds_needed(spread: Spread, difference: float) -> int | None:
    """Fewest seeds an arm, each arm judged by its own 2 n - 2 degrees of freedom, that show `difference`; None beyond
    MAX_SEEDS."""
    for num in range(2, MAX_SEEDS + 1):
        if minimal_difference(spread, num, num, 2 * num - 2) <= abs(difference):
            return num
    return None


def case_share(table: Table) -> float:
    """Share of the variance between runs that more cases would average away, in [0, 1]: that of the interaction of run
    and case (two-way analysis of variance without replication), over the variance of the runs' scores."""
    between = float(run_scores(table).var(ddof=1))
    interaction = 0.0
    for key, weight in _weights(table).items():
        scores = table[key]
        num_runs, num_cases = scores.shape
        if num_cases > 1:
            rest = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
            interaction += weight**2 * float((rest**2).sum()) / ((num_runs - 1) * (num_cases - 1)) / num_cases
    return min(1.0, interaction / between) if between else 0.0


def _weights(table: Table) -> dict[tuple[str, str], float]:
    """Every bench counts alike, and every category within its bench."""
    benches = [bench for bench, _ in table]
    return {(bench, name): 1 / len({*benches}) / benches.count(bench) for bench, name in table}


def _interval(
    mean: float,
    cases: Mapping[tuple[str, str], np.ndarray],
    spread: Spread | None,
    share: float,
    n: int,
    num_resamples: int,
    seed: int,
) -> Interval:
    """Of `mean`, whose variance over seeds is `share` times that of a run and over cases that of their means."""
    if spread is None:
        return Interval(mean, None, None, n)
    generator = np.random.default_rng(seed)
    # Evenly spaced quantiles in random order: at one degree of freedom free draws would leave the bounds to chance.
    quantiles = (generator.permutation(num_resamples) + 0.5) / num_resamples
    draws = mean + math.sqrt(share) * spread.sd * stats.t.ppf(quantiles, spread.df)
    for key, weight in _weights(cases).items():
        values = cases[key]
        redrawn = values[generator.integers(len(values), size=(num_resamples, len(values)))].mean(axis=1)
        draws += weight * (redrawn - values.mean())
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), n)


def _student(mean: float, spread: Spread | None, share: float, n: int) -> Interval:
    if spread is None:
        return Interval(mean, None, None, n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, spread.df)) * spread.sd * math.sqrt(share)
    return Interval(mean, mean - half, mean + half, n)
