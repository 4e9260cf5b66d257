"""Schedules of weights from the early to the late student steps; plain numbers, no tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Kind = Literal["constant", "switch", "ramp", "cosine", "alternate"]


def late_share(kind: Kind, num_steps: int, at: float | None = None) -> list[float]:
    """s_k in [0, 1] of each student step k, so that row k is (1 - s_k) early + s_k late.

    constant: s_k = 1. switch: s_k = [k >= at], and a step that the switch falls into has its part after it:
    s_k = min(1, max(0, k + 1 - at)), so that the mean over steps is 1 - at / K for any number of steps. ramp:
    s_k = k / (K - 1). cosine: s_k = (1 - cos(pi k / (K - 1))) / 2. alternate: s_k = 1 at every second step, from the
    second on. A ramp, a cosine or an alternation of one step is at the late end.

    at: in steps from 0 to K, not necessarily a whole number.
    """
    fractions = [k / (num_steps - 1) for k in range(num_steps)] if num_steps > 1 else [1.0]
    match kind:
        case "constant":
            return [1.0] * num_steps
        case "switch":
            assert at is not None, "a switch needs its step"
            return [min(1.0, max(0.0, k + 1 - at)) for k in range(num_steps)]
        case "ramp":
            return fractions
        case "cosine":
            return [0.5 * (1 - math.cos(math.pi * fraction)) for fraction in fractions]
        case "alternate":
            return [float(k % 2) for k in range(num_steps)] if num_steps > 1 else [1.0]


def blend(early: Sequence[float], late: Sequence[float], shares: Sequence[float]) -> list[list[float]]:
    """The rows (1 - s_k) early + s_k late: K rows of M + 1 weights."""
    return [[(1 - s) * a + s * b for a, b in zip(early, late, strict=True)] for s in shares]
