"""Rectified flow: the path between data and noise, and the conversions along it.

The one time convention of this project: t in [0, 1], t = 1 is noise, and

    x_t = (1 - t) x0 + t eps        v = eps - x0        x0 = x_t - t v        eps = x_t + (1 - t) v
    score(x_t) = -(x_t - (1 - t) x0) / t^2

(Liu et al. 2022, arXiv 2209.03003; the convention of diffusers.) `t` has shape (B,) or (), states (B, ...).
"""

from __future__ import annotations

from torch import Tensor


def expand(t: Tensor, x: Tensor) -> Tensor:
    """`t` (B,) or () with trailing axes of length 1, so that it multiplies `x` (B, ...)."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t


def interpolate(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps."""
    t = expand(t, x0)
    return (1 - t) * x0 + t * eps


def velocity(x0: Tensor, eps: Tensor) -> Tensor:
    """v = eps - x0 = d x_t / d t."""
    return eps - x0


def velocity_to_x0(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """x0 = x_t - t v."""
    return x_t - expand(t, x_t) * v


def velocity_to_eps(x_t: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """eps = x_t + (1 - t) v."""
    return x_t + (1 - expand(t, x_t)) * v


def x0_to_velocity(x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """v = (x_t - x0) / t, for t > 0."""
    return (x_t - x0) / expand(t, x_t)


def x0_to_score(x_t: Tensor, x0: Tensor, t: Tensor) -> Tensor:
    """grad log p_t(x_t) when `x0` is E[x0 | x_t] (Tweedie): -(x_t - (1 - t) x0) / t^2, for t > 0."""
    t = expand(t, x_t)
    return -(x_t - (1 - t) * x0) / t**2


def score_to_x0(x_t: Tensor, score: Tensor, t: Tensor) -> Tensor:
    """E[x0 | x_t] = (x_t + t^2 score) / (1 - t), for t < 1."""
    t = expand(t, x_t)
    return (x_t + t**2 * score) / (1 - t)


def shift(t: Tensor, s: float) -> Tensor:
    """Time shift towards noise for s > 1: s t / (1 + (s - 1) t) (Esser et al. 2024, arXiv 2403.03206, eq. 23)."""
    return s * t / (1 + (s - 1) * t)
