"""The runs of a screening: every factor of a study at one of its two levels, as the design says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from studies.analysis.screening import design
from studies.study import Differences, Factors, Times
from workbench.common.errors import UserError


def runs_of(factors: Factors) -> dict[str, Differences]:
    """Name -> differences of each run of the design, in its order: `run-01`, `run-02`...

    Raises: UserError if two factors set one key.
    """
    setters: dict[tuple[str, str], str] = {}
    for factor, levels in factors.items():
        for key in {key for level in levels for key in _keys(level)}:
            if setters.setdefault(key, factor) != factor:
                raise UserError(
                    f"the factors {setters[key]!r} and {factor!r} both set {'.'.join(key)}: what one of them does "
                    "would depend on the other"
                )
    runs: dict[str, Differences] = {}
    for number, row in enumerate(design(len(factors)), start=1):
        merged: dict[str, Any] = {}
        for level, (low, high) in zip(row, factors.values(), strict=True):
            for section, values in (high if level > 0 else low).items():
                nested = isinstance(values, Mapping)
                merged[section] = {**merged.get(section, {}), **values} if nested else values
        runs[f"run-{number:02d}"] = merged
    return runs


def _keys(level: Differences) -> list[tuple[str, str]]:
    """Sections of a recipe with their keys; what is no section has an empty one."""
    return [
        (section, str(key))
        for section, values in level.items()
        for key in (values if isinstance(values, Mapping) else [""])
    ]


def level_text(level: Differences) -> str:
    """A level in one line: `optim.student_lr x 2`; the base's recipe where it sets nothing."""
    parts = []
    for section, values in level.items():
        for key, value in values.items() if isinstance(values, Mapping) else [("", values)]:
            shown = f" x {value.factor:g}" if isinstance(value, Times) else f"={value}"
            parts.append(f"{section}.{key}".rstrip(".") + shown)
    return ", ".join(parts) or "as the base"
