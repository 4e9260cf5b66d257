"""How far do runs of one recipe differ when only the seed does? What lies below is no finding of any other study."""

from __future__ import annotations

import optuna

from studies.study import Sampler, vary
from workbench.recipe.config import Recipe

QUESTION = "How far apart do runs of one recipe end when only the seed differs, and what difference can n seeds show?"

ARMS: dict[str, list[str]] = {"recipe": []}
SEEDS: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
OBJECTIVES: tuple[str, ...] = ("score",)
SAMPLER: Sampler = "tpe"


def suggest(trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe:
    """Two learning rates about the base's: whether the noise floor holds nearby."""
    factor = trial.suggest_float("lr_factor", 0.5, 2.0, log=True)
    return vary(base, [f"optim.student_lr*={factor}", f"optim.fake_lr*={factor}"])
