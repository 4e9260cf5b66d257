"""Evaluations before the measured iterations: compilation, choice of kernels, and how many blocks memory can store."""

from __future__ import annotations

from collections.abc import Callable

import torch

from workbench.backbones import roles
from workbench.backbones.base import RoleDenoiser, RoleNetworks
from workbench.backbones.roles import FAKE_SCORE, STUDENT
from workbench.batch import Batch, StepData
from workbench.bench.plain import PlainEngine
from workbench.recipe.config import Recipe


def evaluate_every_role(denoiser: RoleNetworks, recipe: Recipe, step: StepData) -> None:
    """Each kind of evaluation of a training step once: without gradient in every role, with it in the trained ones."""
    device = next(denoiser.parameters()).device
    for batch in step.to(device).student:
        layout = batch.condition.layout
        x_t = torch.randn(len(batch.rows), layout.num_target_tokens, denoiser.num_channels, device=device)
        t = torch.full((len(x_t),), 0.5, device=device)
        for role in (STUDENT, FAKE_SCORE, *roles.teacher_roles(recipe.teachers)):
            network = RoleDenoiser(denoiser, role)
            with torch.no_grad():
                uncond = batch.uncond if role not in (STUDENT, FAKE_SCORE) else None
                for prefix in network.prefixes(batch.condition, uncond):
                    if prefix is not None:
                        network.velocity(prefix, x_t, t)
            if role in (STUDENT, FAKE_SCORE):
                evaluate_graded(network, batch)
    denoiser.zero_grad(set_to_none=True)


def evaluate_graded(network: RoleDenoiser, batch: Batch) -> None:
    """One evaluation with gradient, and its backward."""
    condition = batch.condition
    num_tokens, device = condition.layout.num_target_tokens, condition.prompt.device
    x_t = torch.randn(len(batch.rows), num_tokens, network.num_channels, device=device)
    t = torch.full((len(x_t),), 0.5, device=device)
    network.velocity(network.prefix(condition), x_t, t).square().mean().backward()


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


def most_stored(
    denoiser: RoleNetworks, batch: Batch, num_blocks: int, store: Callable[[int], None], limit_bytes: int
) -> int:
    """Blocks whose activations fit into `limit_bytes`, from the peaks of one graded evaluation with few of them stored
    and with some more. Prefixes stay allocated as in a student update."""
    few, more = (max(1, num_blocks * eighths // 8) for eighths in (1, 2))
    with torch.no_grad():
        held = [
            RoleDenoiser(denoiser, role).prefix(batch.condition) for role in (roles.TEACHER, roles.TEACHER, FAKE_SCORE)
        ]
    peaks = []
    for count in (few, more):
        store(count)
        torch.cuda.reset_peak_memory_stats()
        evaluate_graded(RoleDenoiser(denoiser, FAKE_SCORE), batch)
        peaks.append(torch.cuda.max_memory_allocated())
        denoiser.zero_grad(set_to_none=True)
    del held
    each = max(1.0, (peaks[1] - peaks[0]) / max(1, more - few))
    moments = 8 * sum(parameter.numel() for parameter in denoiser.parameters() if parameter.requires_grad)
    return max(0, min(num_blocks, more + int((limit_bytes - moments - peaks[1]) / each)))
