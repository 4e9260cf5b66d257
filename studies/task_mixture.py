"""How much editing should a unified few-step student see? The paper's study 3, extended to editing alone."""

from __future__ import annotations

import optuna

from studies.study import Differences, Sampler, vary
from workbench.recipe.config import Recipe

QUESTION = (
    "Does training on edits cost the student generation or help it, and which ratio of T2I to editing serves both?"
)


def ratio(t2i: float) -> dict[str, float]:
    """`mixture.tasks` for this share of T2I, to three decimals."""
    return {"t2i": round(t2i, 3), "edit": round(1 - t2i, 3)}


def _tasks(t2i: float) -> Differences:
    return {"mixture": {"tasks": ratio(t2i)}}


ARMS: dict[str, Differences] = {
    "t2i-only": _tasks(1.0),
    "9:1": _tasks(0.9),
    "7:3": _tasks(0.7),
    "5:5": _tasks(0.5),
    # Beyond the paper: too little generation.
    "3:7": _tasks(0.3),
    "1:9": _tasks(0.1),
    "edit-only": _tasks(0.0),
}
SEEDS: tuple[int, ...] = (0, 1, 2)
OBJECTIVES: tuple[str, ...] = ("score",)
SAMPLER: Sampler = "tpe"


def suggest(trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe:
    """One share of T2I from none to all, in steps of a twentieth."""
    return vary(base, _tasks(trial.suggest_float("t2i_share", 0.0, 1.0, step=0.05)))
