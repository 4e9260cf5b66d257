"""How many network evaluations does a student need? One and two steps leave what four blur over, eight are the price of
more. What an update costs grows with the steps of the rollout; the number of updates is the same."""

from __future__ import annotations

import optuna

from studies.study import Differences, vary
from workbench.recipe.config import Recipe

QUESTION = "What does a student of one, two or eight network evaluations lose or gain against one of four?"


def _steps(num: int) -> Differences:
    return {"dmd": {"student_steps": num, "student_times": []}}


ARMS: dict[str, Differences] = {"4-nfe": _steps(4), "1-nfe": _steps(1), "2-nfe": _steps(2), "8-nfe": _steps(8)}


def suggest(trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe:
    """The number of steps and the shift of their times."""
    shift = trial.suggest_float("student_shift", 1.0, 8.0, log=True)
    return vary(base, {"dmd": {**_steps(trial.suggest_int("student_steps", 1, 8))["dmd"], "student_shift": shift}})
