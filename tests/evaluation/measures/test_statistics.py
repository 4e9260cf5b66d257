"""Intervals against known distributions, and the Frechet distance against its closed form."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.evaluation.measures.distances import frechet, gaussian_frechet, mean_pairwise_distance
from workbench.evaluation.measures.interval import Interval
from workbench.evaluation.measures.statistics import (
    NO_DIFFERENCE,
    TOO_FEW,
    bench_intervals,
    bootstrap_means,
    paired_differences,
    unpaired_difference,
    verdict,
)


def test_interval_covers_a_known_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    trials, covered = 300, 0
    for trial in range(trials):
        interval = bench_intervals({"a": rng.normal(3, 1, (60, 1))}, 400, trial)["mean"]
        assert interval.low is not None and interval.high is not None
        covered += interval.low <= 3 <= interval.high
    assert 0.90 <= covered / trials <= 0.98


def test_bootstrap_spread_is_that_of_the_mean() -> None:
    scores = np.random.default_rng(0).normal(0, 1, (400, 1))
    assert bootstrap_means(scores, 4000, np.random.default_rng(1)).std() == pytest.approx(
        scores.std() / np.sqrt(400), rel=0.05
    )


def test_the_variance_of_seeds_counts_once() -> None:
    # A bootstrap over n cases falls short by (n - 1) / n, as any does.
    generator, found = np.random.default_rng(5), []
    for _ in range(600):
        scores = 0.2 * generator.standard_normal((40, 1)) + generator.standard_normal((40, 3))
        found.append(bootstrap_means(scores, 200, generator).var())
    assert np.mean(found) == pytest.approx((0.2**2 + 1 / 3) * 39 / 40**2, rel=0.05)


def test_pairing_shows_a_difference_that_unpaired_intervals_hide() -> None:
    rng = np.random.default_rng(0)
    base = {"x": rng.normal(3, 1, (100, 1)), "y": rng.normal(2, 1, (100, 1))}
    better = {name: scores + 0.1 + rng.normal(0, 0.05, scores.shape) for name, scores in base.items()}
    a, b = bench_intervals(better)["mean"], bench_intervals(base)["mean"]
    assert a.low is not None and b.high is not None and a.low < b.high
    paired = paired_differences(better, base)["mean"]
    assert verdict(paired, "new", "old") == "new better"
    assert verdict(paired_differences(base, better)["mean"], "old", "new") == "new better"


def test_equal_models_show_no_difference_and_few_cases_nothing() -> None:
    scores = {"x": np.random.default_rng(0).normal(0, 1, (100, 1))}
    other = {"x": scores["x"] + np.random.default_rng(1).normal(0, 0.1, (100, 1))}
    assert verdict(paired_differences(scores, scores)["mean"], "a", "b") == NO_DIFFERENCE
    assert verdict(paired_differences(scores, other)["mean"], "a", "b") == NO_DIFFERENCE
    assert verdict(Interval(1.0, 0.5, 1.5, 2), "a", "b") == TOO_FEW
    assert bench_intervals({"x": np.ones((1, 1))})["mean"].low is None


def test_bench_mean_is_the_mean_of_category_means() -> None:
    found = bench_intervals({"x": np.ones((10, 1)), "y": np.full((30, 1), 3.0)})
    assert found["mean"].mean == 2 and found["mean"].n == 40


def test_frechet_of_commuting_gaussians_is_the_closed_form() -> None:
    m, s, t = np.array([1.0, -2.0, 0.5]), np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25])
    expected = (m**2).sum() + ((np.sqrt(s) - np.sqrt(t)) ** 2).sum()
    assert gaussian_frechet(m, np.diag(s), np.zeros(3), np.diag(t)) == pytest.approx(expected)


def test_frechet_is_invariant_under_rotation_and_zero_on_itself() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0, 1, (500, 4)), rng.normal(1, 2, (500, 4))
    q, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    assert frechet(a, b) == pytest.approx(frechet(a @ q, b @ q))
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a[:1], b) is None


def test_pairwise_distance_of_two_points() -> None:
    assert mean_pairwise_distance(np.array([[0.0, 0.0], [3.0, 4.0]])) == 5


def test_the_interval_of_a_difference_of_other_cases_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered, widths = 0, []
    for seed in range(300):
        a, b = generator.normal(0.5, 1, (60, 2)), generator.normal(0, 2, (40, 1))
        found = unpaired_difference(a, b, 400, seed)
        assert found.low is not None and found.high is not None and found.n == 100
        assert found.mean == pytest.approx(a.mean() - b.mean())
        covered += found.low < 0.5 < found.high
        widths.append(found.high - found.low)
    assert 0.9 < covered / 300 < 0.98
    # Both variances of a mean add up: 1 / 120 and 4 / 40.
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(1 / 120 + 4 / 40), rel=0.05)
    assert unpaired_difference(a[:1], b).low is None
