"""The fake score: a denoiser that follows the student's moving distribution."""

from __future__ import annotations

from dataclasses import replace

import lightning as L
import torch
from torch import Tensor, nn

from workbench.backbones.base import RoleDenoiser
from workbench.batch import Condition
from workbench.method import dmd, flow


class FakeScoreModule(L.LightningModule):
    """Trained by flow matching on student samples (DMD2 section 4.1). Returns values; the root owns everything else.

    step_embedding: (K, D), added to the embeddings of the prompt by the student step that made the sample, and zero at
    the start; None for a fake score of the mixture over steps.
    """

    step_embedding: nn.Parameter | None

    def __init__(self, network: RoleDenoiser, num_steps: int = 0) -> None:
        """num_steps: K where the fake score knows the step, 0 where it does not."""
        super().__init__()
        self.network = network
        embedding = nn.Parameter(torch.zeros(num_steps, network.prompt_width)) if num_steps else None
        self.register_parameter("step_embedding", embedding)

    def loss(self, condition: Condition, x0: Tensor, eps: Tensor, t: Tensor, step: int | None) -> Tensor:
        """Flow-matching loss per sample (B,) on student samples `x0` (B, N, C) noised by `eps` to `t` (B,).

        step: the student's, which made them; read where the fake score knows it.
        """
        predicted = self._velocity(condition, flow.interpolate(x0, eps, t), t, step)
        return dmd.flow_matching_loss(predicted, flow.velocity(x0, eps))

    def x0(self, condition: Condition, x_t: Tensor, t: Tensor, step: int | None) -> Tensor:
        """E_fake[x0 | x_t]: (B, N, C); step as in `loss`."""
        return flow.velocity_to_x0(x_t, self._velocity(condition, x_t, t, step), t)

    def _velocity(self, condition: Condition, x_t: Tensor, t: Tensor, step: int | None) -> Tensor:
        if self.step_embedding is not None:
            assert step is not None
            condition = replace(condition, prompt=condition.prompt + self.step_embedding[step])
        return self.network.velocity(self.network.prefix(condition), x_t, t)
