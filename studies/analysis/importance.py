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
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial

MIN_TRIALS = 8
"""With fewer drawn trials the best of them are too few to tell which parameters they share."""
BEST_TRIALS = 5
NUM_PERMUTATIONS = 199


@dataclass(frozen=True)
class Importance:
    """share: of what tells the best trials from the rest. p: how often the largest share of permuted values is as
    large, which holds for all parameters together."""

    share: float
    p: float


def shares(trials: Sequence[FrozenTrial], values: Sequence[float]) -> dict[str, float]:
    """Parameter -> share: functional analysis of variance in closed form (PED-ANOVA, arXiv 2304.10255). values: of
    each trial, higher being better."""
    study = optuna.create_study(direction="minimize")
    study.add_trials(
        [
            optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=-value)
            for trial, value in zip(trials, values, strict=True)
        ]
    )
    best = min(0.5, max(0.1, BEST_TRIALS / len(trials)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(target_quantile=best))


def importance(
    trials: Sequence[FrozenTrial], values: Sequence[float], num_permutations: int = NUM_PERMUTATIONS, seed: int = 0
) -> Mapping[str, Importance]:
    """Importance of every parameter, largest first; empty for fewer than MIN_TRIALS trials."""
    if len(trials) < MIN_TRIALS:
        return {}
    found, generator = shares(trials, values), np.random.default_rng(seed)
    largest = np.array(
        [max(shares(trials, list(generator.permutation(values))).values()) for _ in range(num_permutations)]
    )
    return {
        name: Importance(share, float((1 + np.sum(largest >= share)) / (1 + num_permutations)))
        for name, share in found.items()
    }
