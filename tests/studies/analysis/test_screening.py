"""Screening designs: what is confounded with what, and which factors they show."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from studies.analysis.screening import design, effects, interactions


@pytest.mark.parametrize(("num_factors", "num_runs"), [(5, 16), (8, 16), (9, 32), (16, 32)])
def test_main_effects_are_confounded_with_no_other_and_no_interaction_of_two(num_factors: int, num_runs: int) -> None:
    levels = design(num_factors)
    assert levels.shape == (num_runs, num_factors) and set(levels.ravel()) == {-1, 1}
    np.testing.assert_array_equal(levels.T @ levels, num_runs * np.eye(num_factors))
    pairs = np.array([levels[:, pair].prod(axis=1) for pair in combinations(range(num_factors), 2)])
    assert not (pairs @ levels).any()


def test_all_contrasts_are_orthogonal_and_as_many_as_runs_less_one() -> None:
    everything = np.hstack([interactions(32, odd=True), interactions(32, odd=False)])
    np.testing.assert_array_equal(everything.T @ everything, 32 * np.eye(31))


def test_effects_are_found_beside_an_interaction() -> None:
    names, levels, others = [f"f{i}" for i in range(12)], design(12), 0
    scores = 3 + 0.05 * levels[:, 2] - 0.03 * levels[:, 7] + 0.02 * levels[:, 0] * levels[:, 1]
    for noise in 0.01 * np.random.default_rng(0).standard_normal((100, 32)):
        found = {effect.factor: effect for effect in effects(names, scores + noise)}
        assert found["f2"].shown and found["f7"].shown
        assert found["f2"].value == pytest.approx(0.1, abs=0.016) and found["f7"].value == pytest.approx(
            -0.06, abs=0.016
        )
        others += sum(effect.shown for effect in found.values()) > 2
    assert others <= 10


@pytest.mark.parametrize("num_factors", [8, 16])
def test_noise_shows_a_factor_in_one_design_of_twenty(num_factors: int) -> None:
    generator, names = np.random.default_rng(1), [str(i) for i in range(num_factors)]
    scores = generator.standard_normal((500, len(design(num_factors))))
    assert np.mean([any(effect.shown for effect in effects(names, row)) for row in scores]) <= 0.065


def test_the_standard_error_is_two_deviations_over_the_root_of_the_runs() -> None:
    generator, names = np.random.default_rng(2), [str(i) for i in range(16)]
    errors = [effects(names, 0.01 * row)[0].standard_error for row in generator.standard_normal((300, 32))]
    assert np.mean(errors) == pytest.approx(2 * 0.01 / np.sqrt(32), rel=0.05)


def test_a_design_has_one_to_sixteen_factors() -> None:
    with pytest.raises(ValueError, match="1 to 16"):
        design(17)
