"""Schedules of weights from the early to the late student steps; plain numbers, no tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Kind = Literal["constant", "switch", "ramp", "cosine"]


def late_share(kind: Kind, num_steps: int, at: int | None = None) -> list[float]:
    """s_k in [0, 1] of each student step k, so that row k is (1 - s_k) early + s_k late.

    constant: s_k = 1. switch: s_k = [k >= at]. ramp: s_k = k / (K - 1). cosine: s_k = (1 - cos(pi k / (K - 1))) / 2.
    A student of one step is at the late end.
    """
    fractions = [k / (num_steps - 1) for k in range(num_steps)] if num_steps > 1 else [1.0]
    match kind:
        case "constant":
            return [1.0] * num_steps
        case "switch":
            assert at is not None, "a switch needs its step"
            return [float(k >= at) for k in range(num_steps)]
        case "ramp":
            return fractions
        case "cosine":
            return [0.5 * (1 - math.cos(math.pi * fraction)) for fraction in fractions]


def blend(early: Sequence[float], late: Sequence[float], shares: Sequence[float]) -> list[list[float]]:
    """The rows (1 - s_k) early + s_k late: K rows of M + 1 weights."""
    return [[(1 - s) * a + s * b for a, b in zip(early, late, strict=True)] for s in shares]
