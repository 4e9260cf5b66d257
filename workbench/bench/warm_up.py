"""An evaluation of the plain arrangement before its measured iterations: kernels are chosen, memory is there."""

from __future__ import annotations

import torch

from workbench.backbones.roles import FAKE_SCORE
from workbench.batch import StepData
from workbench.bench.plain import PlainEngine


def evaluate_plain(plain: PlainEngine, step: StepData) -> None:
    """One evaluation of the plain arrangement with gradient, and its backward, for every task."""
    denoiser = plain.networks.denoiser
    device = next(denoiser.parameters()).device
    for batch in step.to(device).student:
        num_tokens = batch.condition.layout.num_target_tokens
        x_t = torch.randn(len(batch.rows), num_tokens, denoiser.num_channels, device=device)
        v = plain.networks.velocity(batch.condition, x_t, torch.ones_like(x_t[:, 0, 0]), FAKE_SCORE)
        v.square().mean().backward()
    denoiser.zero_grad(set_to_none=True)
