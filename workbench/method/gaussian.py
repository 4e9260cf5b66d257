"""The closed-form denoiser: Gaussian data, for which score, KL gradient and optimum are known.

Every token of a sample is independently x0 ~ N(m, S) over the C channels, with m = mean + the first prompt embedding
of the condition and S = L L^T. Then x_t ~ N((1 - t) m, M) with M = (1 - t)^2 S + t^2 I, and by linear regression

    E[x0 | x_t] = m + (1 - t) S M^-1 y        y = x_t - (1 - t) m
    v = (x_t - E[x0 | x_t]) / t = -m + (t I - (1 - t) S) M^-1 y

The last form has no division by t, because M - (1 - t) S = t (t I - (1 - t) S).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workbench.batch import Condition
from workbench.method import flow


@dataclass(frozen=True)
class GaussianPrefix:
    """What depends on neither t nor x_t: the conditional mean, (B or 1, C), and the covariance, (C, C)."""

    mean: Tensor
    covariance: Tensor

    def detach(self) -> GaussianPrefix:
        """The same prefix for evaluations without gradient."""
        return GaussianPrefix(self.mean.detach(), self.covariance.detach())


class GaussianDenoiser(nn.Module):
    """A `Denoiser` with one Gaussian a role: parameters `means.ROLE` (C,) and `factors.ROLE` (C, C).

    gaussians: role -> (mean (C,), factor L (C, C) of the covariance L L^T), all of one dtype.
    trainable: roles whose parameters require grad.
    Prompts must have embeddings of width C and the dtype of the parameters.
    """

    def __init__(self, gaussians: Mapping[str, tuple[Tensor, Tensor]], *, trainable: Collection[str]) -> None:
        super().__init__()
        self.means = nn.ParameterDict()
        self.factors = nn.ParameterDict()
        for role, (mean, factor) in gaussians.items():
            self.means[role] = nn.Parameter(mean.clone(), requires_grad=role in trainable)
            self.factors[role] = nn.Parameter(factor.clone(), requires_grad=role in trainable)
        self.num_channels = len(next(iter(self.means.values())))

    def covariance(self, role: str) -> Tensor:
        """S = L L^T of `role`, (C, C)."""
        factor: Tensor = self.factors[role]
        return factor @ factor.mT

    def prefix(self, condition: Condition, role: str, shared: GaussianPrefix | None = None) -> GaussianPrefix:
        """See `Denoiser`; there is nothing to share."""
        return GaussianPrefix(self.means[role] + condition.prompt[:, 0], self.covariance(role))

    def velocity(self, prefix: GaussianPrefix, x_t: Tensor, t: Tensor, role: str) -> Tensor:
        """See `Denoiser`; t = 0 needs an invertible covariance."""
        return velocity(x_t, t, prefix.mean[:, None], prefix.covariance)


def velocity(x_t: Tensor, t: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """E[eps - x0 | x_t] of x0 ~ N(mean, covariance): x_t (B, N, C), t (B,) -> (B, N, C).

    mean: (C,) or (B or 1, 1, C). covariance: (C, C).
    """
    t = flow.expand(t, x_t).to(x_t.dtype)
    identity = torch.eye(len(covariance), dtype=x_t.dtype, device=x_t.device)
    marginal = (1 - t) ** 2 * covariance + t**2 * identity
    whitened = torch.linalg.solve(marginal, (x_t - (1 - t) * mean).mT).mT
    return whitened @ (t * identity - (1 - t) * covariance) - mean
