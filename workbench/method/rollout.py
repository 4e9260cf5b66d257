"""Time grids, the Euler sampler, and the student's rollout with one graded step.

A velocity is a function (x_t (B, N, C), t (B,)) -> (B, N, C). A grid is (K + 1,) float32 from 1 down to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from workbench.method import flow, guidance

Velocity = Callable[[Tensor, Tensor], Tensor]


def time_grid(steps: int, shift: float, explicit: Sequence[float] = ()) -> Tensor:
    """K + 1 times 1 = t_0 > ... > t_K = 0: uniform ones, time-shifted (`flow.shift`), or the `explicit` t_0 to t_{K-1}
    where there are any, with the terminal 0 appended."""
    if explicit:
        return torch.tensor([*explicit, 0.0], dtype=torch.float32)
    return flow.shift(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).float()


Fresh = Callable[[int], Tensor]
"""Noise (B, N, C) that the clean prediction of a step is noised with again, on the way to the next step."""


def sample(velocity: Velocity, noise: Tensor, times: Tensor, fresh: Fresh | None = None) -> Tensor:
    """From t = 1 to 0 in K = len(times) - 1 evaluations: what `FlowMatchEulerDiscreteScheduler` does on this grid.

    fresh: None for Euler; otherwise the clean prediction of step k is noised with fresh(k) to the next time, for the
    steps 0 .. K - 2 (the scheduler's `stochastic_sampling`; consistency-model sampling, DMD2 section 4.4).
    """
    x_t, last = noise, len(times) - 2
    for k, (t, t_next) in enumerate(zip(times[:-1], times[1:], strict=True)):
        now, later = t.expand(len(x_t)), t_next.expand(len(x_t))
        v = velocity(x_t, now)
        if fresh is None or k == last:
            x_t = x_t + (t_next - t) * v
        else:
            x_t = flow.interpolate(flow.velocity_to_x0(x_t, v, now), fresh(k), later)
    return x_t


def guided(cond: Velocity, uncond: Velocity | None, scale: float, rescale: float = 0.0) -> Velocity:
    """The velocity under classifier-free guidance (`guidance.cfg`, `guidance.rescale`); that of the prompt alone at
    scale 1."""
    if uncond is None or scale == 1:
        return cond

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        prompted = cond(x_t, t)
        v = guidance.cfg(prompted, uncond(x_t, t), scale)
        return guidance.rescale(v, prompted, rescale) if rescale else v

    return velocity


class SizedTimes(Protocol):
    """Times t_0 to t_{K-1} that depend on the number of target tokens, as those of a scheduler that shifts by size."""

    def __call__(self, num_tokens: int) -> Sequence[float]: ...

    def as_dict(self) -> dict[str, Any]:
        """All that they depend on, for the record."""


@dataclass(frozen=True)
class Sampling:
    """How a denoiser is sampled: over `steps` times, shifted, guided by `cfg_scale` (1 is no guidance).

    cfg_rescale: how far each token of a guided velocity is brought back to its unguided norm (`guidance.rescale`).
    times: t_0 to t_{K-1} in place of the shifted ones, where there are any.
    stochastic: noised again between the steps (`sample` with fresh noise), as re-noised students are trained.
    sized_times: times by the number of target tokens, in place of all others.
    """

    steps: int
    shift: float = 1.0
    cfg_scale: float = 1.0
    times: tuple[float, ...] = ()
    stochastic: bool = False
    sized_times: SizedTimes | None = None
    cfg_rescale: float = 0.0

    @property
    def nfe(self) -> int:
        """Network evaluations of one image, guidance counted twice."""
        return self.steps * (2 if self.cfg_scale != 1 else 1)

    def grid(self, num_tokens: int | None = None) -> Tensor:
        """(steps + 1,) times from 1 to 0 of a picture of so many target tokens, which only `sized_times` ask for."""
        if self.sized_times is None:
            return time_grid(self.steps, self.shift, self.times)
        if num_tokens is None:
            raise ValueError("these times depend on the size of the picture")
        return time_grid(self.steps, self.shift, self.sized_times(num_tokens))

    def as_dict(self) -> dict[str, Any]:
        grid: dict[str, Any] = {"times": list(self.times)} if self.times else {"shift": self.shift}
        if self.sized_times is not None:
            grid = {"scheduler": self.sized_times.as_dict()}
        stochastic = {"stochastic": True} if self.stochastic else {}
        rescaled = {"cfg_rescale": self.cfg_rescale} if self.cfg_rescale and self.cfg_scale != 1 else {}
        return {"steps": self.steps, "cfg_scale": self.cfg_scale, **rescaled, **grid, **stochastic}


@dataclass(frozen=True)
class Trajectory:
    """States x_{t_0} .. x_{t_n} of the student and its clean predictions at the first n of them, each (B, N, C)."""

    states: tuple[Tensor, ...]
    clean: tuple[Tensor, ...]


@torch.no_grad()
def student_trajectory(
    velocity: Velocity, noise: Tensor, times: Tensor, num_evaluations: int, fresh: Sequence[Tensor] | None
) -> Trajectory:
    """The student's own steps 0 .. n - 1 for n evaluations, without gradient. Every clean prediction in it is a sample
    of the student at that step: what `student_sample` gives there.

    fresh: None for the deterministic Euler rollout; one noise (B, N, C) a step for the re-noising one, in which the
    clean prediction is noised again to the next time (consistency-model sampling, DMD2 section 4.4).
    """
    states, clean = [noise], []
    for k in range(num_evaluations):
        x_t, t = states[-1], times[k].expand(len(noise))
        v = velocity(x_t, t)
        clean.append(flow.velocity_to_x0(x_t, v, t))
        if fresh is None:
            states.append(x_t + (times[k + 1] - times[k]) * v)
        else:
            states.append(flow.interpolate(clean[-1], fresh[k], times[k + 1].expand(len(noise))))
    return Trajectory(tuple(states), tuple(clean))


def student_state(
    velocity: Velocity, noise: Tensor, times: Tensor, step: int, fresh: Sequence[Tensor] | None
) -> Tensor:
    """x_{t_k} that the student meets at `step`, the end of its `student_trajectory` of that many evaluations."""
    return student_trajectory(velocity, noise, times, step, fresh).states[step]


def student_sample(velocity: Velocity, x_t: Tensor, times: Tensor, step: int) -> Tensor:
    """G: the student's clean prediction from its state at `step`; gradients flow through this evaluation alone."""
    t = times[step].expand(len(x_t))
    return flow.velocity_to_x0(x_t, velocity(x_t, t), t)


def renoise_time(uniform: Tensor, *, shift: float, low: float, high: float) -> Tensor:
    """t ~ p_t for the score comparison: uniform numbers in [0, 1), time-shifted, then scaled into [low, high]."""
    return low + (high - low) * flow.shift(uniform, shift)


Tied = Literal["no", "below", "above"]


def renoise_interval(tied: Tied, times: Sequence[float], step: int, low: float, high: float) -> tuple[float, float]:
    """[low, high] of the re-noising time for a sample of the student's `step`.

    no: the same at all steps. below: t <= t_k, since structure coarser than the state's noise is fixed in it
    (arXiv 2511.22677 on its guidance term). above: t >= t_{k+1}, since the later steps draw whatever is finer than
    the noise that is left after this one (the subintervals of Phased DMD, arXiv 2510.27684).

    times: the student's grid, K + 1 of them.
    """
    match tied:
        case "no":
            return low, high
        case "below":
            return low, min(high, times[step])
        case "above":
            return max(low, times[step + 1]), high


def spread_steps(num_steps: int, count: int, permutations: Callable[[int], Sequence[int]]) -> list[int]:
    """`count` student steps, each uniform, in rounds that visit every step once: `permutations(i)` is the order of the
    i-th round."""
    rounds = -(-count // num_steps)
    return [step for i in range(rounds) for step in permutations(i)][:count]
