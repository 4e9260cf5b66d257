"""Bradley-Terry strengths: recovered from simulated matches, in agreement with closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from workbench.evaluation.measures.preference import Match, both_orders, bradley_terry, strength_intervals, wins_of

TRUE = np.array([1.0, 0.3, -0.2, -1.1])


def simulate(num_cases: int, seed: int = 0) -> list[Match]:
    """Every pair of models meets on every case, won as their true strengths say."""
    rng = np.random.default_rng(seed)
    return [
        Match(f"c{case}", a, b, float(rng.random() < 1 / (1 + np.exp(TRUE[b] - TRUE[a]))))
        for case in range(num_cases)
        for a in range(len(TRUE))
        for b in range(a + 1, len(TRUE))
    ]


def test_known_strengths_are_recovered() -> None:
    found = bradley_terry(wins_of(simulate(3000), 4))
    assert found == pytest.approx(TRUE, abs=0.06) and found.sum() == pytest.approx(0)


def test_expected_wins_give_the_strengths_exactly() -> None:
    expected = 1 / (1 + np.exp(TRUE[None] - TRUE[:, None]))
    np.fill_diagonal(expected, 0)
    assert bradley_terry(100 * expected, prior_wins=0) == pytest.approx(TRUE, abs=1e-5)


def test_two_models_have_the_log_odds_as_their_difference() -> None:
    strengths = bradley_terry(np.array([[0.0, 30.0], [10.0, 0.0]]), prior_wins=0)
    assert strengths[0] - strengths[1] == pytest.approx(np.log(3), abs=1e-6)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = [
        interval.low <= truth <= interval.high
        for seed in range(100, 130)
        for interval, truth in zip(strength_intervals(simulate(60, seed), 4, 100, seed), TRUE, strict=True)
        if interval.low is not None and interval.high is not None
    ]
    assert len(covered) == 120 and 0.88 <= np.mean(covered) <= 0.995


def test_a_judge_that_goes_by_position_alone_prefers_nobody() -> None:
    assert both_orders("A", "A") == both_orders("B", "B") == 0.5
    assert (both_orders("A", "B"), both_orders("B", "A")) == (1, 0)
    tied = [Match(f"c{case}", 0, 1, both_orders("A", "A")) for case in range(20)]
    assert [interval.mean for interval in strength_intervals(tied, 2)] == pytest.approx([0, 0])


def test_a_model_that_wins_all_is_finitely_strong_and_one_that_never_met_is_average() -> None:
    won = bradley_terry(wins_of([Match(f"c{case}", 0, 1, 1.0) for case in range(10)], 3))
    assert np.isfinite(won).all() and won[0] > 1 > won[2] > won[1]
