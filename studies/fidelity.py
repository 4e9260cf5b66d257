"""Do proxies of other sizes order recipes alike? Twelve recipes drawn from the space of `search`, once and for all,
before any of them was run: seed 14 of Optuna's random sampler, four figures a value, written down here. The same file
is run on every proxy; `python -m studies.analysis.fidelity FOLDER FOLDER` compares what they found.
"""

from __future__ import annotations

import optuna

from studies.search import drawn
from studies.study import Differences

QUESTION = "Does the world tell recipes apart, and do proxies of other sizes order them alike?"

_SEED = 14
_NUM_STEPS = 4
_NAMES = (
    "text_share",
    "t2i_share",
    "guidance",
    "late_weight",
    "early_weight",
    "switch_step",
    "routed",
    "cfg_scale",
    "student_lr_factor",
    "fake_lr_factor",
    "fake_updates",
    "beta1",
    "renoise_shift",
)
_DRAWN: tuple[tuple[str | float, ...], ...] = (
    (0.5, 0.7, "cosine", 0.5, 0.3, 2, False, 2.5, 1.114, 0.1276, 4, 0.5, 4.781),
    (0.8, 0.8, "cosine", 0.2, 0.7, 2, False, 5.0, 0.315, 1.662, 1, 0.5, 7.858),
    (0.4, 0.2, "switch", 0.3, 1.0, 1, False, 5.0, 0.4066, 0.261, 1, 0.5, 1.257),
    (0.5, 0.5, "constant", 0.5, 0.1, 1, True, 4.0, 0.3066, 0.3285, 1, 0.9, 1.561),
    (0.4, 0.5, "switch", 1.0, 0.0, 3, True, 3.5, 0.8333, 0.8351, 5, 0.0, 2.492),
    (0.8, 0.6, "ramp", 0.4, 0.0, 3, True, 2.0, 0.5403, 0.1281, 4, 0.5, 2.68),
    (0.8, 0.6, "ramp", 0.0, 0.2, 3, True, 2.5, 0.7839, 1.713, 1, 0.0, 1.311),
    (0.2, 0.9, "cosine", 0.9, 0.4, 3, False, 3.0, 0.5416, 1.014, 1, 0.9, 1.841),
    (0.2, 0.2, "constant", 0.4, 0.4, 2, True, 3.0, 0.9833, 0.3029, 4, 0.5, 2.952),
    (0.6, 0.7, "switch", 0.3, 0.4, 2, True, 5.0, 1.307, 0.6464, 5, 0.5, 4.862),
    (0.6, 0.7, "constant", 0.4, 0.0, 3, True, 2.0, 0.463, 0.3128, 1, 0.5, 4.237),
    (0.1, 0.8, "cosine", 0.3, 0.3, 1, True, 1.5, 1.727, 3.232, 1, 0.9, 3.258),
)


def _recipe(values: tuple[str | float, ...]) -> Differences:
    trial = optuna.trial.FixedTrial(dict(zip(_NAMES, values, strict=True)))
    return drawn(trial, _NUM_STEPS, guided=True)


ARMS: dict[str, Differences] = {f"drawn-{place:02d}": _recipe(values) for place, values in enumerate(_DRAWN, start=1)}
