"""How much editing should a unified few-step student see? The paper's study 3, extended to editing alone.

All arms are guided step-wise, as the paper's go on from its study 2. They share one batch size, so more edits mean less
generation; the arms `t2i-half` and `...-half` hold the T2I samples at those of `5:5` and add edits to them, which tells
help by edits from harm by less generation.
"""

from __future__ import annotations

import optuna

from studies.guidance_sections import STEP_WISE
from studies.study import Differences, Times, vary
from workbench.recipe.config import Recipe

QUESTION = (
    "Does training on edits cost the student generation or help it, and which ratio of T2I to editing serves both?"
)


def ratio(t2i: float) -> dict[str, float]:
    """`mixture.tasks` for this share of T2I, to three decimals."""
    return {"t2i": round(t2i, 3), "edit": round(1 - t2i, 3)}


def _arm(t2i: float) -> Differences:
    return {"guidance": STEP_WISE, "mixture": {"tasks": ratio(t2i)}}


def _half(t2i: float) -> Differences:
    """Half of the base's batch is T2I, whatever edits come on top."""
    return {"guidance": STEP_WISE, "mixture": {"tasks": ratio(t2i), "batch_size": Times(0.5 / t2i)}}


ARMS: dict[str, Differences] = {
    "t2i-only": _arm(1.0),
    "9:1": _arm(0.9),
    "7:3": _arm(0.7),
    "5:5": _arm(0.5),
    # Beyond the paper: too little generation; and as much generation in all of them, with 5:5 as one more.
    "3:7": _arm(0.3),
    "1:9": _arm(0.1),
    "edit-only": _arm(0.0),
    "t2i-half": _half(1.0),
    "9:1-half": _half(0.9),
    "7:3-half": _half(0.7),
    "3:7-half": _half(0.3),
}


def suggest(trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe:
    """One share of T2I from none to all, in steps of a twentieth."""
    return vary(base, _arm(trial.suggest_float("t2i_share", 0.0, 1.0, step=0.05)))
