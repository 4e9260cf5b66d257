"""Guidance sections of recipes, as studies set or draw them: which specialist has how much weight at which step.

A category's specialist is the one trained for it; landscapes have none. The recipe names the files under
`teachers.specialists`; a section names the specialists `portrait`, `text` and `editing` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna

from studies.study import Differences

ROUTES = {"t2i/portrait": "portrait", "t2i/text": "text", "edit": "editing"}
"""Condition class -> its specialist; every other class is the base teacher's."""
SPECIALISTS = tuple(ROUTES.values())
Weights = Mapping[str, float]


def routed(kind: str, *, late: float, early: float = 0.0, at: float | None = None) -> Differences:
    """The guidance section in which each class of ROUTES goes from `early` to `late` weight of its own specialist."""
    schedules = {
        name: _schedule(kind, {specialist: late}, {specialist: early}, at) for name, specialist in ROUTES.items()
    }
    return {"tables": {}, "schedules": {**schedules, "default": {"kind": "constant"}}}


def unrouted(kind: str, *, late: float, early: float = 0.0, at: float | None = None) -> Differences:
    """The guidance section in which every class goes from `early` to `late` weight of all specialists in equal
    parts."""
    last, first = ({name: weight / len(SPECIALISTS) for name in SPECIALISTS} for weight in (late, early))
    return {"tables": {}, "schedules": {"default": _schedule(kind, last, first, at)}}


def _schedule(kind: str, late: Weights, early: Weights, at: float | None) -> dict[str, Any]:
    """A schedule with only the keys that its kind reads."""
    schedule: dict[str, Any] = {"kind": kind, "weights": _rounded(late)}
    if kind != "constant" and any(early.values()):
        schedule["early"] = _rounded(early)
    if kind == "switch":
        schedule["at"] = at
    return schedule


def _rounded(weights: Weights) -> dict[str, float]:
    return {name: round(weight, 6) for name, weight in weights.items()}


BASE_ALONE: Differences = {"tables": {}, "schedules": {}}
STEP_WISE = routed("switch", at=0.5, late=1.0)
"""The paper's: the base teacher for the first half of the steps, the specialists for the second."""


def draw_guidance(trial: optuna.trial.BaseTrial, num_steps: int) -> Differences:
    """The guidance section with a drawn schedule, for `num_steps` student steps: its kind, its weights in tenths, its
    switch step, and whether classes go to their own specialist."""
    kind = trial.suggest_categorical("guidance", ["constant", "switch", "ramp", "cosine"])
    late = trial.suggest_float("late_weight", 0.0, 1.0, step=0.1)
    # Values that a schedule does not read are drawn too: importance and NSGA-II need one space for all trials.
    early = trial.suggest_float("early_weight", 0.0, 1.0, step=0.1)
    at = trial.suggest_int("switch_step", 1, max(1, num_steps - 1))
    if num_steps == 1:
        kind = "constant"
    mixed = routed if trial.suggest_categorical("routed", [True, False]) else unrouted
    return mixed(str(kind), late=late, early=early, at=at)
