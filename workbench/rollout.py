"""Time grids, the Euler sampler, and the student's rollout with one graded step.

A velocity is a function (x_t (B, N, C), t (B,)) -> (B, N, C). A grid is (K + 1,) float32 from 1 down to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workbench import flow

Velocity = Callable[[Tensor, Tensor], Tensor]


def time_grid(steps: int, shift: float) -> Tensor:
    """K + 1 times 1 = t_0 > ... > t_K = 0: uniform ones, time-shifted (`flow.shift`)."""
    return flow.shift(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


def explicit_grid(times: Sequence[float]) -> Tensor:
    """Given student times with the terminal 0 appended."""
    return torch.tensor([*times, 0.0], dtype=torch.float32)


def sample(velocity: Velocity, noise: Tensor, times: Tensor) -> Tensor:
    """Euler from t = 1 to 0, len(times) - 1 evaluations: what `FlowMatchEulerDiscreteScheduler` does on this grid."""
    x_t = noise
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        x_t = x_t + (t_next - t) * velocity(x_t, t.expand(len(x_t)))
    return x_t


def student_state(
    velocity: Velocity, noise: Tensor, times: Tensor, step: int, fresh: Sequence[Tensor] | None
) -> Tensor:
    """x_{t_k} that the student meets at `step`, after its own steps 0 .. k - 1 and without gradient.

    fresh: None for the deterministic Euler rollout; one noise (B, N, C) a step for the re-noising one, in which the
    clean prediction is noised again to the next time (consistency-model sampling, DMD2 section 4.4).
    """
    x_t = noise
    with torch.no_grad():
        for k in range(step):
            t = times[k].expand(len(x_t))
            v = velocity(x_t, t)
            if fresh is None:
                x_t = x_t + (times[k + 1] - times[k]) * v
            else:
                x_t = flow.interpolate(flow.velocity_to_x0(x_t, v, t), fresh[k], times[k + 1].expand(len(x_t)))
    return x_t


def student_sample(velocity: Velocity, x_t: Tensor, times: Tensor, step: int) -> Tensor:
    """G: the student's clean prediction from its state at `step`; gradients flow through this evaluation alone."""
    t = times[step].expand(len(x_t))
    return flow.velocity_to_x0(x_t, velocity(x_t, t), t)


def renoise_time(uniform: Tensor, *, shift: float, low: float, high: float) -> Tensor:
    """t ~ p_t for the score comparison: uniform numbers in [0, 1), time-shifted, then scaled into [low, high]."""
    return low + (high - low) * flow.shift(uniform, shift)
