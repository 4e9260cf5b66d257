"""What the `dmd` section says about time: the student's grid, and which noise levels its steps are compared at."""

from __future__ import annotations

from workbench.common.errors import UserError
from workbench.method import rollout
from workbench.recipe.config import Dmd


def student_sampling(options: Dmd) -> rollout.Sampling:
    """The student's steps, unguided, in the rollout that it is trained in; its `grid()` is (K + 1,)."""
    times, stochastic = tuple(options.student_times), options.rollout == "renoise"
    return rollout.Sampling(options.student_steps, options.student_shift, times=times, stochastic=stochastic)


def renoise_intervals(options: Dmd) -> list[tuple[float, float]]:
    """[low, high] of the re-noising time at each student step.

    Raises:
        UserError: an interval is empty.
    """
    return _intervals(options, options.renoise_tied, f"dmd.renoise_tied={options.renoise_tied}")


def augmentation_intervals(options: Dmd) -> list[tuple[float, float]]:
    """[low, high] of the noise level of the decoupled guidance term at each student step.

    Raises:
        UserError: an interval is empty.
    """
    return _intervals(options, "below", "dmd.decoupled=true")


def _intervals(options: Dmd, tied: rollout.Tied, option: str) -> list[tuple[float, float]]:
    times = student_sampling(options).grid().tolist()
    intervals = [
        rollout.renoise_interval(tied, times, step, options.renoise_min, options.renoise_max)
        for step in range(len(times) - 1)
    ]
    remedy = "raise dmd.renoise_max or lower" if tied == "above" else "lower dmd.renoise_min or raise"
    for step, (low, high) in enumerate(intervals):
        if not low < high:
            raise UserError(
                f"{option} leaves student step {step} (t = {times[step]:g} to {times[step + 1]:g}) no re-noising time "
                f"within [{options.renoise_min}, {options.renoise_max}]: {remedy} dmd.student_shift, or take other "
                "dmd.student_times"
            )
    return intervals
