"""Which teacher should guide which step? The paper's study 2, and the tables lambda[k, m](c) that it does not report.

All arms that mix give the specialists half of the weight on average over the steps (`specialist-alone` all of it), so
that they differ in when, not in how much. A category's specialist is the one trained for it; landscapes have none and
stay with the base teacher, except in the unrouted arm. The recipe names the files under `teachers.specialists`; an arm
names the specialists `portrait`, `text` and `editing` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna

from studies.study import Differences, Sampler, vary
from workbench.recipe.config import Recipe

QUESTION = (
    "Do specialists guide a student better than the base teacher, at which of its steps, and does it stay stable?"
)

ROUTES = {"t2i/portrait": "portrait", "t2i/text": "text", "edit": "editing"}
"""Condition class -> its specialist; every other class is the base teacher's."""
SPECIALISTS = tuple(ROUTES.values())
Weights = Mapping[str, float]


def routed(kind: str, *, late: float, early: float = 0.0, at: int | None = None) -> Differences:
    """The guidance section in which each class of ROUTES goes from `early` to `late` weight of its own specialist."""
    schedules = {
        name: _schedule(kind, {specialist: late}, {specialist: early}, at) for name, specialist in ROUTES.items()
    }
    return {"tables": {}, "schedules": {**schedules, "default": {"kind": "constant"}}}


def unrouted(kind: str, *, late: float, early: float = 0.0, at: int | None = None) -> Differences:
    """The guidance section in which every class goes from `early` to `late` weight of all specialists in equal
    parts."""
    last, first = ({name: weight / len(SPECIALISTS) for name in SPECIALISTS} for weight in (late, early))
    return {"tables": {}, "schedules": {"default": _schedule(kind, last, first, at)}}


def _schedule(kind: str, late: Weights, early: Weights, at: int | None) -> dict[str, Any]:
    """A schedule with only the keys that its kind reads."""
    schedule: dict[str, Any] = {"kind": kind, "weights": _rounded(late)}
    if kind != "constant" and any(early.values()):
        schedule["early"] = _rounded(early)
    if kind == "switch":
        schedule["at"] = at
    return schedule


def _rounded(weights: Weights) -> dict[str, float]:
    return {name: round(weight, 6) for name, weight in weights.items()}


SCHEDULES: dict[str, Differences] = {
    "base-alone": {"tables": {}, "schedules": {}},
    "step-wise": routed("switch", at=2, late=1.0),
    "specialist-alone": routed("constant", late=1.0),
    # Beyond the paper: the same share at every step, early instead of late, gradually, and for every class.
    "constant-mix": routed("constant", late=0.5),
    "base-late": routed("switch", at=2, early=1.0, late=0.0),
    "ramp": routed("ramp", late=1.0),
    "step-wise-unrouted": unrouted("switch", at=2, late=1.0),
}
ARMS: dict[str, Differences] = {name: {"guidance": section} for name, section in SCHEDULES.items()}
SEEDS: tuple[int, ...] = (0, 1, 2)
OBJECTIVES: tuple[str, ...] = ("score",)
SAMPLER: Sampler = "tpe"


def suggest(trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe:
    """The kind of schedule, its weights in tenths, its switch step, and whether classes go to their own specialist."""
    return vary(base, {"guidance": draw_guidance(trial, base.dmd.student_steps)})


def draw_guidance(trial: optuna.trial.BaseTrial, num_steps: int) -> Differences:
    """The guidance section with a drawn schedule, for `num_steps` student steps."""
    kind = trial.suggest_categorical("guidance", ["constant", "switch", "ramp", "cosine"])
    late = trial.suggest_float("late_weight", 0.0, 1.0, step=0.1)
    # Values that a schedule does not read are drawn too: importance and NSGA-II need one space for all trials.
    early = trial.suggest_float("early_weight", 0.0, 1.0, step=0.1)
    at = trial.suggest_int("switch_step", 1, max(1, num_steps - 1))
    if num_steps == 1:
        kind = "constant"
    mixed = routed if trial.suggest_categorical("routed", [True, False]) else unrouted
    return mixed(str(kind), late=late, early=early, at=at)
