"""The guidance section of a recipe as lambda tables: schedules resolved, explicit tables as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workbench.common.errors import UserError, nearest
from workbench.method import schedules
from workbench.recipe.config import Guidance, Schedule

ROUNDING = 1e-9
"""What is left of 1 by rounding alone; a teacher with any weight is run."""


def tables(options: Guidance, *, num_steps: int, specialists: Sequence[str]) -> dict[str, list[list[float]]]:
    """For each class K rows over the base teacher and `specialists`; `guidance.lambda_table` checks and routes them.

    Raises:
        UserError: a schedule names an unknown specialist, or switches outside the student's steps.
    """
    scheduled = {
        name: _rows(f"guidance.schedules.{name}", schedule, num_steps, specialists)
        for name, schedule in options.schedules.items()
    }
    return {**options.tables, **scheduled}


def _rows(where: str, schedule: Schedule, num_steps: int, specialists: Sequence[str]) -> list[list[float]]:
    at = schedule.at if schedule.at is None or schedule.at >= 1 else schedule.at * num_steps
    if at is not None and not 0 < at < num_steps:
        raise UserError(
            f"{where}.at must lie in [1, {num_steps - 1}] for {num_steps} student steps, got {at:g}; a share of the "
            "steps, 0.5, suits any number of them"
        )
    early, late = (
        _mix(f"{where}.{key}", weights, specialists)
        for key, weights in (("early", schedule.early), ("weights", schedule.weights))
    )
    return schedules.blend(early, late, schedules.late_share(schedule.kind, num_steps, at))


def _mix(where: str, weights: Mapping[str, float], specialists: Sequence[str]) -> list[float]:
    """Weights of the base teacher and of every specialist."""
    for name in weights:
        if name not in specialists:
            hint, known = nearest(name, specialists), ", ".join(specialists) or "none"
            raise UserError(f"{where} names {name!r}{hint}, but teachers.specialists has {known}: add it there")
    of_specialists = [float(weights.get(name, 0.0)) for name in specialists]
    left = 1 - sum(of_specialists)
    return [left if left > ROUNDING else 0.0, *of_specialists]
