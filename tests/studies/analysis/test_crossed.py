"""Variances over runs and cases against closed forms, and intervals against how often they cover in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from simulated_scores import KEYS, RESIDUAL_OF_SCORE, simulated

from studies.analysis.crossed import Variance, components, of_runs, run_scores, total, two_sided, weights_of

DIFFERENCE = (1.0, -1.0, 0.0, 0.0)


def test_benches_count_alike_and_so_do_categories_within_one() -> None:
    assert weights_of(KEYS) == pytest.approx([0.25, 0.25, 0.5])
    table = {key: np.full((1, 2 + i), float(i)) for i, key in enumerate(KEYS)}
    assert run_scores(table) == pytest.approx([0.5 * 0.5 + 0.5 * 2.0])


def test_the_parts_of_the_variance_are_those_of_a_slow_analysis_of_variance() -> None:
    a, b, _, _ = arms = simulated(np.random.default_rng(0), 4, 3, 0.1, 0.3)
    found = components(arms).contrast(DIFFERENCE)
    between = np.mean([run_scores(arm).var(ddof=1) for arm in arms])
    case = residual = 0.0
    for key, weight in zip(KEYS, weights_of(KEYS), strict=True):
        num_cases = a[key].shape[1]
        case += weight**2 * float((a[key].mean(axis=0) - b[key].mean(axis=0)).var(ddof=1)) / num_cases
        rests = [arm[key] - arm[key].mean(axis=0) for arm in arms]
        rests = [rest - rest.mean(axis=1, keepdims=True) for rest in rests]
        mean_square = sum(float((rest**2).sum()) for rest in rests) / (4 * 2 * (num_cases - 1))
        residual += weight**2 * mean_square / num_cases
    assert found.runs.value == pytest.approx(between * 2 / 3) and found.runs.df == pytest.approx(8)
    assert found.cases.value == pytest.approx(case - residual * 2 / 3)
    assert found.value == pytest.approx(run_scores(a).mean() - run_scores(b).mean())


def test_numbers_of_whole_runs_are_compared_by_students_t_and_apart_arms_by_welchs() -> None:
    a, b = np.random.default_rng(1).standard_normal((2, 5)) * [[1.0], [3.0]]
    for pools, equal in ((None, True), ([0, 1], False)):
        found, test = of_runs([a, b], pools).contrast([1, -1]), stats.ttest_ind(a, b, equal_var=equal)
        assert found.p() == pytest.approx(test.pvalue, rel=1e-6)
        low, high = test.confidence_interval(0.95)
        assert found.interval(two_sided(0.95)) == pytest.approx((low, high))


def test_without_variance_between_runs_the_interval_is_that_of_paired_cases() -> None:
    a, b = ({KEYS[0]: np.repeat(case[None], 3, axis=0)} for case in np.random.default_rng(2).standard_normal((2, 30)))
    low, high = stats.ttest_rel(a[KEYS[0]][0], b[KEYS[0]][0]).confidence_interval(0.95)
    assert components([a, b]).contrast([1, -1]).interval(two_sided(0.95)) == pytest.approx((low, high))


def test_degrees_of_freedom_are_satterthwaites() -> None:
    assert total(np.array([2.0, 1.0]), np.array([4.0, 2.0])) == Variance(3.0, pytest.approx(9 / (1 + 0.5)))
    assert math.isnan(total(np.array([2.0]), np.array([0.0])).value)


def test_one_seed_an_arm_tells_nothing_of_other_seeds_but_a_pool_does() -> None:
    lonely = simulated(np.random.default_rng(3), 4, 1, 0.1, 0.0)
    assert not components(lonely).contrast(DIFFERENCE).known and components(lonely).contrast(DIFFERENCE).p() == 1.0
    replicated = simulated(np.random.default_rng(3), 4, 3, 0.1, 0.0)
    assert components([lonely[0], *replicated[1:]]).contrast(DIFFERENCE).known
    assert not components([lonely[0], *replicated[1:]], [1, 0, 0, 0]).contrast(DIFFERENCE).known


@pytest.mark.parametrize("num_arms", [2, 6])
@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize(("seed_sd", "interaction_sd"), [(0.0, 0.0), (RESIDUAL_OF_SCORE, 0.2), (0.1, 0.0)])
def test_intervals_cover_as_often_as_they_say(num_arms: int, seeds: int, seed_sd: float, interaction_sd: float) -> None:
    """studies/LOG.md has thousands of studies a row: 95 to 97 %; the share among 800 differs by .008 (one sd)."""
    generator, covered, num = np.random.default_rng(4), 0, 800
    for _ in range(num):
        found = components(simulated(generator, num_arms, seeds, seed_sd, interaction_sd))
        low, high = found.contrast(np.eye(num_arms)[0] - np.eye(num_arms)[1]).interval(two_sided(0.95))
        covered += low <= 0 <= high
    assert 0.928 <= covered / num <= 0.985


@pytest.mark.filterwarnings("error")
def test_one_case_a_category_is_no_warning_and_no_spread_of_cases() -> None:
    scores = np.random.default_rng(0).normal(size=(2, 3, 1))
    found = components([{("t2i_bench", "text"): of} for of in scores])
    assert np.isnan(found.cases).all() and found.runs[0].df == 4
