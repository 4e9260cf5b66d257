"""The alarm for a collapse: it finds one, and cries wolf in no more than one arm of twenty."""

from __future__ import annotations

import numpy as np
import pytest

from studies.analysis.collapse import alarms, fall_of, halves
from studies.analysis.crossed import Table

KEY = ("t2i_bench", "text")


def milestones(
    generator: np.random.Generator, trend: np.ndarray, runs: int, wander: float = 0.03, of_cases: float = 0.05
) -> dict[int, Table]:
    """Scores at len(trend) milestones: runs wander about the trend, each milestone suits some cases better."""
    scores = trend[:, None, None] + wander * generator.standard_normal((len(trend), runs, 1))
    scores = scores + of_cases * generator.standard_normal((len(trend), 1, 40))
    scores = scores + 0.2 * generator.standard_normal((len(trend), runs, 40))
    return {10 * (1 + i): {KEY: table} for i, table in enumerate(scores)}


def test_the_halves_share_no_case() -> None:
    chosen, measured = halves({KEY: np.arange(10.0).reshape(1, 10)})
    assert not set(chosen[KEY].ravel()) & set(measured[KEY].ravel()) and chosen[KEY].size + measured[KEY].size == 10


def test_a_collapse_is_found_with_its_peak_and_its_depth() -> None:
    trend = np.array([0.0, 0.5, 1.0, 0.3])
    falls = [fall_of(milestones(np.random.default_rng(i), trend if i == 0 else trend * 0, 3)) for i in range(5)]
    assert all(fall is not None for fall in falls)
    found = [fall for fall in falls if fall is not None]
    assert alarms(found) == [True, False, False, False, False]
    assert found[0].peaks == (30, 30, 30) and found[0].contrast.value == pytest.approx(0.7, abs=0.15)


@pytest.mark.parametrize(("runs", "num"), [(2, 4), (2, 12), (3, 4), (3, 12)])
def test_noise_alone_sounds_the_alarm_in_one_arm_of_twenty_at_most(runs: int, num: int) -> None:
    generator, studies = np.random.default_rng(1), 400
    sounded = [fall_of(milestones(generator, np.zeros(num), runs)) for _ in range(studies)]
    assert np.mean([fall is not None and fall.p <= 0.05 for fall in sounded]) <= 0.05 + 2.5 * 0.011


def test_too_little_is_no_alarm() -> None:
    generator = np.random.default_rng(2)
    assert fall_of(milestones(generator, np.zeros(4), 1)) is None
    assert fall_of(milestones(generator, np.zeros(1), 3)) is None
    assert fall_of({}) is None
