"""Intervals and verdicts: percentile bootstrap over cases, each redrawn together with all its seeds.

A score array is (cases, seeds): the noise of a seed differs from case to case, so seeds are nested in cases. The case
means hold the seeds' variance already; redrawing seeds as well would count it twice.
A benchmark's mean is the mean of its category means; its bootstrap resamples within each category. Parts of a category
have intervals of their own, and no mean holds them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from workbench.evaluation.measures.interval import Interval

CONFIDENCE = 0.95
MIN_CASES = 5
"""With fewer cases an interval means next to nothing, and no verdict is given."""
NO_DIFFERENCE = "no difference shown"
TOO_FEW = "too few cases"


def bootstrap_means(scores: np.ndarray, num_resamples: int, generator: np.random.Generator) -> np.ndarray:
    """(num_resamples,) means of `scores` (cases, seeds) with cases redrawn, each with its own seeds."""
    num_cases, num_seeds = scores.shape
    means = np.empty(num_resamples)
    block = max(1, 2_000_000 // (num_cases * num_seeds))
    for start in range(0, num_resamples, block):
        count = min(block, num_resamples - start)
        cases = generator.integers(num_cases, size=(count, num_cases, 1))
        means[start : start + count] = scores[cases, np.arange(num_seeds)].mean(axis=(1, 2))
    return means


def _interval(mean: float, means: np.ndarray, n: int, smallest: int) -> Interval:
    if smallest < 2:
        return Interval(mean, None, None, n)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(mean, float(low), float(high), n)


def bench_intervals(
    by_category: Mapping[str, np.ndarray], num_resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Interval of every category (cases, seeds), and of `mean`, the mean of the category means."""
    generator = np.random.default_rng(seed)
    intervals: dict[str, Interval] = {}
    replicates, points = [], []
    for category, scores in by_category.items():
        means = bootstrap_means(scores, num_resamples, generator)
        intervals[category] = _interval(float(scores.mean()), means, len(scores), len(scores))
        replicates.append(means)
        points.append(scores.mean())
    if points:
        total = sum(len(scores) for scores in by_category.values())
        smallest = min(len(scores) for scores in by_category.values())
        intervals["mean"] = _interval(float(np.mean(points)), np.mean(replicates, axis=0), total, smallest)
    return intervals


def part_intervals(
    by_difficulty: Mapping[str, Mapping[str, np.ndarray]], num_resamples: int = 1000, seed: int = 0
) -> dict[str, dict[str, Interval]]:
    """Category -> difficulty -> interval of the scores (cases, seeds) of that part alone."""
    found = {name: bench_intervals(parts, num_resamples, seed) for name, parts in by_difficulty.items()}
    return {name: {part: of[part] for part in by_difficulty[name]} for name, of in found.items()}


def paired_differences(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], num_resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of a - b, case by case and seed by seed, per category and `mean`."""
    return bench_intervals({name: a[name] - b[name] for name in a}, num_resamples, seed)


def unpaired_difference(a: np.ndarray, b: np.ndarray, num_resamples: int = 1000, seed: int = 0) -> Interval:
    """Interval of mean(a) - mean(b) of scores (cases, seeds) whose cases differ; n counts those of both."""
    generator = np.random.default_rng(seed)
    means = bootstrap_means(a, num_resamples, generator) - bootstrap_means(b, num_resamples, generator)
    return _interval(float(a.mean() - b.mean()), means, len(a) + len(b), min(len(a), len(b)))


def verdict(difference: Interval, a: str, b: str) -> str:
    """What a difference a - b shows: who is better, or that nothing is shown since the interval covers 0."""
    if difference.n < MIN_CASES or difference.low is None or difference.high is None:
        return TOO_FEW
    if difference.low > 0:
        return f"{a} better"
    if difference.high < 0:
        return f"{b} better"
    return NO_DIFFERENCE
