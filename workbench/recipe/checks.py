"""Checks of a recipe's values: each raises `UserError` with the key, the value and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping

from workbench.common.errors import UserError


def require(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)


def positive(section: str, **values: float) -> None:
    for name, value in values.items():
        require(math.isfinite(value) and value > 0, f"{section}.{name} must be above 0, got {value}")


def fraction(section: str, **values: float) -> None:
    for name, value in values.items():
        require(0 <= value <= 1, f"{section}.{name} must lie in [0, 1], got {value}")


def weights_sum_to_one(name: str, weights: Mapping[str, float]) -> None:
    """A mixture: finite, non-negative, summing to 1. An empty mapping means 'as the data come'."""
    for key, value in weights.items():
        require(math.isfinite(value) and value >= 0, f"{name}.{key} must not be negative, got {value}")
    total = sum(weights.values())
    require(
        not weights or abs(total - 1) < 1e-6,
        f"{name} must sum to 1, got {total:g} from {dict(weights)}; divide each weight by {total:g}",
    )
