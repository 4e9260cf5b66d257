"""The whole recipe at once: composition, lambda, task ratio, guidance scale, and the hyper-parameters that published
recipes disagree on most: both learning rates, the fake score's updates per student update, beta1, shift of the
re-noising time.

Three objectives compete: generation, editing, and variety, how freely a student chooses what prompts leave open, which
may collapse where only scores are maximised.
"""

from __future__ import annotations

import optuna

from datamodules.openmoji import CATEGORIES
from studies.guidance_sections import draw_guidance
from studies.study import Differences, Times, vary
from studies.task_mixture import ratio
from workbench.recipe.config import Recipe

QUESTION = "Which recipes are best at generation, editing and variety together, and which of their parts matter?"

SEEDS = (0,)
OBJECTIVES = ("t2i", "editing", "variety")
# On few trials model-based search finds more of a front than a genetic algorithm does in as many.
SAMPLER = "tpe"


def suggest(trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe:
    """All parts of the recipe; learning rates as multiples of the base's, so that one space suits any size of model."""
    return vary(base, drawn(trial, base.dmd.student_steps, guided=bool(base.teachers.specialists)))


def drawn(trial: optuna.trial.BaseTrial, num_steps: int, *, guided: bool) -> Differences:
    """What the trial draws, for a student of `num_steps`; without specialists (not `guided`) no schedule of them."""
    text = trial.suggest_float("text_share", 0.0, 1.0, step=0.1)
    rest = (1 - text) / (len(CATEGORIES["t2i"]) - 1)
    shares = {name: round(text if name == "text" else rest, 9) for name in CATEGORIES["t2i"]}
    tasks = ratio(trial.suggest_float("t2i_share", 0.1, 0.9, step=0.1))
    guidance = draw_guidance(trial, num_steps) if guided else {}
    cfg_scale = trial.suggest_float("cfg_scale", 1.5, 5.0, step=0.5)
    student_lr = Times(trial.suggest_float("student_lr_factor", 0.25, 4.0, log=True))
    fake_lr = Times(trial.suggest_float("fake_lr_factor", 0.125, 4.0, log=True))
    fake_updates = trial.suggest_int("fake_updates", 1, 5)
    beta1 = trial.suggest_categorical("beta1", [0.0, 0.5, 0.9])
    renoise_shift = trial.suggest_float("renoise_shift", 1.0, 8.0, log=True)
    return {
        "mixture": {"tasks": tasks, "categories": {"t2i": shares}},
        "guidance": guidance,
        "teachers": {"cfg_scale": cfg_scale},
        "optim": {"student_lr": student_lr, "fake_lr": fake_lr, "beta1": beta1},
        "dmd": {"fake_updates": fake_updates, "renoise_shift": renoise_shift},
    }
