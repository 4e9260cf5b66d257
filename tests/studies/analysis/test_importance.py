"""Importances of a search's parameters, and what permuted values make of them."""

from __future__ import annotations

import numpy as np
import optuna
from optuna.distributions import FloatDistribution, distribution_to_json

from studies.analysis.importance import Shares, drawn_trials, importance

SPACE = {f"x{i}": FloatDistribution(0.0, 1.0) for i in range(6)}


def trials(generator: np.random.Generator, num: int) -> list[optuna.trial.FrozenTrial]:
    return [
        optuna.trial.create_trial(params={name: generator.random() for name in SPACE}, distributions=SPACE, value=0.0)
        for _ in range(num)
    ]


def test_a_parameter_that_matters_is_told_from_chance_and_the_others_are_not() -> None:
    drawn = trials(np.random.default_rng(0), 60)
    values = {"score": [-((trial.params["x2"] - 0.8) ** 2) for trial in drawn], "t2i": list(range(60))}
    of_both = importance(drawn, values, num_permutations=60)
    found = of_both["score"]
    assert found == importance(drawn, {"score": values["score"]}, num_permutations=60)["score"]
    assert not any(of.shown for of in of_both["t2i"].values())
    assert next(iter(found)) == "x2" and found["x2"].p < 0.05
    assert all(of.p > 0.1 for name, of in found.items() if name != "x2")
    assert sum(of.share for of in found.values()) == 1.0 or abs(sum(of.share for of in found.values()) - 1) < 1e-9


def test_noise_looks_important_and_its_p_says_that_it_is_not() -> None:
    generator, largest, smallest = np.random.default_rng(1), [], []
    for _ in range(10):
        drawn = trials(generator, 20)
        found = importance(drawn, {"score": list(generator.standard_normal(20))}, num_permutations=19)["score"]
        largest.append(max(of.share for of in found.values()))
        smallest.append(min(of.p for of in found.values()))
    assert np.median(largest) > 2 / len(SPACE)
    assert np.mean(np.array(smallest) <= 0.05) <= 0.2


def test_too_few_trials_have_none() -> None:
    drawn = trials(np.random.default_rng(2), 7)
    assert importance(drawn, {"score": [0.0] * 7}) == {}
    assert set(Shares(trials(np.random.default_rng(2), 9)).of(list(range(9)))) == set(SPACE)


def test_trials_come_back_from_what_study_json_says_of_them() -> None:
    drawn = trials(np.random.default_rng(3), 3)
    space = {name: distribution_to_json(distribution) for name, distribution in SPACE.items()}
    again = drawn_trials([{"params": trial.params} for trial in drawn], space)
    assert [(t.params, t.distributions) for t in again] == [(t.params, t.distributions) for t in drawn]
