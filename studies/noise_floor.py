"""How far do runs of one recipe differ when only the seed does? No other study can find a smaller difference."""

from __future__ import annotations

import optuna

from studies.study import Differences, Times, vary
from workbench.recipe.config import Recipe

QUESTION = "How far apart do runs of one recipe end when only the seed differs, and what difference can n seeds show?"

ARMS: dict[str, Differences] = {"recipe": {}}
SEEDS = (0, 1, 2, 3, 4, 5, 6, 7)


def suggest(trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe:
    """Both learning rates times a common factor: does the noise floor hold nearby?"""
    factor = Times(trial.suggest_float("lr_factor", 0.5, 2.0, log=True))
    return vary(base, {"optim": {"student_lr": factor, "fake_lr": factor}})
