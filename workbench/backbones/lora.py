"""Low-rank adapters, chosen by an argument of the forward: a checkpointed recomputation sees the same one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.backbones import fp8
from workbench.backbones.fp8 import Fp8Linear, Fp8Weight


class RoleLinear(nn.Module):
    """A frozen linear layer with one adapter per role: y = W x + (alpha / r) B_role A_role x (arXiv 2106.09685).

    A role without an adapter sees the frozen layer alone.
    """

    def __init__(self, base_layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer: nn.Linear | Fp8Linear = base_layer.requires_grad_(False)
        self.lora_A = nn.ModuleDict()
        self.lora_B = nn.ModuleDict()
        self.scaling: dict[str, float] = {}

    def add_adapter(self, role: str, rank: int, alpha: float, generator: torch.Generator) -> None:
        """A fresh adapter: A uniform as in a linear layer, B zero, so that the role starts as the frozen layer."""
        device = _device_of(self.base_layer)
        down = nn.Linear(self.base_layer.in_features, rank, bias=False, device=device)
        up = nn.Linear(rank, self.base_layer.out_features, bias=False, device=device)
        bound = 1 / math.sqrt(self.base_layer.in_features)
        with torch.no_grad():
            down.weight.copy_(torch.empty(down.weight.shape).uniform_(-bound, bound, generator=generator))
            up.weight.zero_()
        self.lora_A[role], self.lora_B[role] = down, up
        self.scaling[role] = alpha / rank

    def load_adapter(self, role: str, down: Tensor, up: Tensor, scaling: float) -> None:
        """A frozen adapter from down (r, in) and up (out, r)."""
        weight = self.base_layer.weight
        for halves, value in ((self.lora_A, down), (self.lora_B, up)):
            half = nn.Linear(value.shape[1], value.shape[0], bias=False, device="meta").requires_grad_(False)
            # Sharding accepts contiguous parameters only.
            placed = value.to(_device_of(self.base_layer), weight.dtype).contiguous()
            half.load_state_dict({"weight": placed}, assign=True)
            halves[role] = half
        self.scaling[role] = scaling

    def update(self, role: str, dtype: torch.dtype) -> Update:
        """The adapter of `role`, which must have one; without gradient where none is recorded."""
        down, up = self.lora_A[role].weight, self.lora_B[role].weight
        assert isinstance(down, Tensor) and isinstance(up, Tensor)
        if not torch.is_grad_enabled():
            # A compiled block then treats trained and frozen adapters alike.
            down, up = down.detach(), up.detach()
        return Update(down.to(dtype), up.to(dtype), self.scaling[role])

    def forward(self, x: Tensor, role: str | None) -> Tensor:
        return apply(self, x, role)


def _device_of(layer: nn.Linear | Fp8Linear) -> torch.device:
    """Where its adapters belong: values are there from the start, although those of the layer may be yet to come."""
    return torch.device("cpu") if layer.weight.is_meta else layer.weight.device


class Update(NamedTuple):
    """down (r, in) and up (out, r) of a low-rank update in the dtype that is computed in."""

    down: Tensor
    up: Tensor
    scaling: float


class Projection(NamedTuple):
    """A linear layer as one role sees it: weight (out, in), bias (out,) or None, and the update or None."""

    weight: Tensor | Fp8Weight
    bias: Tensor | None
    update: Update | None


def projection(linear: nn.Module, role: str | None, dtype: torch.dtype) -> Projection:
    """The tensors that `linear` multiplies with for `role`; plain layers are the same for all roles.

    dtype: of the input; adapters kept in float32 are cast to it, with gradient.
    """
    match linear:
        case RoleLinear():
            base = projection(linear.base_layer, None, dtype)
            adapted = role is not None and role in linear.scaling
            return base._replace(update=linear.update(role, dtype)) if adapted and role else base
        case Fp8Linear():
            return Projection(linear.quantised(_computed_in(linear.weight.device, dtype)), linear.bias, None)
        case nn.Linear():
            return Projection(linear.weight, linear.bias, None)
        case _:
            raise TypeError(f"{type(linear).__name__} is no linear layer")


def _computed_in(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """Dtype of the product of an input in `dtype`: autocast, which knows torch's own products alone, may change it."""
    # The meta device, on which memory is measured, has no autocast.
    autocasts = device.type != "meta" and torch.is_autocast_enabled(device.type)
    return torch.get_autocast_dtype(device.type) if autocasts else dtype


def project(layer: Projection, x: Tensor) -> Tensor:
    """W x + b + scaling up down x."""
    weight, bias = layer.weight, layer.bias
    y = F.linear(x, weight, bias) if isinstance(weight, Tensor) else fp8.linear(x, weight, bias)
    if layer.update is None:
        return y
    down, up, scaling = layer.update
    return y + scaling * F.linear(F.linear(x, down), up)


def apply(layer: nn.Module, x: Tensor, role: str | None) -> Tensor:
    """What a linear layer, with adapters or without, gives for `role`."""
    return project(projection(layer, role, x.dtype), x)


def install(module: nn.Module) -> None:
    """Wrap every linear layer below `module` in a `RoleLinear`, unless it is in one already."""
    for name, child in module.named_children():
        match child:
            case RoleLinear():
                continue
            case nn.Linear():
                setattr(module, name, RoleLinear(child))
            case _:
                install(child)


def wrap(linear: nn.Linear, *roots: nn.Module) -> None:
    """Put one `RoleLinear` in the place of `linear`, wherever it stands below `roots`."""
    wrapped = RoleLinear(linear)
    for parent in [module for root in roots for module in root.modules()]:
        for name, child in parent.named_children():
            if child is linear and parent is not wrapped:
                setattr(parent, name, wrapped)


def base_linears(root: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer of the stock network below `root` by its name there, with adapters over it or not."""
    found = {name: module for name, module in root.named_modules() if isinstance(module, nn.Linear)}
    return {name.removesuffix(".base_layer"): layer for name, layer in found.items() if ".lora_" not in name}


Adapters = Mapping[str, tuple[Tensor, Tensor]]
"""Layer name, as in the stock network, -> (A (r, in), B (out, r)), alpha / r already in B: W' = W + B A."""


def role_adapters(root: nn.Module, role: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Adapters of one role inside a stock network whose linear layers are `RoleLinear`, as `Adapters`."""
    adapters = {}
    for name, layer in role_linears(root):
        if role in layer.scaling:
            down, up = layer.lora_A[role].weight, layer.lora_B[role].weight
            assert isinstance(down, Tensor) and isinstance(up, Tensor)
            adapters[name] = down, layer.scaling[role] * up
    return adapters


def role_linears(root: nn.Module) -> Iterator[tuple[str, RoleLinear]]:
    """(name, layer) of every `RoleLinear` below `root`."""
    for name, module in root.named_modules():
        if isinstance(module, RoleLinear):
            yield name, module
