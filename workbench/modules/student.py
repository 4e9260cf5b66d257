"""The few-step student: its time grid and its rollout."""

from __future__ import annotations

from typing import Literal

import lightning as L
import torch
from torch import Tensor

from workbench.backbones.base import Prefix, RoleDenoiser
from workbench.batch import Batch, Condition
from workbench.engine.draws import Numbers
from workbench.method import rollout


class StudentModule(L.LightningModule):
    """G(eps, c) in K steps. Returns values; the root `Distiller` owns hooks, sharding, optimisers and logging.

    times: (K + 1,) from 1 to 0. grid: the same on the host.
    """

    times: Tensor

    def __init__(self, network: RoleDenoiser, times: Tensor, mode: Literal["euler", "renoise"]) -> None:
        super().__init__()
        self.network = network
        self.mode = mode
        self.grid: list[float] = times.tolist()
        self.register_buffer("times", times, persistent=False)

    @property
    def num_steps(self) -> int:
        return len(self.grid) - 1

    def draw(
        self,
        batch: Batch,
        numbers: Numbers,
        step: int,
        *,
        state: Tensor | None = None,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """`graded_sample` for a batch, with noise from its random numbers."""
        noise, fresh = self._noise(numbers, step)
        return self.graded_sample(batch.condition, noise, step, fresh, state=state, prefix=prefix)

    @torch.no_grad()
    def trajectory(self, batch: Batch, numbers: Numbers, num_evaluations: int) -> rollout.Trajectory:
        """States and clean predictions of the first steps on a batch, without gradient, from one prefix."""
        noise, fresh = self._noise(numbers, num_evaluations)
        prefix = self.network.prefix(batch.condition)
        return rollout.student_trajectory(
            lambda x, t: self.network.velocity(prefix, x, t), noise, self.times, num_evaluations, fresh
        )

    def graded_sample(
        self,
        condition: Condition,
        noise: Tensor,
        step: int,
        fresh: list[Tensor] | None,
        *,
        state: Tensor | None = None,
        prefix: Prefix | None = None,
    ) -> Tensor:
        """Clean prediction (B, N, C) of `step`; earlier steps run without gradient on the same, detached prefix.

        state: x_{t_k} where a rollout has computed it already, in place of the earlier steps.
        prefix: of the condition, with gradient, where it has been computed already.
        """
        graded = prefix if prefix is not None else self.network.prefix(condition)
        if state is None:
            frozen = graded.detach()
            state = rollout.student_state(
                lambda x, t: self.network.velocity(frozen, x, t), noise, self.times, step, fresh
            )
        return rollout.student_sample(lambda x, t: self.network.velocity(graded, x, t), state, self.times, step)

    def sample(self, condition: Condition, noise: Tensor, fresh: rollout.Fresh) -> Tensor:
        """x0 (B, N, C) after all K steps of the rollout that it is trained in: what the exported student gives.

        fresh: noise between the steps, which the Euler rollout leaves alone.
        """
        return self.network.sample(condition, None, noise, self.times, fresh=fresh if self.mode == "renoise" else None)

    def _noise(self, numbers: Numbers, num_evaluations: int) -> tuple[Tensor, list[Tensor] | None]:
        """Noise that a rollout starts from, and noise for its re-noised steps."""
        channels = self.network.num_channels
        noise = numbers.normal("noise", channels)
        if self.mode == "euler":
            return noise, None
        return noise, [numbers.normal(f"fresh{k}", channels) for k in range(num_evaluations)]
