"""Which prompts should the student see? The paper's study 1 (E1 to E5), and what its fixed iterations left open.

E1 to E5 train for the same number of updates, so a set twice as large shows each prompt half as often. Updates, passes
and the number of prompts are told apart by arms that fix two of them: `E4-passes` and `E5-passes` train two and three
times as long on two and three times the prompts, `E1-x2` and `E1-x3` as long on E1's, `E4-small` and `E5-small` as
long as E1 on as many prompts as E1 has (all for categories of equal size). `prompts-N` draw N prompts of all
categories, anew for every seed. T2I alone, as in the paper; Editing-Bench then measures zero-shot editing.
"""

from __future__ import annotations

from typing import Any

import optuna

from datamodules.openmoji import CATEGORIES
from studies.study import Differences, Times, vary
from workbench.recipe.config import Recipe

QUESTION = "Does adding data to cover the target hurt a few-step student: is it the passes, the prompts or the mix?"


def composition(**weights: float) -> dict[str, Any]:
    """The mixture of T2I alone with these weights of its categories, which need not sum to 1."""
    total = sum(weights.values())
    shares = {name: round(weight / total, 9) for name, weight in weights.items() if weight}
    return {"tasks": {"t2i": 1.0}, "categories": {"t2i": shares}}


def _text(share: float) -> dict[str, Any]:
    """This share of text, the rest in equal parts for the other two categories."""
    return composition(landscape=(1 - share) / 2, portrait=(1 - share) / 2, text=share)


def _longer(factor: float) -> Differences:
    return {"trainer": {"updates": Times(factor)}}


_E1, _E4, _E5 = composition(landscape=1), _text(0.0), composition(landscape=1, portrait=1, text=1)
ARMS: dict[str, Differences] = {
    "E1-landscape": {"mixture": _E1},
    "E2-portrait": {"mixture": composition(portrait=1)},
    "E3-text": {"mixture": composition(text=1)},
    "E4-landscape-portrait": {"mixture": _E4},
    "E5-all": {"mixture": _E5},
    # Beyond the paper: updates, passes and prompts apart.
    "E1-x2": {"mixture": _E1, **_longer(2)},
    "E1-x3": {"mixture": _E1, **_longer(3)},
    "E4-passes": {"mixture": _E4, **_longer(2)},
    "E5-passes": {"mixture": _E5, **_longer(3)},
    "E4-small": {"mixture": {**_E4, "prompt_share": 0.5}},
    "E5-small": {"mixture": {**_E5, "prompt_share": 1 / 3}},
    # Shares of text between E4 (0 %), E5 (33 %) and E3 (100 %).
    "text-10": {"mixture": _text(0.1)},
    "text-25": {"mixture": _text(0.25)},
    "text-50": {"mixture": _text(0.5)},
    "text-75": {"mixture": _text(0.75)},
    # How many prompts a student needs.
    "prompts-50": {"mixture": {**_E5, "prompts": 50}},
    "prompts-200": {"mixture": {**_E5, "prompts": 200}},
    "prompts-800": {"mixture": {**_E5, "prompts": 800}},
    "prompts-3200": {"mixture": {**_E5, "prompts": 3200}},
}
OBJECTIVES = ("t2i",)


def suggest(trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe:
    """A weight for each category from 0 to 1, normalised; all at 0 mean equal shares."""
    weights = {name: trial.suggest_float(f"weight_{name}", 0.0, 1.0, step=0.1) for name in CATEGORIES["t2i"]}
    chosen = weights if any(weights.values()) else dict.fromkeys(weights, 1.0)
    return vary(base, {"mixture": composition(**chosen)})
