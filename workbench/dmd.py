"""Distribution matching distillation: losses of the student and of the fake score, on predictions.

Yin et al. 2024 (DMD, arXiv 2311.18828; DMD2, arXiv 2405.14867). The student minimises KL(p_student || p_teacher) over
noise levels t; the gradient with respect to its sample x is the difference of two scores at x_t, written here with the
clean predictions that both networks make there. All losses are per sample, (B,).
"""

from __future__ import annotations

from torch import Tensor


def dmd_direction(x: Tensor, x0_fake: Tensor, x0_real: Tensor) -> Tensor:
    """g = (x0_fake - x0_real) / mean |x - x0_real|, the mean taken within each sample (DMD eq. 7-8): (B, N, C).

    At equal x_t, s_real - s_fake = (1 - t) / t^2 (x0_real - x0_fake): the factor is absorbed by the normalisation.
    """
    scale = (x - x0_real).abs().mean(dim=tuple(range(1, x.ndim)), keepdim=True)
    return (x0_fake - x0_real) / scale.clamp_min(1e-6)


def dmd_loss(x: Tensor, direction: Tensor) -> Tensor:
    """0.5 mean (x - sg(x - g))^2 per sample: its gradient with respect to x is g / numel (DMD2 eq. 3): (B,)."""
    target = (x - direction).detach()
    return 0.5 * (x - target).square().flatten(1).mean(dim=1)


def flow_matching_loss(v_predicted: Tensor, v_target: Tensor) -> Tensor:
    """mean (v_predicted - v_target)^2 per sample, the regression whose optimum is E[eps - x0 | x_t]: (B,)."""
    return (v_predicted - v_target).square().flatten(1).mean(dim=1)
