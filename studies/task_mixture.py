"""How much editing data should a unified few-step student see?"""

from __future__ import annotations

import optuna

from studies.seam import Sampler, vary
from workbench.config import Recipe

QUESTION = "Does training on edits cost the student generation, and which ratio of T2I to editing serves both best?"

ARMS: dict[str, list[str]] = {
    "t2i-only": ["mixture.tasks={t2i: 1.0}"],
    "7:3": ["mixture.tasks={t2i: 0.7, edit: 0.3}"],
    "5:5": ["mixture.tasks={t2i: 0.5, edit: 0.5}"],
}

OBJECTIVES: tuple[str, ...] = ("score",)
SAMPLER: Sampler = "tpe"


def suggest(trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe:
    """One share of T2I from a fifth to all, in steps of a twentieth."""
    share = trial.suggest_float("t2i_share", 0.2, 1.0, step=0.05)
    return vary(base, [f"mixture.tasks={{t2i: {share:.2f}, edit: {1 - share:.2f}}}"])
