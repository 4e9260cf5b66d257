"""Which parts of a recipe matter at all? Fourteen factors at two levels in 32 runs, before a search spends its draws on
them: no main effect is confounded with another or with an interaction of two (`studies/analysis/screening.py`)."""

from __future__ import annotations

from studies.data_composition import composition
from studies.guidance_sections import BASE_ALONE, STEP_WISE
from studies.study import Differences, Times
from studies.task_mixture import ratio

QUESTION = "Which parts of the recipe move the score, and which may stay as they are?"


def _text(share: float) -> Differences:
    rest = (1 - share) / 2
    return {"mixture": {"categories": composition(landscape=rest, portrait=rest, text=share)["categories"]}}


FACTORS: dict[str, tuple[Differences, Differences]] = {
    "text share": (_text(0.1), _text(0.6)),
    "T2I share": ({"mixture": {"tasks": ratio(0.3)}}, {"mixture": {"tasks": ratio(0.7)}}),
    "guidance": ({"guidance": BASE_ALONE}, {"guidance": STEP_WISE}),
    "CFG": ({"teachers": {"cfg_scale": 2.0}}, {"teachers": {"cfg_scale": 4.5}}),
    "student's rate": ({"optim": {"student_lr": Times(0.5)}}, {"optim": {"student_lr": Times(2)}}),
    "fake score's rate": ({"optim": {"fake_lr": Times(0.5)}}, {"optim": {"fake_lr": Times(2)}}),
    "beta1": ({"optim": {"beta1": 0.0}}, {"optim": {"beta1": 0.9}}),
    "EMA": ({"optim": {"ema_decay": 0.9}}, {"optim": {"ema_decay": 0.99}}),
    "fake updates": ({"dmd": {"fake_updates": 1}}, {"dmd": {"fake_updates": 4}}),
    "re-noising shift": ({"dmd": {"renoise_shift": 1.5}}, {"dmd": {"renoise_shift": 6.0}}),
    "student's shift": ({"dmd": {"student_shift": 2.0}}, {"dmd": {"student_shift": 5.0}}),
    "fake score's samples": ({"dmd": {"fake_samples": "fresh"}}, {"dmd": {"fake_samples": "rollout"}}),
    "fake score knows the step": ({"dmd": {"fake_per_step": False}}, {"dmd": {"fake_per_step": True}}),
    "first-step term": ({"dmd": {"first_step_weight": 0.0}}, {"dmd": {"first_step_weight": 0.25}}),
}
SEEDS = (0,)
