"""Which prompts should the student see? The paper's study 1 (E1 to E5), and what its fixed iterations left open.

E1 to E5 train for the same number of updates, so a set twice as large shows each prompt half as often. The arms
`E4-passes` and `E5-passes` train twice and three times as long: as many passes a prompt as E1, if the categories are of
equal size. T2I alone, as in the paper; Editing-Bench then measures zero-shot editing.
"""

from __future__ import annotations

import optuna

from datamodules.openmoji import CATEGORIES
from studies.study import Differences, Sampler, Times, vary
from workbench.recipe.config import Recipe

QUESTION = "Does adding data to cover the target hurt a few-step student, and is it the passes per prompt or the mix?"

LANDSCAPE, PORTRAIT, TEXT = CATEGORIES["t2i"]


def composition(**weights: float) -> Differences:
    """T2I alone with these weights of its categories, which need not sum to 1."""
    total = sum(weights.values())
    shares = {name: round(weight / total, 9) for name, weight in weights.items() if weight}
    return {"mixture": {"tasks": {"t2i": 1.0}, "categories": {"t2i": shares}}}


def text_share(share: float) -> Differences:
    """This share of text, the rest in equal parts for the other two categories."""
    return composition(landscape=(1 - share) / 2, portrait=(1 - share) / 2, text=share)


E4, E5 = text_share(0.0), composition(landscape=1, portrait=1, text=1)
ARMS: dict[str, Differences] = {
    "E1-landscape": composition(landscape=1),
    "E2-portrait": composition(portrait=1),
    "E3-text": composition(text=1),
    "E4-landscape-portrait": E4,
    "E5-all": E5,
    # Beyond the paper: passes a prompt held fixed, and shares of text between E4 (0 %), E5 (33 %) and E3 (100 %).
    "E4-passes": {**E4, "trainer": {"updates": Times(2)}},
    "E5-passes": {**E5, "trainer": {"updates": Times(3)}},
    "text-10": text_share(0.1),
    "text-25": text_share(0.25),
    "text-50": text_share(0.5),
}
SEEDS: tuple[int, ...] = (0, 1, 2)
OBJECTIVES: tuple[str, ...] = ("t2i",)
SAMPLER: Sampler = "tpe"


def suggest(trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe:
    """A weight for each category from 0 to 1, normalised; all at 0 mean equal shares."""
    weights = {name: trial.suggest_float(f"weight_{name}", 0.0, 1.0, step=0.1) for name in CATEGORIES["t2i"]}
    return vary(base, composition(**(weights if any(weights.values()) else dict.fromkeys(weights, 1.0))))
