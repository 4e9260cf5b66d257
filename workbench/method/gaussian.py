"""Gaussian data, for which score, KL gradient and optimum are known in closed form.

Every token of a sample is independently x0 ~ N(m, S) over the C channels. Then x_t ~ N((1 - t) m, M) with
M = (1 - t)^2 S + t^2 I, and by linear regression

    E[x0 | x_t] = m + (1 - t) S M^-1 y        y = x_t - (1 - t) m
    v = (x_t - E[x0 | x_t]) / t = -m + (t I - (1 - t) S) M^-1 y

The last form has no division by t, because M - (1 - t) S = t (t I - (1 - t) S).
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.method import flow


def velocity(x_t: Tensor, t: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """E[eps - x0 | x_t] of x0 ~ N(mean, covariance): x_t (B, N, C), t (B,) -> (B, N, C).

    mean: (C,) or (B or 1, 1, C). covariance: (C, C).
    """
    t = flow.expand(t, x_t).to(x_t.dtype)
    identity = torch.eye(len(covariance), dtype=x_t.dtype, device=x_t.device)
    marginal = (1 - t) ** 2 * covariance + t**2 * identity
    whitened = torch.linalg.solve(marginal, (x_t - (1 - t) * mean).mT).mT
    return whitened @ (t * identity - (1 - t) * covariance) - mean
