"""What seeds and cases can show: closed forms, Cohen's tables, and the power found in simulated studies."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from simulated_scores import NUM_CASES, RESIDUAL_OF_SCORE, simulated

from studies.analysis.crossed import Variance, components, two_sided
from studies.analysis.decisions import decide, is_equivalent
from studies.analysis.power import (
    Noise,
    case_share,
    cases_needed,
    decides,
    detectable,
    noise_of,
    provable,
    seeds_needed,
)


def runs_alone(sd: float, num_arms: int = 2) -> Noise:
    return Noise(seed=sd**2, interaction=0.0, residual=0.0, interaction_df=math.inf, num_arms=num_arms)


def test_without_cases_it_is_the_power_of_the_t_test() -> None:
    # Cohen's tables: one standard deviation takes 17 a group at 80 % and 5 %, half of one 64.
    for seeds, effect in ((17, 1.0), (64, 0.5)):
        assert detectable(runs_alone(1.0).difference(seeds)) == pytest.approx(effect, rel=0.02)
    for seeds in (2, 3, 5):
        planned = runs_alone(1.0).difference(seeds)
        shift, df = detectable(planned) / math.sqrt(2 / seeds), 2 * seeds - 2
        critical = stats.t.ppf(0.975, df)
        power = np.mean(stats.norm.sf(critical * np.sqrt(stats.chi2.ppf(np.arange(0.5, 1000) / 1000, df) / df) - shift))
        assert power == pytest.approx(0.8, abs=0.04)
    assert detectable(runs_alone(1.0).difference(1)) == provable(runs_alone(1.0).difference(1)) == math.inf


@pytest.mark.parametrize("seeds", [2, 3])
@pytest.mark.parametrize(("seed_sd", "interaction_sd"), [(0.0, 0.0), (0.03, 0.2)])
def test_four_studies_in_five_find_what_they_are_said_to_find(
    seeds: int, seed_sd: float, interaction_sd: float
) -> None:
    of_difference = 2 * (interaction_sd / 0.2 * RESIDUAL_OF_SCORE) ** 2
    noise = Noise(seed_sd**2, of_difference, RESIDUAL_OF_SCORE**2, 2.5 * (NUM_CASES - 1), num_arms=4)
    planned = noise.difference(seeds)
    generator, found, shown, num = np.random.default_rng(6), 0, 0, 600
    for _ in range(num):
        contrast = components(simulated(generator, 4, seeds, seed_sd, interaction_sd)).contrast([1, -1, 0, 0])
        shown += is_equivalent(contrast, provable(planned))
        low, high = contrast.interval(two_sided(0.95))
        found += not low <= -detectable(planned) <= high
    # 600 studies differ by .016 (one sd).
    assert found / num == pytest.approx(0.8, abs=0.055) and shown / num == pytest.approx(0.8, abs=0.055)


def test_what_is_needed_is_the_least_that_decides() -> None:
    noise = Noise(seed=0.01**2, interaction=0.02**2, residual=0.03**2, interaction_df=100, num_arms=5)
    seeds = seeds_needed(noise, 0.08)
    assert seeds is not None and decides(noise, 0.08, seeds) and not decides(noise, 0.08, seeds - 1)
    cases = cases_needed(noise, 0.04, 3)
    assert cases is not None and decides(noise, 0.04, 3, cases) and not decides(noise, 0.04, 3, 0.98 * cases)
    assert cases_needed(noise, 0.001, 3) is None and seeds_needed(noise, 0.001) is None
    assert (seeds_needed(noise, 0.05, cases=8) or 99) < (seeds_needed(noise, 0.05) or 99)


def test_noise_is_what_a_study_has_with_nothing_negative() -> None:
    arms = simulated(np.random.default_rng(7), 4, 3, 0.05, 0.2)
    found = components(arms)
    difference = found.contrast([1, -1, 0, 0])
    noise = noise_of(found.runs[0], found.residual[0], difference, 4)
    planned = noise.difference(3)
    assert planned.runs.value == pytest.approx(difference.runs.value) and planned.cases == difference.cases
    lucky = noise_of(Variance(1.0, 4), Variance(2.0, 60), difference, 4)
    assert lucky.seed == 0.0 and lucky.residual == 1.0


def test_the_share_of_the_cases_has_bounds_by_the_f_distribution() -> None:
    generator, covered, num = np.random.default_rng(8), 0, 600
    share = RESIDUAL_OF_SCORE**2 / (RESIDUAL_OF_SCORE**2 + 0.04**2)
    for _ in range(num):
        found = components(simulated(generator, 1, 8, 0.04, 0.0))
        low, high = case_share(found.runs[0], found.residual[0])
        covered += low <= share <= high
    assert 0.925 <= covered / num <= 0.975
    assert case_share(Variance(math.nan, 0), Variance(1.0, 9)) == (0.0, 1.0)


def test_three_verdicts_and_none_of_one_seed() -> None:
    generator = np.random.default_rng(9)
    for shift, sd, kind, small in (
        (0.0, 0.002, "equivalent", True), (0.02, 0.002, "better", True), (0.3, 0.002, "better", False),
        (0.05, 0.1, "undecided", False),
    ):  # fmt: skip
        arms = [{("t2i_bench", "text"): generator.normal(mean, sd, (3, 40))} for mean in (shift, 0.0)]
        for arm in arms:
            arm["t2i_bench", "text"] += generator.normal(0, sd, (3, 1))
        found = decide(components(arms).contrast([1, -1]), two_sided(0.95), 0.05)
        assert (found.kind, found.small) == (kind, small)
    one = [{("t2i_bench", "text"): generator.standard_normal((1, 40))} for _ in range(2)]
    assert decide(components(one).contrast([1, -1]), two_sided(0.95), 0.05).kind == "one seed"
