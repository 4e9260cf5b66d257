"""The teacher ensemble: base teacher and specialists, mixed by the lambda table of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import lightning as L
import torch
from torch import Tensor

from workbench.backbones.base import Prefix, RoleDenoiser
from workbench.batch import Batch, Layout
from workbench.method import flow, guidance, rollout

TeacherPrefixes = dict[int, tuple[Prefix, ...]]
"""Prefixes of each teacher that runs, keyed by column: the prompt's, and with guidance the empty prompt's."""


class TeacherEnsemble(L.LightningModule):
    """Frozen teachers behind one prediction: x0_real = sum_m lambda_m x0_m (arXiv 2606.03746).

    networks: the base teacher first, then the specialists, in the order of the lambda table's columns.
    cfg_rescale: see `guidance.rescale`.

    skips_unweighted: whether an `active` teacher is left out of a batch in which no row gives it weight; else all run,
    so that ranks run the same forwards and updates the same kernels. The mixture is the same, in every bit.

    Teachers that are not `active` are not run: their weight must be 0 in every row that any rank holds. weights:
    (B, M + 1).
    """

    skips_unweighted = False

    def __init__(self, networks: Sequence[RoleDenoiser], cfg_scale: float, cfg_rescale: float = 0.0) -> None:
        super().__init__()
        self.networks = tuple(networks)
        self.cfg_scale = cfg_scale
        self.cfg_rescale = cfg_rescale
        self._constants: dict[tuple[int, Layout], Prefix] = {}

    @torch.no_grad()
    def prefixes(self, batch: Batch, active: Sequence[bool], weights: Tensor) -> TeacherPrefixes:
        """Prefixes of each teacher that runs, keyed by column, for any number of evaluations. The prefix of a constant
        empty prompt is computed once per teacher and layout, and kept."""
        found: TeacherPrefixes = {}
        if self.skips_unweighted:
            active = [run and has for run, has in zip(active, (weights > 0).any(dim=0).tolist(), strict=True)]
        for m, network in ((m, self.networks[m]) for m, is_active in enumerate(active) if is_active):
            uncond = batch.uncond if self.cfg_scale != 1 else None
            if uncond is not None and batch.uncond_is_constant:
                if (m, uncond.layout) not in self._constants:
                    self._constants[m, uncond.layout] = network.prefix(uncond).detach()
                found[m] = (network.prefix(batch.condition), self._constants[m, uncond.layout])
            else:
                cond, empty = network.prefixes(batch.condition, uncond)
                found[m] = (cond,) if empty is None else (cond, empty)
        return found

    @torch.no_grad()
    def predictions(
        self, prefixes: TeacherPrefixes, x_t: Tensor, t: Tensor, *, guided: bool = True
    ) -> dict[int, Tensor]:
        """Clean prediction (B, N, C) of each teacher by its column; not `guided`: of the prompt alone."""
        return {
            m: flow.velocity_to_x0(x_t, self._velocity(m, pair if guided else pair[:1], x_t, t), t)
            for m, pair in prefixes.items()
        }

    @torch.no_grad()
    def cond_and_uncond(
        self, prefixes: TeacherPrefixes, x_t: Tensor, t: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Mixed clean predictions under the prompt and under the empty one, (B, N, C) each."""
        cond, empty = (
            mixed(self.predictions({m: (pair[i],) for m, pair in prefixes.items()}, x_t, t), weights) for i in (0, 1)
        )
        return cond, empty

    @torch.no_grad()
    def sample(self, prefixes: TeacherPrefixes, noise: Tensor, times: Tensor, weights: Tensor) -> Tensor:
        """State (B, N, C) at the last of `times` from noise at the first, by Euler over the mixed velocity."""

        def velocity(x_t: Tensor, t: Tensor) -> Tensor:
            return mixed({m: self._velocity(m, pair, x_t, t) for m, pair in prefixes.items()}, weights)

        return rollout.sample(velocity, noise, times)

    def _velocity(self, m: int, prefixes: Sequence[Prefix], x_t: Tensor, t: Tensor) -> Tensor:
        v_cond, *v_uncond = (self.networks[m].velocity(prefix, x_t, t) for prefix in prefixes)
        if not v_uncond:
            return v_cond
        v = guidance.cfg(v_cond, v_uncond[0], self.cfg_scale)
        return guidance.rescale(v, v_cond, self.cfg_rescale) if self.cfg_rescale else v


def mixed(predictions: Mapping[int, Tensor], weights: Tensor) -> Tensor:
    """Mean of predictions (B, N, C), keyed by column, under weights (B, M + 1); a single one is returned as it is."""
    columns = list(predictions)
    if len(columns) == 1:
        return predictions[columns[0]]
    of_columns = torch.stack([weights[:, m] for m in columns], dim=1)
    return guidance.mix(list(predictions.values()), of_columns)


def evaluations(active: Sequence[bool], cfg_scale: float, decoupled: bool = False) -> int:
    """Network evaluations that one sample costs in one student update: guidance evaluates each teacher twice, and
    decoupled guidance, at another noise level, once more."""
    return sum(active) * (1 if cfg_scale == 1 else 3 if decoupled else 2)
