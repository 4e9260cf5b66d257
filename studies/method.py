"""Which options of the method are worth having? One arm for each that no other study has, at the value that its source
recommends or, where there is none, at a moderate one. The base recipe must guide its teachers
(`teachers.cfg_scale` above 1): guidance is what `decoupled` and `cfg-rescale` change."""

from __future__ import annotations

from typing import Any

from studies.study import Differences

QUESTION = "Which options of distribution matching improve a few-step student, one at a time?"


def _dmd(**options: Any) -> Differences:
    return {"dmd": options}


ARMS: dict[str, Differences] = {
    "base": {},
    "fake-per-step": _dmd(fake_per_step=True),
    "decoupled": _dmd(decoupled=True),
    "renoise-tied-below": _dmd(renoise_tied="below"),
    "renoise-tied-above": _dmd(renoise_tied="above"),
    "renoise-rollout": _dmd(rollout="renoise"),
    "first-step-added": _dmd(first_step_weight=0.25),
    "first-step-instead": _dmd(first_step_weight=1.0, first_step="instead"),
    "data-weight": _dmd(data_weight=0.1),
    "adversarial": _dmd(adversarial_weight=0.005),
    "cfg-rescale": {"teachers": {"cfg_rescale": 1.0}},
}
