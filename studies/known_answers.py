"""Does this world give the answers that are known? Each arm breaks one thing that distribution matching is known to
need; what it does to a student is said here, before it is run, and the report holds it against what was measured.

"noisier" is read from milestones: run it with `evaluation.milestone_cases` and a `trainer.sample_every` that gives
twenty of them. The base recipe must guide its teachers (`teachers.cfg_scale` above 1). What a slow fake score damages
is mended once it has caught up, by 600 updates on the tiny model (LOG.md): 200 to 300 show it.
"""

from __future__ import annotations

from studies.study import Differences, Times

QUESTION = "Does the world give the answers that are known of distribution matching?"

_FIVE: Differences = {"fake_updates": 5}

ARMS: dict[str, Differences] = {
    "reference": {"dmd": _FIVE},
    "no-cfg": {"dmd": _FIVE, "teachers": {"cfg_scale": 1.0}},
    "one-fake-update": {"dmd": {"fake_updates": 1}},
    "slow-fake-score": {"dmd": _FIVE, "optim": {"fake_lr": Times(0.1)}},
    "much-slower-fake-score": {"dmd": _FIVE, "optim": {"fake_lr": Times(0.01)}},
    "no-average": {"dmd": _FIVE, "optim": {"ema_decay": 0.0}},
    "one-step": {"dmd": {**_FIVE, "student_steps": 1, "student_times": []}},
    "first-step-instead": {"dmd": {**_FIVE, "first_step_weight": 1.0, "first_step": "instead"}},
}
# The paper of each: DMD2 (arXiv 2405.14867) for the fake score's updates and rate, DP-DMD for the first step's variety.
EXPECTS: dict[str, str] = {
    "no-cfg": "score worse",
    "one-fake-update": "noisier",
    "slow-fake-score": "score worse",
    "much-slower-fake-score": "score worse",
    "no-average": "noisier",
    "one-step": "score worse",
    "first-step-instead": "variety better",
}
