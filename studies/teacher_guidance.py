"""Which teacher should guide which step? The paper's study 2, and the tables lambda[k, m](c) that it does not report.

The arms of one dose, half of the weight averaged over the steps, differ in when the specialists have it; other arms
differ in how much. Switches are at a share of the steps, so that students of fewer steps have them too. A fake score of
the mixture over steps has no fixed point at step-wise teachers, so constant and step-wise guidance are compared under a
fake score that knows the step as well. A collapse takes time: the last arms train for the paper's 2,000 updates, at the
base's rates and at twice these.
"""

from __future__ import annotations

import optuna

from studies.guidance_sections import BASE_ALONE, STEP_WISE, draw_guidance, routed, unrouted
from studies.study import Differences, Times, vary
from workbench.recipe.config import Recipe

QUESTION = (
    "Do specialists guide a student better than the base teacher, at which of its steps, and does it stay stable?"
)

_SPECIALISTS_ALONE = routed("constant", late=1.0)
_MIX = routed("constant", late=0.5)
_PER_STEP: Differences = {"dmd": {"fake_per_step": True}}
_LONG: Differences = {"trainer": {"updates": 2000, "sample_every": 250}}
_HOT: Differences = {**_LONG, "optim": {"student_lr": Times(2), "fake_lr": Times(2)}}


def _arm(guidance: Differences, more: Differences | None = None) -> Differences:
    return {"guidance": guidance, **(more or {})}


ARMS: dict[str, Differences] = {
    "base-alone": _arm(BASE_ALONE),
    "step-wise": _arm(STEP_WISE),
    "specialist-alone": _arm(_SPECIALISTS_ALONE),
    # Beyond the paper: every class under all specialists; doses at every step; other switches.
    "specialist-alone-unrouted": _arm(unrouted("constant", late=1.0)),
    "mix-25": _arm(routed("constant", late=0.25)),
    "constant-mix": _arm(_MIX),
    "mix-75": _arm(routed("constant", late=0.75)),
    "switch-at-25": _arm(routed("switch", at=0.25, late=1.0)),
    "switch-at-75": _arm(routed("switch", at=0.75, late=1.0)),
    # The dose of step-wise: early instead of late, on every second step, gradually, and for every class.
    "base-late": _arm(routed("switch", at=0.5, early=1.0, late=0.0)),
    "alternating": _arm(routed("alternate", late=1.0)),
    "ramp": _arm(routed("ramp", late=1.0)),
    "step-wise-unrouted": _arm(unrouted("switch", at=0.5, late=1.0)),
    "step-wise-per-step": _arm(STEP_WISE, _PER_STEP),
    "constant-mix-per-step": _arm(_MIX, _PER_STEP),
    # Time to collapse.
    "base-alone-long": _arm(BASE_ALONE, _LONG),
    "step-wise-long": _arm(STEP_WISE, _LONG),
    "specialist-alone-long": _arm(_SPECIALISTS_ALONE, _LONG),
    "base-alone-hot": _arm(BASE_ALONE, _HOT),
    "step-wise-hot": _arm(STEP_WISE, _HOT),
    "specialist-alone-hot": _arm(_SPECIALISTS_ALONE, _HOT),
}
# Fast starters may be those that collapse.
PRUNES = False


def suggest(trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe:
    """The kind of schedule, its weights in tenths, its switch step, and whether classes go to their own specialist."""
    return vary(base, {"guidance": draw_guidance(trial, base.dmd.student_steps)})
