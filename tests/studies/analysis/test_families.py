"""Families of comparisons against scipy's tests, and their error in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from simulated_scores import simulated

from studies.analysis.crossed import components, of_runs
from studies.analysis.families import LargestT, against_first, all_pairs, holm_levels, pools_of


def test_against_the_first_arm_it_is_dunnetts_test() -> None:
    control, *others = (np.random.default_rng(0).normal(shift, 1, 5) for shift in (0.0, 0.5, 1.0, 1.5, 2.5))
    contrasts = against_first(5)
    found = of_runs([control, *others])
    family, test = LargestT(found.correlation(contrasts)), stats.dunnett(*others, control=control)
    p = [family.p(found.contrast(row)) for row in contrasts]
    np.testing.assert_allclose(p, test.pvalue, atol=0.005)
    bounds = [found.contrast(row).interval(family.quantile(0.95)) for row in contrasts]
    expected = test.confidence_interval(0.95)
    np.testing.assert_allclose(np.array(bounds).T, [expected.low, expected.high], atol=0.03)


def test_among_all_arms_it_is_tukeys_test() -> None:
    arms = [np.random.default_rng(i).normal(i / 2, 1, 4) for i in range(4)]
    contrasts, found = all_pairs(4), of_runs(arms)
    family, test = LargestT(found.correlation(contrasts)), stats.tukey_hsd(*arms)
    for row in contrasts:
        a, b = np.flatnonzero(row == 1)[0], np.flatnonzero(row == -1)[0]
        assert family.p(found.contrast(row)) == pytest.approx(test.pvalue[a, b], abs=0.012)


def test_holms_levels_reject_as_holms_procedure_does() -> None:
    assert holm_levels([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4])
    assert holm_levels([]).size == 0
    generator = np.random.default_rng(1)
    for _ in range(50):
        p = generator.random(6) ** 4
        adjusted = np.maximum.accumulate(np.sort(p) * np.arange(6, 0, -1))
        np.testing.assert_array_equal(np.sort(p)[adjusted <= 0.05], np.sort(p[p <= holm_levels(p)]))


@pytest.mark.parametrize(("seeds", "seed_sd", "interaction_sd"), [(2, 0.0, 0.2), (3, 0.1, 0.0)])
def test_one_study_in_twenty_finds_a_difference_where_there_is_none(
    seeds: int, seed_sd: float, interaction_sd: float
) -> None:
    generator, family_errors, single_errors, num = np.random.default_rng(2), 0, 0, 300
    contrasts = against_first(6)
    for _ in range(num):
        found = components(simulated(generator, 6, seeds, seed_sd, interaction_sd))
        family = LargestT(found.correlation(contrasts), 800)
        compared = [found.contrast(row) for row in contrasts]
        single_errors += min(contrast.p() for contrast in compared) <= 0.05
        family_errors += min(family.p(contrast) for contrast in compared) <= 0.05
    assert family_errors / num <= 0.08 < single_errors / num


def test_an_arm_that_varies_more_is_a_pool_of_its_own() -> None:
    generator = np.random.default_rng(3)
    groups = [generator.normal(0, sd, 4) for sd in (1.0, 20.0, 1.0, 1.0)]
    assert pools_of(groups) == [0, 1, 0, 0]
    assert pools_of([np.array([1.0]), np.array([2.0])]) == [0, 0]
    apart = np.mean([max(pools_of([generator.standard_normal(3) for _ in range(6)])) > 0 for _ in range(600)])
    assert apart <= 0.07
