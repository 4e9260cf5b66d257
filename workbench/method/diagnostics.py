"""Diagnostics of the student's samples, one value per sample (B,), from predictions that a step makes anyway."""

from __future__ import annotations

import torch
from torch import Tensor

FLAT_SHARE = 0.25
"""Share of places that count as flat: those where the reference varies least."""


def gap(left: Tensor, right: Tensor) -> Tensor:
    """mean |left - right|."""
    return (left - right).abs().flatten(1).mean(dim=1)


def spread_ratio(x: Tensor, reference: Tensor) -> Tensor:
    """Standard deviation of `x` (B, N, C) over that of the reference: above 1 the student saturates, below it fades."""
    return x.flatten(1).std(dim=1) / reference.flatten(1).std(dim=1).clamp_min(1e-6)


def flat_noise(x: Tensor, reference: Tensor, height: int, width: int) -> Tensor:
    """Residual noise where the reference is flat: the root mean square step of `x` (B, N, C) between neighbours of the
    token grid there, over the reference's standard deviation. 0 on clean backgrounds."""
    steps, reference_steps = _squared_steps(x, height, width), _squared_steps(reference, height, width)
    count = max(1, int(FLAT_SHARE * steps.shape[1]))
    flat = reference_steps.topk(count, dim=1, largest=False).indices
    noise = steps.gather(1, flat).mean(dim=1).sqrt()
    return noise / reference.flatten(1).std(dim=1).clamp_min(1e-6)


def _squared_steps(x: Tensor, height: int, width: int) -> Tensor:
    """Squared difference to the right and lower neighbour, mean over channels: (B, number of such pairs)."""
    grid = x.unflatten(1, (height, width))
    across, down = grid[:, :, 1:] - grid[:, :, :-1], grid[:, 1:] - grid[:, :-1]
    return torch.cat([step.square().mean(dim=-1).flatten(1) for step in (across, down)], dim=1)
