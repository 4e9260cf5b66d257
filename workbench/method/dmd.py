"""Distribution matching distillation: losses of the student and of the fake score, on predictions.

Yin et al. 2024 (DMD, arXiv 2311.18828; DMD2, arXiv 2405.14867). The student minimises KL(p_student || p_teacher) over
noise levels t; the gradient with respect to its sample x is the difference of two scores at x_t, written here with the
clean predictions that both networks make there. All losses are per sample, (B,).
"""

from __future__ import annotations

from torch import Tensor

from workbench.method import flow


def dmd_direction(x: Tensor, x0_fake: Tensor, x0_real: Tensor) -> Tensor:
    """g = (x0_fake - x0_real) / mean |x - x0_real|, the mean taken within each sample (DMD eq. 7-8): (B, N, C).

    At equal x_t, s_real - s_fake = (1 - t) / t^2 (x0_real - x0_fake): the factor is absorbed by the normalisation.
    """
    scale = (x - x0_real).abs().mean(dim=tuple(range(1, x.ndim)), keepdim=True)
    return (x0_fake - x0_real) / scale.clamp_min(1e-6)


def augmentation_direction(x: Tensor, x0_cond: Tensor, x0_uncond: Tensor, cfg_scale: float) -> Tensor:
    """g = -(w - 1) (x0_cond - x0_uncond) / mean |x - x0_cond|, the mean taken within each sample: (B, N, C).

    The guidance term of the DMD direction by itself (Decoupled DMD, arXiv 2511.22677): added to `dmd_direction` against
    the unguided teacher at the same x_t it makes x0_fake minus the guided x0_real, over that scale. Decoupled means
    that the two terms have different noise levels.
    """
    scale = (x - x0_cond).abs().mean(dim=tuple(range(1, x.ndim)), keepdim=True)
    return -(cfg_scale - 1) * (x0_cond - x0_uncond) / scale.clamp_min(1e-6)


def dmd_loss(x: Tensor, direction: Tensor) -> Tensor:
    """0.5 mean (x - sg(x - g))^2 per sample: its gradient with respect to x is g / numel (DMD2 eq. 3): (B,)."""
    target = (x - direction).detach()
    return 0.5 * (x - target).square().flatten(1).mean(dim=1)


def flow_matching_loss(v_predicted: Tensor, v_target: Tensor) -> Tensor:
    """mean (v_predicted - v_target)^2 per sample, the regression whose optimum is E[eps - x0 | x_t]: (B,)."""
    return (v_predicted - v_target).square().flatten(1).mean(dim=1)


def first_step_loss(x: Tensor, noise: Tensor, teacher_state: Tensor, t_next: Tensor) -> Tensor:
    """Flow matching of the student's first step to its teacher's path, which keeps the diversity of the noise: (B,).

    The student's velocity at t = 1 is noise - x for its clean prediction x. The target is the mean velocity of the
    teacher from the same noise to its state at the student's second time, (noise - z) / (1 - t_1), so that at loss 0
    the student's Euler step ends on z (DP-DMD, arXiv 2602.03139).

    Args:
        t_next: t_1, ().
    """
    return flow_matching_loss(flow.velocity(x, noise), (noise - teacher_state) / (1 - t_next))
