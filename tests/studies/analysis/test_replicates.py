"""Intervals over seeds and cases against closed forms, and against how often they cover in simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from studies.analysis.replicates import (
    Spread,
    case_share,
    difference_alone,
    difference_interval,
    mean_interval,
    minimal_difference,
    pooled,
    run_scores,
    seeds_alone,
    seeds_needed,
    spread_of,
)

T2I, EDIT = ("t2i_bench", "text"), ("editing_bench", "style")


def simulated(
    generator: np.random.Generator, runs: int, cases: np.ndarray, seed_sd: float, noise_sd: float
) -> np.ndarray:
    """(runs, cases) scores: of the case, of the run, and of both."""
    of_runs = seed_sd * generator.standard_normal((runs, 1))
    return cases + of_runs + noise_sd * generator.standard_normal((runs, len(cases)))


def test_without_variance_between_cases_the_interval_is_students() -> None:
    runs = np.array([3.1, 3.4, 2.9, 3.3])
    found = mean_interval({T2I: np.repeat(runs[:, None], 6, axis=1)}, spread_of([runs]))
    low, high = stats.ttest_1samp(runs, 0).confidence_interval(0.95)
    np.testing.assert_allclose((found.mean, found.low, found.high), (runs.mean(), low, high), rtol=2e-3)
    assert found.n == 4
    alone = seeds_alone(runs, spread_of([runs]))
    np.testing.assert_allclose((alone.low, alone.high), (low, high), rtol=1e-12)


def test_without_variance_between_runs_the_interval_is_that_of_the_case_mean() -> None:
    cases = np.random.default_rng(0).standard_normal(400)
    found = mean_interval({T2I: np.repeat(cases[None], 3, axis=0)}, Spread(0.0, 2), num_resamples=20_000)
    half = stats.norm.ppf(0.975) * cases.std() / math.sqrt(len(cases))
    assert found.low is not None and found.high is not None
    np.testing.assert_allclose((found.high - found.low) / 2, half, rtol=0.03)


def test_benches_count_alike_and_so_do_categories_within_one() -> None:
    other = ("t2i_bench", "landscape")
    table = {T2I: np.full((1, 9), 1.0), other: np.full((1, 2), 3.0), EDIT: np.full((1, 5), 4.0)}
    assert run_scores(table) == pytest.approx([0.5 * 2.0 + 0.5 * 4.0])


@pytest.mark.parametrize("seed_sd", [0.0, 0.1, 0.4])
def test_the_interval_covers_the_true_mean_as_often_as_it_says(seed_sd: float) -> None:
    generator, covered, num = np.random.default_rng(1), 0, 400
    for trial in range(num):
        scores = simulated(generator, 3, 0.6 * generator.standard_normal(30), seed_sd, 0.2)
        found = mean_interval({T2I: scores}, spread_of([run_scores({T2I: scores})]), 400, seed=trial)
        assert found.low is not None and found.high is not None
        covered += found.low <= 0 <= found.high
    assert 0.925 <= covered / num <= 1.0


def test_the_paired_interval_covers_and_a_percentile_bootstrap_over_two_seeds_does_not() -> None:
    generator, covered, naive, num = np.random.default_rng(2), 0, 0, 300
    true = 0.1
    for trial in range(num):
        cases = 0.6 * generator.standard_normal(24)
        a, b = (simulated(generator, 2, cases + shift, 0.1, 0.1) for shift in (true, 0.0))
        spread = spread_of([a.mean(axis=1), b.mean(axis=1)])
        found = difference_interval({T2I: a}, {T2I: b}, spread, 400, seed=trial)
        assert found.low is not None and found.high is not None
        covered += found.low <= true <= found.high
        drawn = [x[generator.integers(2, size=(400, 2))].mean(axis=(1, 2)) for x in (a, b)]
        low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
        naive += low <= true <= high
    assert covered / num >= 0.93
    assert naive / num < 0.85


def test_pairing_removes_what_the_cases_share() -> None:
    generator = np.random.default_rng(3)
    cases = 2.0 * generator.standard_normal(20)
    a, b = (simulated(generator, 3, cases, 0.01, 0.01) for _ in range(2))
    found = difference_interval({T2I: a}, {T2I: b}, Spread(0.01, 4))
    assert found.low is not None and found.high is not None
    assert found.high - found.low < 0.1
    assert difference_alone([1.0, 2.0], [0.0, 1.0], Spread(0.0, 2)).low == 1.0


def test_one_run_has_no_interval_without_a_spread_and_one_with_the_noise_floors() -> None:
    table = {T2I: np.array([[1.0, 2.0, 3.0]])}
    assert mean_interval(table, None).low is None
    found = mean_interval(table, Spread(0.1, 7))
    assert found.low is not None and found.low < 2 < (found.high or 0)


def test_spreads_pool_by_their_degrees_of_freedom() -> None:
    groups = [[1.0, 2.0, 3.0], [5.0, 5.0], [9.0]]
    found = spread_of(groups)
    assert found == Spread(pytest.approx(math.sqrt(2 / 3)), 3)
    assert spread_of([[1.0], [2.0]]) is None
    both = pooled(Spread(3.0, 1), None, Spread(1.0, 3))
    assert both == Spread(pytest.approx(math.sqrt(12 / 4)), 4)
    assert pooled(None) is None


def test_the_interval_of_a_deviation_is_chi_square() -> None:
    covered, generator = 0, np.random.default_rng(4)
    for _ in range(1000):
        found = spread_of([generator.standard_normal(8)])
        assert found is not None
        low, high = found.interval()
        covered += low <= 1 <= high
    assert 0.93 <= covered / 1000 <= 0.97


def test_the_minimal_difference_has_the_power_it_says() -> None:
    # Cohen's tables: an effect of one standard deviation takes 17 a group at 80 % and 5 %, of half of one 64.
    assert seeds_needed(Spread(1.0, 7), 1.0) == 17
    assert seeds_needed(Spread(1.0, 7), 0.5) == 64
    assert seeds_needed(Spread(1.0, 7), 0.01) is None
    assert minimal_difference(Spread(1.0, 1), 1, 1, 0) == math.inf
    generator = np.random.default_rng(5)
    sd, n = 0.3, 4
    true = minimal_difference(Spread(sd, 7), n, n, 2 * n - 2)
    a, b = (generator.normal(shift, sd, (4000, n)) for shift in (true, 0.0))
    found = stats.ttest_ind(a, b, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.025)


def test_the_minimal_difference_of_a_known_spread_is_the_normal_one() -> None:
    found = minimal_difference(Spread(2.0, 10**6), 5, 5, 10**6)
    assert found == pytest.approx((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * 2.0 * math.sqrt(2 / 5), rel=1e-3)


@pytest.mark.parametrize(
    ("seed_sd", "noise_sd", "within"),
    [(0.0, 0.5, lambda share: share > 0.8), (0.5, 0.5, lambda share: share < 0.15)],
)
def test_the_share_that_more_cases_would_remove(
    seed_sd: float, noise_sd: float, within: Callable[[float], bool]
) -> None:
    generator = np.random.default_rng(6)
    shares = [
        case_share({T2I: simulated(generator, 40, generator.standard_normal(20), seed_sd, noise_sd)}) for _ in range(5)
    ]
    assert within(float(np.mean(shares)))
