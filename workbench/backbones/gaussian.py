"""The closed-form denoiser: one Gaussian per role, so that distillation can be tested against calculus."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workbench.backbones.base import Denoiser, Prefix
from workbench.batch import Condition
from workbench.method import gaussian


@dataclass(frozen=True)
class GaussianPrefix(Prefix):
    """The conditional mean, (B or 1, C), and the covariance, (C, C)."""

    mean: Tensor
    covariance: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> GaussianPrefix:
        return GaussianPrefix(change(self.mean), change(self.covariance))


class GaussianDenoiser(Denoiser):
    """Data N(mean + the first prompt embedding, L L^T), with parameters `means.ROLE` (C,) and `factors.ROLE` (C, C).

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
        self.num_channels = self.prompt_width = len(next(iter(self.means.values())))
        self.num_features = 2 * self.num_channels

    def covariance(self, role: str) -> Tensor:
        """S = L L^T of `role`, (C, C)."""
        factor: Tensor = self.factors[role]
        return factor @ factor.mT

    def prefixes(
        self, cond: Condition, uncond: Condition | None, role: str
    ) -> tuple[GaussianPrefix, GaussianPrefix | None]:
        return self._prefix(cond, role), None if uncond is None else self._prefix(uncond, role)

    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> Tensor:
        """t = 0 needs an invertible covariance."""
        assert isinstance(prefix, GaussianPrefix)
        return gaussian.velocity(x_t, t, prefix.mean[:, None], prefix.covariance)

    def velocity_and_features(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> tuple[Tensor, Tensor]:
        """The features of a closed form are all that it has: x_t and the velocity there, (B, N, 2 C)."""
        velocity = self.velocity(prefix, x_t, t, role)
        return velocity, torch.cat([x_t, velocity], dim=-1)

    def _prefix(self, condition: Condition, role: str) -> GaussianPrefix:
        return GaussianPrefix(self.means[role] + condition.prompt[:, 0], self.covariance(role))
