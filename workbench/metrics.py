"""Weighted means of per-sample numbers, kept on the device until somebody logs them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


class Means:
    """Named running means over samples, micro-batches, updates and ranks; padding rows have weight 0."""

    def __init__(self) -> None:
        self._totals: dict[str, Tensor] = {}

    def add(self, name: str, values: Tensor, weights: Tensor | None = None) -> None:
        """Take in `values` (B,) with `weights` (B,), 1 when absent."""
        values = values.detach().float().reshape(-1)
        weights = torch.ones_like(values) if weights is None else weights
        total = torch.stack([(values * weights).sum(), weights.sum()])
        self._totals[name] = self._totals[name] + total if name in self._totals else total

    def pop(self) -> dict[str, float]:
        """Means over all ranks since the last call; every rank must hold the same names. One device synchronisation."""
        if not self._totals:
            return {}
        names = sorted(self._totals)
        stacked = torch.stack([self._totals[name] for name in names])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(stacked)
        self._totals = {}
        sums, counts = stacked.cpu().unbind(1)
        return {name: float(total / count) for name, total, count in zip(names, sums, counts, strict=True) if count > 0}
