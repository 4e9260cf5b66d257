"""The teacher ensemble: base teacher and specialists, mixed by the lambda table of the step."""

from __future__ import annotations

from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor

from workbench import flow, guidance
from workbench.backbone import RoleDenoiser
from workbench.batch import Condition


class TeacherEnsemble(L.LightningModule):
    """Frozen teachers behind one prediction: x0_real = sum_m lambda_m x0_m (arXiv 2606.03746).

    networks: the base teacher first, then the specialists, in the order of the lambda table's columns.
    """

    def __init__(self, networks: Sequence[RoleDenoiser], cfg_scale: float) -> None:
        super().__init__()
        self.networks = tuple(networks)
        self.cfg_scale = cfg_scale

    @torch.no_grad()
    def x0(
        self,
        condition: Condition,
        uncond: Condition | None,
        x_t: Tensor,
        t: Tensor,
        weights: Tensor,
        active: Sequence[bool],
    ) -> Tensor:
        """Mixed clean prediction (B, N, C) for weights (B, M + 1). Teachers that are not `active` are not run: their
        weight must be 0 in every row that any rank holds, so that all ranks run the same forwards."""
        columns = [m for m, is_active in enumerate(active) if is_active]
        predictions = [self._x0(self.networks[m], condition, uncond, x_t, t) for m in columns]
        if len(columns) == 1:
            return predictions[0]
        return guidance.mix(predictions, weights[:, columns])

    def _x0(
        self, network: RoleDenoiser, condition: Condition, uncond: Condition | None, x_t: Tensor, t: Tensor
    ) -> Tensor:
        v = network.velocity(network.prefix(condition), x_t, t)
        if self.cfg_scale != 1:
            assert uncond is not None, "guidance needs the empty prompt"
            v = guidance.cfg(v, network.velocity(network.prefix(uncond), x_t, t), self.cfg_scale)
        return flow.velocity_to_x0(x_t, v, t)


def evaluations(active: Sequence[bool], cfg_scale: float) -> int:
    """Network evaluations that one sample costs at one noise level: guidance evaluates each teacher twice."""
    return sum(active) * (1 if cfg_scale == 1 else 2)
