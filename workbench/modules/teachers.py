"""The teacher ensemble: base teacher and specialists, mixed by the lambda table of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lightning as L
import torch
from torch import Tensor

from workbench import flow, guidance, rollout
from workbench.backbone import Prefix, RoleDenoiser
from workbench.batch import Condition


class TeacherEnsemble(L.LightningModule):
    """Frozen teachers behind one prediction: x0_real = sum_m lambda_m x0_m (arXiv 2606.03746).

    networks: the base teacher first, then the specialists, in the order of the lambda table's columns.
    cfg_rescale: see `guidance.rescale`.

    Teachers that are not `active` are not run: their weight must be 0 in every row that any rank holds, so that all
    ranks run the same forwards. weights: (B, M + 1).
    """

    def __init__(self, networks: Sequence[RoleDenoiser], cfg_scale: float, cfg_rescale: float = 0.0) -> None:
        super().__init__()
        self.networks = tuple(networks)
        self.cfg_scale = cfg_scale
        self.cfg_rescale = cfg_rescale

    def x0(
        self,
        condition: Condition,
        uncond: Condition | None,
        x_t: Tensor,
        t: Tensor,
        weights: Tensor,
        active: Sequence[bool],
    ) -> Tensor:
        """Mixed clean prediction (B, N, C)."""
        return mixed(self.predictions(condition, uncond, x_t, t, active), weights)

    @torch.no_grad()
    def predictions(
        self,
        condition: Condition,
        uncond: Condition | None,
        x_t: Tensor,
        t: Tensor,
        active: Sequence[bool],
        *,
        guided: bool = True,
    ) -> dict[int, Tensor]:
        """Clean prediction (B, N, C) of each active teacher by its column; not `guided`: of the prompt alone."""
        found = {}
        for m, network in self._running(active):
            prefixes = self._prefixes(network, condition, uncond if guided else None)
            found[m] = flow.velocity_to_x0(x_t, self._velocity(network, prefixes, x_t, t), t)
        return found

    @torch.no_grad()
    def cond_and_uncond(
        self, condition: Condition, uncond: Condition, x_t: Tensor, t: Tensor, weights: Tensor, active: Sequence[bool]
    ) -> tuple[Tensor, Tensor]:
        """Mixed clean predictions under the prompt and under the empty one, (B, N, C) each."""
        cond, empty = (
            mixed(self.predictions(c, None, x_t, t, active, guided=False), weights) for c in (condition, uncond)
        )
        return cond, empty

    @torch.no_grad()
    def sample(
        self,
        condition: Condition,
        uncond: Condition | None,
        noise: Tensor,
        times: Tensor,
        weights: Tensor,
        active: Sequence[bool],
    ) -> Tensor:
        """State (B, N, C) at the last of `times` from noise at the first, by Euler over the mixed velocity."""
        running = [(m, network, self._prefixes(network, condition, uncond)) for m, network in self._running(active)]

        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            return mixed({m: self._velocity(network, prefixes, x_t, t) for m, network, prefixes in running}, weights)

        return rollout.sample(velocity, noise, times)

    def _running(self, active: Sequence[bool]) -> list[tuple[int, RoleDenoiser]]:
        return [(m, self.networks[m]) for m, is_active in enumerate(active) if is_active]

    def _prefixes(self, network: RoleDenoiser, condition: Condition, uncond: Condition | None) -> list[Prefix]:
        """Of the prompt, and with guidance of the empty one."""
        if self.cfg_scale == 1 or uncond is None:
            return [network.prefix(condition)]
        return [network.prefix(condition), network.prefix(uncond)]

    def _velocity(self, network: RoleDenoiser, prefixes: Sequence[Prefix], x_t: Tensor, t: Tensor) -> Tensor:
        v_cond, *v_uncond = (network.velocity(prefix, x_t, t) for prefix in prefixes)
        if not v_uncond:
            return v_cond
        v = guidance.cfg(v_cond, v_uncond[0], self.cfg_scale)
        return guidance.rescale(v, v_cond, self.cfg_rescale) if self.cfg_rescale else v


def mixed(predictions: Mapping[int, Tensor], weights: Tensor) -> Tensor:
    """Mean of predictions (B, N, C) by column under weights (B, M + 1); one alone is that one."""
    columns = list(predictions)
    if len(columns) == 1:
        return predictions[columns[0]]
    of_columns = torch.stack([weights[:, m] for m in columns], dim=1)
    return guidance.mix(list(predictions.values()), of_columns)


def evaluations(active: Sequence[bool], cfg_scale: float, decoupled: bool = False) -> int:
    """Network evaluations that one sample costs in one student update: guidance evaluates each teacher twice, and at a
    noise level of its own once more."""
    return sum(active) * (1 if cfg_scale == 1 else 3 if decoupled else 2)
