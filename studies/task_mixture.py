"""How much editing should a unified few-step student see? The paper's study 3, carried on to editing alone."""

from __future__ import annotations

import optuna

from studies.study import Sampler, vary
from workbench.recipe.config import Recipe

QUESTION = (
    "Does training on edits cost the student generation or help it, and which ratio of T2I to editing serves both?"
)


def ratio(t2i: float) -> str:
    """The override for this share of T2I, to three decimals."""
    return f"mixture.tasks={{t2i: {t2i:.3f}, edit: {1 - t2i:.3f}}}"


ARMS: dict[str, list[str]] = {
    "t2i-only": [ratio(1.0)],
    "9:1": [ratio(0.9)],
    "7:3": [ratio(0.7)],
    "5:5": [ratio(0.5)],
    # Beyond the paper: what too little generation does.
    "3:7": [ratio(0.3)],
    "1:9": [ratio(0.1)],
    "edit-only": [ratio(0.0)],
}
SEEDS: tuple[int, ...] = (0, 1, 2)
OBJECTIVES: tuple[str, ...] = ("score",)
SAMPLER: Sampler = "tpe"


def suggest(trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe:
    """One share of T2I from none to all, in steps of a twentieth."""
    return vary(base, [ratio(trial.suggest_float("t2i_share", 0.0, 1.0, step=0.05))])
