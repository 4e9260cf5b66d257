"""AdamW with float32 weights and moments in 8 bits: blocks of a dynamic map, each with a scale (arXiv 2110.02861).

torchao's has the same map; ours adds what a run here needs: the device itself skips a step that is not finite, a CUDA
graph can hold a step, checkpoints are plain or sharded tensors, and a first moment with beta1 = 0 takes no memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

BLOCK = 256
"""Numbers of a row that share a scale; rows that it does not divide are one block each."""
LEAST = 4096
"""Elements from which on a matrix has its moments in 8 bits: below, and in vectors, they stay in float32."""
_DECADES = 7
_TURNS = (0.7548776662466927, 0.5698402909980532, 0.8191725133961645)
"""Multiples of irrational numbers fill the unit interval evenly: by column, row and step."""


class AdamW8bit(torch.optim.Optimizer):
    """AdamW of decoupled weight decay (arXiv 1711.05101).

    found_inf: 1 where the next step is to change nothing, as in torch's fused AdamW; a tensor () on the device.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float | Tensor,
        betas: tuple[float, float],
        weight_decay: float,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": eps})
        self.found_inf: Tensor | None = None

    def prime(self) -> None:
        """Create every state that is not there yet, as the first step does."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if not self.state[parameter]:
                    self.state[parameter] = _fresh(parameter, group["betas"][0] > 0)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step over the gradients that are there, or that `closure` makes; returns what it returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.prime()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = {name: _local(tensor) for name, tensor in self.state[parameter].items()}
                    _step(_local(parameter), _local(parameter.grad).float(), state, group, self.found_inf)
        return loss


def _step(
    weight: Tensor, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any], found_inf: Tensor | None
) -> None:
    (beta1, beta2), eps = group["betas"], group["eps"]
    step = state["step"] + 1
    # v = beta2 v + (1 - beta2) g^2, kept as its root, of which the map spans twice the decades
    root = _read(state, "exp_avg_sq").square_().lerp_(gradient.square(), 1 - beta2).sqrt_()
    moment = _read(state, "exp_avg").lerp_(gradient, 1 - beta1) if beta1 else gradient
    corrected = moment / (1 - beta1**step) / (root / (1 - beta2**step).sqrt() + eps)
    new = weight * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * corrected
    changes = {"step": step, **_written(state, "exp_avg_sq", root, step)}
    if beta1:
        changes |= _written(state, "exp_avg", moment, step)
    for old, changed in [(weight, new), *((state[name], value) for name, value in changes.items())]:
        old.copy_(changed if found_inf is None else torch.where(found_inf > 0, old, changed))


def moment_bytes(kind: str, beta1: float) -> float:
    """Memory of the moments of one element of a large matrix."""
    return 8.0 if kind == "float32" else (1 + 4 / BLOCK) * (2 if beta1 else 1)


def _fresh(parameter: Tensor, has_first: bool) -> dict[str, Tensor]:
    """State before the first step; `exp_avg_sq` is held as its root."""
    state = {"step": torch.zeros((), dtype=torch.float32, device=parameter.device)}
    for name in ("exp_avg", "exp_avg_sq") if has_first else ("exp_avg_sq",):
        if parameter.ndim < 2 or parameter.numel() < LEAST:
            state[name] = torch.zeros_like(parameter, dtype=torch.float32)
            continue
        local = _local(parameter)
        zero = int((dynamic_map(name == "exp_avg", torch.device("cpu")) == 0).nonzero())
        state[name] = _like(parameter, torch.full_like(local, zero, dtype=torch.uint8))
        scale = torch.zeros(*local.shape[:-1], local.shape[-1] // _block(local), device=local.device)
        state[f"{name}_scale"] = _like(parameter, scale)
    return state


@cache
def dynamic_map(signed: bool, device: torch.device) -> Tensor:
    """The 256 numbers of [-1, 1] or [0, 1] that a code stands for, ascending (256,): 0, 1, and seven decades each cut
    into twice as many steps as the one below."""
    parts = []
    for decade in range(_DECADES):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (0 if signed else 1)) + 1, dtype=torch.float64)
        parts.append((edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - _DECADES + 1))
    positive = torch.cat(parts)
    both = torch.cat([positive, -positive] if signed else [positive])
    return torch.cat([both, torch.tensor([0.0, 1.0], dtype=torch.float64)]).sort().values.float().to(device)


def _read(state: dict[str, Tensor], name: str) -> Tensor:
    """The moment in float32, a copy."""
    held = state[name]
    if held.dtype != torch.uint8:
        return held.clone()
    blocks = dynamic_map(name == "exp_avg", held.device)[held.int()].view(*held.shape[:-1], -1, _block(held))
    return (blocks * state[f"{name}_scale"].unsqueeze(-1)).view(held.shape)


def _written(state: dict[str, Tensor], name: str, moment: Tensor, step: Tensor) -> dict[str, Tensor]:
    """What `state` holds of a moment: codes and scales.

    Between two codes the choice goes by `_dither`, so that it is right on average over the steps: to the nearest, a
    moment that falls by a thousandth a step would never move.
    """
    if state[name].dtype != torch.uint8:
        return {name: moment}
    values = dynamic_map(name == "exp_avg", moment.device)
    blocks = moment.view(*moment.shape[:-1], -1, _block(moment))
    scale = blocks.abs().amax(dim=-1)
    relative = (blocks / scale.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)).view(moment.shape)
    lower = (torch.bucketize(relative, values, right=True, out_int32=True) - 1).clamp_(0, len(values) - 2)
    low, high = values[lower], values[lower + 1]
    codes = lower + ((relative - low) / (high - low) > _dither(relative, step)).int()
    return {name: codes.to(torch.uint8), f"{name}_scale": scale}


def _dither(like: Tensor, step: Tensor) -> Tensor:
    """Numbers in [0, 1) of the shape of `like`, other ones at every step, evenly spread over space and time."""
    rows = torch.arange(math.prod(like.shape[:-1]), device=like.device).view(*like.shape[:-1], 1)
    columns = torch.arange(like.shape[-1], device=like.device)
    turns = zip(_TURNS, (columns, rows, step), strict=True)
    return sum(((factor * count.double()) % 1).float() for factor, count in turns) % 1  # type: ignore[return-value]


def _block(like: Tensor) -> int:
    width = like.shape[-1]
    return BLOCK if width % BLOCK == 0 else width


def _local(tensor: Tensor) -> Tensor:
    """The part of this rank."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _like(parameter: Tensor, local: Tensor) -> Tensor:
    """`local`, whose rows are those of `parameter`, sharded as this is."""
    if not isinstance(parameter, DTensor):
        return local
    shape = torch.Size((*parameter.shape[:-1], local.shape[-1]))
    stride = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(
        local, parameter.device_mesh, parameter.placements, run_check=False, shape=shape, stride=stride
    )
