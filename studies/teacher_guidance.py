"""Which teacher should guide which step? The paper's study 2, and the tables lambda[k, m](c) that it does not report.

All arms that mix give the specialists half of the weight on average over the steps (`specialist-alone` all of it), so
that they differ in when, not in how much. A category's specialist is the one trained for it; landscapes have none and
stay with the base teacher, except in the unrouted arm. The recipe names the files under `teachers.specialists`; an arm
names the specialists `portrait`, `text` and `editing` alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import optuna

from studies.study import Sampler, vary
from workbench.recipe.config import Recipe

QUESTION = (
    "Do specialists guide a student better than the base teacher, at which of its steps, and does it stay stable?"
)

ROUTES = {"t2i/portrait": "portrait", "t2i/text": "text", "edit": "editing"}
"""Condition class -> its specialist; every other class is the base teacher's."""
SPECIALISTS = tuple(ROUTES.values())
BASE_ALONE = "guidance.tables={}"


def routed(kind: str, *, late: float, early: float = 0.0, at: int | None = None) -> list[str]:
    """Overrides: each class of ROUTES goes from `early` to `late` weight of its own specialist."""
    classes = {
        name: _schedule(kind, {specialist: late}, {specialist: early}, at) for name, specialist in ROUTES.items()
    }
    return _guidance({**classes, "default": "{kind: constant}"})


def unrouted(kind: str, *, late: float, early: float = 0.0, at: int | None = None) -> list[str]:
    """Overrides: every class alike goes from `early` to `late` weight of all specialists in equal parts."""
    last, first = ({name: weight / len(SPECIALISTS) for name in SPECIALISTS} for weight in (late, early))
    return _guidance({"default": _schedule(kind, last, first, at)})


def _schedule(kind: str, late: Mapping[str, float], early: Mapping[str, float], at: int | None) -> str:
    words = [f"kind: {kind}", f"weights: {_mix(late)}"]
    if kind != "constant" and any(early.values()):
        words.append(f"early: {_mix(early)}")
    if kind == "switch":
        words.append(f"at: {at}")
    return f"{{{', '.join(words)}}}"


def _mix(weights: Mapping[str, float]) -> str:
    return f"{{{', '.join(f'{name}: {weight:.6f}' for name, weight in weights.items())}}}"


def _guidance(classes: Mapping[str, str]) -> list[str]:
    schedules = ", ".join(f"{name}: {schedule}" for name, schedule in classes.items())
    return [BASE_ALONE, f"guidance.schedules={{{schedules}}}"]


ARMS: dict[str, list[str]] = {
    "base-alone": [BASE_ALONE, "guidance.schedules={}"],
    "step-wise": routed("switch", at=2, late=1.0),
    "specialist-alone": routed("constant", late=1.0),
    # Beyond the paper: the same dose at every step, the other way round, gliding, and for every class alike.
    "constant-mix": routed("constant", late=0.5),
    "base-late": routed("switch", at=2, early=1.0, late=0.0),
    "ramp": routed("ramp", late=1.0),
    "step-wise-unrouted": unrouted("switch", at=2, late=1.0),
}
SEEDS: tuple[int, ...] = (0, 1, 2)
OBJECTIVES: tuple[str, ...] = ("score",)
SAMPLER: Sampler = "tpe"


def suggest(trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe:
    """The kind of schedule, its weights in tenths, its switch step, and whether classes go to their own specialist."""
    return vary(base, draw_guidance(trial, base.dmd.student_steps))


def draw_guidance(trial: optuna.trial.BaseTrial, num_steps: int) -> list[str]:
    """A drawn schedule as overrides, for `num_steps` student steps."""
    kind = trial.suggest_categorical("guidance", ["constant", "switch", "ramp", "cosine"])
    late = trial.suggest_float("late_weight", 0.0, 1.0, step=0.1)
    # What a schedule does not read is drawn all the same: importance and NSGA-II want one space for all trials.
    early = trial.suggest_float("early_weight", 0.0, 1.0, step=0.1)
    at = trial.suggest_int("switch_step", 1, max(1, num_steps - 1))
    if num_steps == 1:
        kind = "constant"
    mixed = routed if trial.suggest_categorical("routed", [True, False]) else unrouted
    return mixed(str(kind), late=late, early=early, at=at)
