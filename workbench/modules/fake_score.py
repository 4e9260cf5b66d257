"""The fake score: a denoiser that follows the student's moving distribution."""

from __future__ import annotations

import lightning as L
from torch import Tensor

from workbench.backbones.base import RoleDenoiser
from workbench.batch import Condition
from workbench.method import dmd, flow


class FakeScoreModule(L.LightningModule):
    """Trained by flow matching on student samples (DMD2 section 4.1). Returns values; the root owns everything else."""

    def __init__(self, network: RoleDenoiser) -> None:
        super().__init__()
        self.network = network

    def loss(self, condition: Condition, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Flow-matching loss per sample (B,) on student samples `x0` (B, N, C) noised by `eps` to `t` (B,)."""
        x_t = flow.interpolate(x0, eps, t)
        predicted = self.network.velocity(self.network.prefix(condition), x_t, t)
        return dmd.flow_matching_loss(predicted, flow.velocity(x0, eps))

    def x0(self, condition: Condition, x_t: Tensor, t: Tensor) -> Tensor:
        """E_fake[x0 | x_t]: (B, N, C)."""
        return flow.velocity_to_x0(x_t, self.network.velocity(self.network.prefix(condition), x_t, t), t)
