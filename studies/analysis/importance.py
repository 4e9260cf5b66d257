"""Which parameters of a search tell its best trials from the rest, and whether chance would do as much.

Shares of importance always sum to one: of noise they are as unequal as of anything else. So they are compared with the
largest share that the same trials show when their values are permuted.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

MIN_TRIALS = 8
"""With fewer drawn trials the best of them are too few to tell which parameters they share."""
BEST_TRIALS = 5
NUM_PERMUTATIONS = 99
LEVEL = 0.05


@dataclass(frozen=True)
class Importance:
    """share: of what tells the best trials from the rest. p: how often the largest share of permuted values is as
    large, which holds for all parameters together."""

    share: float
    p: float

    @property
    def shown(self) -> bool:
        return self.p <= LEVEL


class Shares:
    """Importance shares of the parameters of `trials`: functional analysis of variance in closed form (PED-ANOVA, arXiv
    2304.10255)."""

    def __init__(self, trials: Sequence[FrozenTrial]) -> None:
        # The values are handed in; an empty study of one objective holds the parameters.
        self._study = optuna.create_study(direction="minimize")
        self._study.add_trials(
            [
                optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=0.0)
                for trial in trials
            ]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            best = min(0.5, max(0.1, BEST_TRIALS / len(trials)))
            self._evaluator = PedAnovaImportanceEvaluator(target_quantile=best)

    def of(self, values: Sequence[float] | np.ndarray) -> dict[str, float]:
        """Parameter -> share, largest first. values: of each trial, higher being better."""
        with warnings.catch_warnings():
            # It warns, always, that low values of its target are what it explains: hence the sign.
            warnings.simplefilter("ignore", UserWarning)
            return get_param_importances(
                self._study, evaluator=self._evaluator, target=lambda trial: -float(values[trial.number])
            )


def importance(
    trials: Sequence[FrozenTrial],
    values: Mapping[str, Sequence[float]],
    num_permutations: int | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Importance]]:
    """Objective -> importance of every parameter, largest first; empty for fewer than MIN_TRIALS trials, or where no
    parameter varies. values: of each objective, in the order of the trials. num_permutations: by default
    NUM_PERMUTATIONS.

    Chance is the same for all objectives: the shares depend on the order of the values alone."""
    if len(trials) < MIN_TRIALS:
        return {}
    shares, generator, num = Shares(trials), np.random.default_rng(seed), num_permutations or NUM_PERMUTATIONS
    found = {name: shares.of(of) for name, of in values.items()}
    if not all(found.values()):
        return {}
    largest = np.array([max(shares.of(generator.permutation(len(trials))).values()) for _ in range(num)])
    return {
        name: {
            parameter: Importance(share, float((1 + np.sum(largest >= share)) / (1 + num)))
            for parameter, share in of.items()
        }
        for name, of in found.items()
    }


def drawn_trials(rows: Sequence[Mapping[str, object]], space: Mapping[str, str]) -> list[FrozenTrial]:
    """Optuna's trials of what `study.json` says of draws. space: distribution of each parameter as Optuna's JSON."""
    known: dict[str, BaseDistribution] = {
        name: optuna.distributions.json_to_distribution(text) for name, text in space.items()
    }
    return [
        optuna.trial.create_trial(params=params, distributions={name: known[name] for name in params}, value=0.0)
        for row in rows
        for params in [dict(row["params"])]  # type: ignore[call-overload]
    ]
