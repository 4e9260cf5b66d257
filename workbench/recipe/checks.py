"""Checks of a recipe's values: each raises `UserError` with the key, the value and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass

from workbench.common.errors import UserError
from workbench.common.outside import CONTROL, LARGEST_WHOLE

_LONGEST_VALUE = 4096


def require(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)


def bounded(name: str, value: object) -> None:
    """Every number below `value` is finite and of a size that can be counted to, every text of a length that can be
    shown: no value of a recipe means anything beyond."""
    children: list[tuple[object, object]] = []
    match value:
        case float():
            require(math.isfinite(value), f"{name} must be a finite number, got {value}")
        case int():
            require(abs(value) <= LARGEST_WHOLE, f"{name} must lie within +-{LARGEST_WHOLE}, got {value}")
        case str():
            require(len(value) <= _LONGEST_VALUE, f"{name} has {len(value):,} characters, at most {_LONGEST_VALUE:,}")
            require(not CONTROL.search(value), f"{name} holds a character that no name or address has: {value!r}")
        case Mapping():
            children = list(value.items())
        case list() | tuple():
            children = list(enumerate(value))
        case _ if is_dataclass(value):
            children = [(item.name, getattr(value, item.name)) for item in fields(value)]
    for key, child in children:
        bounded("", key)
        bounded(f"{name}.{key}".lstrip("."), child)


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
