"""Screening designs: what is confounded with what, and which factors they show."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from studies.analysis.crossed import Contrast
from studies.analysis.families import holm_levels
from studies.analysis.screening import columns, design, effects_of_single_runs, main_effects
from studies.factors import runs_of
from studies.study import Times
from workbench.common.errors import UserError


def shown(effects: list[Contrast]) -> list[bool]:
    """Which of the effects Holm's procedure shows."""
    p = [effect.p() for effect in effects]
    return [value <= level for value, level in zip(p, holm_levels(p), strict=True)]


@pytest.mark.parametrize(("num_factors", "num_runs"), [(5, 16), (8, 16), (9, 32), (16, 32)])
def test_main_effects_are_confounded_with_no_other_and_no_interaction_of_two(num_factors: int, num_runs: int) -> None:
    levels = design(num_factors)
    assert levels.shape == (num_runs, num_factors) and set(levels.ravel()) == {-1, 1}
    np.testing.assert_array_equal(levels.T @ levels, num_runs * np.eye(num_factors))
    pairs = np.array([levels[:, pair].prod(axis=1) for pair in combinations(range(num_factors), 2)])
    assert not (pairs @ levels).any()


def test_all_contrasts_are_orthogonal_and_as_many_as_runs_less_one() -> None:
    everything = np.hstack([columns(32, odd=True), columns(32, odd=False)])
    np.testing.assert_array_equal(everything.T @ everything, 32 * np.eye(31))


def test_effects_are_found_beside_an_interaction() -> None:
    levels, others = design(12), 0
    scores = 3 + 0.05 * levels[:, 2] - 0.03 * levels[:, 7] + 0.02 * levels[:, 0] * levels[:, 1]
    for noise in 0.01 * np.random.default_rng(0).standard_normal((100, 32)):
        found = effects_of_single_runs(12, scores + noise)
        are_shown = shown(found)
        assert are_shown[2] and are_shown[7]
        assert found[2].value == pytest.approx(0.1, abs=0.016) and found[7].value == pytest.approx(-0.06, abs=0.016)
        np.testing.assert_allclose([effect.value for effect in found], main_effects(12) @ (scores + noise))
        others += sum(are_shown) > 2
    assert others <= 10


@pytest.mark.parametrize("num_factors", [8, 16])
def test_noise_shows_a_factor_in_one_design_of_twenty(num_factors: int) -> None:
    generator = np.random.default_rng(1)
    scores = generator.standard_normal((500, len(design(num_factors))))
    assert np.mean([any(shown(effects_of_single_runs(num_factors, row))) for row in scores]) <= 0.065


def test_the_standard_error_is_two_deviations_over_the_root_of_the_runs() -> None:
    generator = np.random.default_rng(2)
    errors = [
        effects_of_single_runs(16, 0.01 * row)[0].runs.value ** 0.5 for row in generator.standard_normal((300, 32))
    ]
    assert np.mean(errors) == pytest.approx(2 * 0.01 / np.sqrt(32), rel=0.05)


def test_runs_have_every_factor_at_the_designs_level() -> None:
    factors = {
        "rate": ({}, {"optim": {"student_lr": Times(2)}}),
        "EMA": ({"optim": {"ema_decay": 0.9}}, {"optim": {"ema_decay": 0.99}}),
        "shift": ({"dmd": {"student_shift": 2.0}}, {"dmd": {"student_shift": 5.0}}),
        "beta1": ({}, {"optim": {"beta1": 0.9}}),
    }
    runs = runs_of(factors)
    assert list(runs)[:2] == ["run-01", "run-02"] and len(runs) == 16
    for run, (rate, ema, shift, beta1) in zip(runs.values(), design(4), strict=True):
        assert ("student_lr" in run["optim"]) == (rate > 0)
        assert run["optim"]["ema_decay"] == (0.99 if ema > 0 else 0.9)
        assert run["dmd"] == {"student_shift": 5.0 if shift > 0 else 2.0}
        assert ("beta1" in run["optim"]) == (beta1 > 0)
    assert len({str(run) for run in runs.values()}) == 16


def test_two_factors_may_not_set_one_key() -> None:
    one, other = ({"optim": {"beta1": 0.5}}, {"optim": {"student_lr": 1e-3, "beta1": 0.9}})
    with pytest.raises(UserError, match="the factors 'a' and 'b' both set optim.beta1"):
        runs_of({"a": ({}, one), "b": ({}, other)})


def test_a_design_has_four_to_sixteen_factors() -> None:
    for num_factors in (3, 17):
        with pytest.raises(ValueError, match="4 to 16"):
            design(num_factors)
