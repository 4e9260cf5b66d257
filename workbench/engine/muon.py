"""Muon (K. Jordan et al. 2024; learning rate matched to AdamW's as in arXiv 2502.16982) that a CUDA graph can capture.

torch's own takes one matrix at a time, some thirty launches each, and a rate that the host must know. Here all matrices
of a shape go through the iteration together, and rate and `found_inf` may live on the device.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class BatchedMuon(torch.optim.Muon):
    """What `torch.optim.Muon` computes, with `adjust_lr_fn="match_rms_adamw"` and without weight decay.

    found_inf: () float; where it is 1, a step leaves weights and momentum as they are.
    """

    def __init__(self, params: Any, lr: float | Tensor = 1e-3, momentum: float = 0.95) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")  # type: ignore[arg-type]
        self.found_inf: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step of every matrix that has a gradient. closure: computes the gradients first, as Lightning's does."""
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            for shape, parameters in by_shape.items():
                rate = group["lr"] * 0.2 * math.sqrt(max(shape))
                self._step_of_shape(parameters, group, rate)

    def _step_of_shape(self, parameters: list[nn.Parameter], group: dict[str, Any], rate: float | Tensor) -> None:
        gradients = torch.stack([parameter.grad for parameter in parameters if parameter.grad is not None])
        momenta = [self._momentum(parameter) for parameter in parameters]
        taken: float | Tensor = 1.0
        if self.found_inf is not None:
            taken = 1 - self.found_inf
            gradients = torch.where(taken > 0, gradients, 0.0)
        weight = torch.as_tensor((1 - group["momentum"]) * taken, device=gradients.device)
        averaged = torch.stack(momenta).lerp_(gradients, weight)
        torch._foreach_copy_(momenta, list(averaged.unbind()))
        update = orthogonalised(
            gradients.lerp(averaged, group["momentum"]), group["ns_coefficients"], group["ns_steps"]
        )
        torch._foreach_sub_(parameters, (update * (rate * taken)).unbind())  # type: ignore[arg-type]

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum_buffer"]
        return momentum


def orthogonalised(matrices: Tensor, coefficients: tuple[float, float, float], num_steps: int) -> Tensor:
    """(n, a, b) -> the same, singular values near 1: the Newton-Schulz iteration of Muon, in bfloat16."""
    a, b, c = coefficients
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.bfloat16()
    x = x.mT if is_tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(num_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if is_tall else x).to(matrices.dtype)
