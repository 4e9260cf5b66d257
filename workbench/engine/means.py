"""Weighted means of per-sample numbers, kept on the device until somebody logs them.

Sums are in float64, where those of float32 numbers come out the same in whatever order and groups they are added: eager
steps and graphs log the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from workbench.common import ranks


class Means:
    """Named running means over samples, micro-batches, updates and ranks; padding rows have weight 0."""

    def __init__(self) -> None:
        self._totals: dict[tuple[int, tuple[str, ...]], Tensor] = {}
        self._lane = 0

    @contextmanager
    def lane(self, number: int) -> Iterator[None]:
        """What is added within this has sums of its own until it is read: lanes may be computed side by side."""
        before, self._lane = self._lane, number
        try:
            yield
        finally:
            self._lane = before

    def add(self, name: str, values: Tensor, weights: Tensor | None = None) -> None:
        """Take in `values` (B,) with `weights` (B,), 1 when absent."""
        values = values.detach().float().reshape(-1)
        weights = torch.ones_like(values) if weights is None else weights
        sums = [one.sum(dtype=torch.float64) for one in (values * weights, weights)]
        self._add((name,), torch.stack(sums)[None])

    def add_by(self, names: Sequence[str], index: Tensor, values: Tensor, weights: Tensor) -> None:
        """Take in `values` (B,) with `weights` (B,), each under the name that `index` (B,) points to."""
        values = values.detach().float()
        # No scatter: its order of summation is not fixed on a GPU. No product: it would carry a NaN into every name.
        chosen = index[:, None] == torch.arange(len(names), device=index.device)
        sums, counts = (
            torch.where(chosen, one[:, None], 0.0).sum(dim=0, dtype=torch.float64)
            for one in (values * weights, weights)
        )
        self._add(tuple(names), torch.stack([sums, counts], dim=1))

    def pop(self) -> dict[str, float]:
        """Means over all ranks since the last call, of the names that got samples; every rank must have added under the
        same names. One device synchronisation."""
        if not self._totals:
            return {}
        names, stacked = self._stacked()
        if ranks.is_distributed():
            dist.all_reduce(stacked)
        self._totals = {}
        found: dict[str, list[float]] = {}
        for name, (total, count) in zip(names, stacked.tolist(), strict=True):
            sums = found.setdefault(name, [0.0, 0.0])
            sums[0], sums[1] = sums[0] + total, sums[1] + count
        return {name: total / count for name, (total, count) in found.items() if count > 0}

    def totals(self, device: torch.device) -> tuple[tuple[str, ...], Tensor]:
        """Names, which may repeat, and their sums and counts (len(names), 2): what `take` of another one adds."""
        return self._stacked() if self._totals else ((), torch.zeros(0, 2, dtype=torch.float64, device=device))

    def take(self, names: tuple[str, ...], totals: Tensor) -> None:
        """Add what `totals` of another one gave."""
        if names:
            self._add(names, totals)

    def _stacked(self) -> tuple[tuple[str, ...], Tensor]:
        keys = sorted(self._totals)
        return tuple(name for _, names in keys for name in names), torch.cat([self._totals[key] for key in keys])

    def _add(self, names: tuple[str, ...], total: Tensor) -> None:
        """Totals (len(names), 2) of sums and counts."""
        key = (self._lane, names)
        self._totals[key] = self._totals[key] + total if key in self._totals else total
