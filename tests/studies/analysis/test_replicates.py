"""How far runs of one recipe differ, and what a number of seeds shows by it, against closed forms and in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from studies.analysis.crossed import components, two_sided
from studies.analysis.replicates import Spread, minimal_difference, spread_of

T2I = ("t2i_bench", "text")


def simulated(
    generator: np.random.Generator, runs: int, cases: np.ndarray, seed_sd: float, noise_sd: float
) -> np.ndarray:
    """(runs, cases) scores: of the case, of the run, and of both."""
    of_runs = seed_sd * generator.standard_normal((runs, 1))
    return cases + of_runs + noise_sd * generator.standard_normal((runs, len(cases)))


def test_the_paired_interval_covers_and_a_percentile_bootstrap_over_two_seeds_does_not() -> None:
    generator, covered, naive, num = np.random.default_rng(2), 0, 0, 300
    true = 0.1
    for _ in range(num):
        cases = 0.6 * generator.standard_normal(24)
        a, b = (simulated(generator, 2, cases + shift, 0.1, 0.1) for shift in (true, 0.0))
        low, high = components([{T2I: a}, {T2I: b}]).contrast([1, -1]).interval(two_sided(0.95))
        covered += low <= true <= high
        drawn = [x[generator.integers(2, size=(400, 2))].mean(axis=(1, 2)) for x in (a, b)]
        low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
        naive += low <= true <= high
    assert covered / num >= 0.93
    assert naive / num < 0.85


def test_pairing_removes_what_the_cases_share() -> None:
    generator = np.random.default_rng(3)
    cases = 2.0 * generator.standard_normal(20)
    a, b = (simulated(generator, 3, cases, 0.01, 0.01) for _ in range(2))
    low, high = components([{T2I: a}, {T2I: b}]).contrast([1, -1]).interval(two_sided(0.95))
    assert high - low < 0.1


def test_a_spread_pools_groups_by_their_degrees_of_freedom() -> None:
    groups = [[1.0, 2.0, 3.0], [5.0, 5.0], [9.0]]
    found = spread_of(groups)
    assert found == Spread(pytest.approx(math.sqrt(2 / 3)), 3)
    assert spread_of([[1.0], [2.0]]) is None


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
    for num, effect in ((17, 1.0), (64, 0.5)):
        found, fewer = (minimal_difference(Spread(1.0, 7), n, n, 2 * n - 2) for n in (num, num - 1))
        assert found <= effect < fewer
    assert minimal_difference(Spread(1.0, 1), 1, 1, 0) == math.inf
    generator = np.random.default_rng(5)
    sd, n = 0.3, 4
    true = minimal_difference(Spread(sd, 7), n, n, 2 * n - 2)
    a, b = (generator.normal(shift, sd, (4000, n)) for shift in (true, 0.0))
    shown = stats.ttest_ind(a, b, axis=1).pvalue < 0.05
    assert shown.mean() == pytest.approx(0.8, abs=0.025)


def test_the_minimal_difference_of_a_known_spread_is_the_normal_one() -> None:
    found = minimal_difference(Spread(2.0, 10**6), 5, 5, 10**6)
    assert found == pytest.approx((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * 2.0 * math.sqrt(2 / 5), rel=1e-3)
