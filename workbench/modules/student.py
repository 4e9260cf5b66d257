"""The few-step student: its time grid and its rollout."""

from __future__ import annotations

from typing import Literal

import lightning as L
import torch
from torch import Tensor

from workbench import rollout
from workbench.backbone import Prefix, RoleDenoiser
from workbench.batch import Condition


class StudentModule(L.LightningModule):
    """G(eps, c) in K steps. Returns values; the root `Distiller` owns hooks, sharding, optimisers and logging.

    times: (K + 1,) from 1 to 0.
    """

    times: Tensor

    def __init__(self, network: RoleDenoiser, times: Tensor, mode: Literal["euler", "renoise"]) -> None:
        super().__init__()
        self.network = network
        self.mode = mode
        self.register_buffer("times", times, persistent=False)

    @property
    def num_steps(self) -> int:
        return len(self.times) - 1

    def graded_sample(
        self, condition: Condition, noise: Tensor, step: int, fresh: list[Tensor] | None, state: Tensor | None = None
    ) -> Tensor:
        """Clean prediction (B, N, C) of `step`; earlier steps run without gradient on the same, detached prefix.

        state: x_{t_k} where it is known already, in place of the earlier steps.
        """
        prefix = self.network.prefix(condition)
        if state is None:
            frozen = prefix.detach()
            state = rollout.student_state(
                lambda x, t: self.network.velocity(frozen, x, t), noise, self.times, step, fresh
            )
        return rollout.student_sample(lambda x, t: self.network.velocity(prefix, x, t), state, self.times, step)

    @torch.no_grad()
    def trajectory(
        self, condition: Condition, noise: Tensor, num_evaluations: int, fresh: list[Tensor] | None
    ) -> rollout.Trajectory:
        """States and clean predictions of the first steps, without gradient and over one prefix."""
        prefix = self.network.prefix(condition)
        return rollout.student_trajectory(
            lambda x, t: self.network.velocity(prefix, x, t), noise, self.times, num_evaluations, fresh
        )

    @torch.no_grad()
    def sample(self, condition: Condition, noise: Tensor) -> Tensor:
        """x0 (B, N, C) after all K steps of the Euler rollout: what the exported student gives."""
        prefix: Prefix = self.network.prefix(condition)
        return rollout.sample(lambda x, t: self.network.velocity(prefix, x, t), noise, self.times)
