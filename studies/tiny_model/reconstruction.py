"""What the autoencoder of the tiny model is trained and measured by."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Weights(Protocol):
    """Weights of the loss terms in addition to the absolute error."""

    @property
    def squared(self) -> float: ...
    @property
    def gradient(self) -> float: ...
    @property
    def coarse(self) -> float: ...


def reconstruction_loss(prediction: Tensor, target: Tensor, weights: Weights) -> Tensor:
    """Mean absolute, squared, finite-difference and coarse error of (B, 4, H, W) images; alpha counts a tenth."""
    error = (prediction - target).float()
    alpha = error[:, 3:].abs().mean()
    error = error[:, :3]
    down, right = error.diff(dim=2), error.diff(dim=3)
    return (
        error.abs().mean()
        + weights.squared * error.square().mean()
        + weights.gradient * (down.abs().mean() + right.abs().mean())
        + weights.coarse * F.avg_pool2d(error, 4).abs().mean()
        + 0.1 * alpha
    )


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(0, 1)) in nats, summed over channels, averaged over positions."""
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()


def psnr(prediction: Tensor, target: Tensor) -> Tensor:
    """Decibels of each image, (B, 3 or 4, H, W) in [-1, 1]; colour channels only: (B,)."""
    error = (prediction[:, :3].clamp(-1, 1) - target[:, :3]).float().square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error.clamp_min(1e-12))


def to_model(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> opaque RGBA (B, 4, H, W) in [-1, 1], channels last in memory."""
    rgb = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    return F.pad(rgb, (0, 0, 0, 0, 0, 1), value=1.0).contiguous(memory_format=torch.channels_last)
