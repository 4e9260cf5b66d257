"""Storage and compute dtypes of the weights, their memory, and how they are sharded (FSDP2)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from workbench.backbones import fp8, stored_weights
from workbench.backbones.base import Denoiser, TransformerDenoiser
from workbench.recipe.config import Recipe

WEIGHT_BYTES = 4
"""Of a trained parameter, its gradient and the student's average, each: float32."""
Precision = Literal["32-true", "tf32", "bf16-mixed"]


def frozen_dtype(recipe: Recipe) -> torch.dtype | None:
    """Storage dtype of frozen weights; None leaves them as they are.

    bfloat16 wherever all roles multiply in it without autocast: adapters over a shared base, and sharded networks.
    """
    computes_all = recipe.model.roles == "lora" or recipe.trainer.strategy == "fsdp"
    return torch.bfloat16 if recipe.trainer.precision == "bf16-mixed" and computes_all else None


def trainer_precision(recipe: Recipe) -> Literal["32-true", "bf16-mixed"]:
    """Lightning's setting: autocast only over full float32 weights on one device; elsewhere the dtypes of the weights
    decide. Also sets how this process computes float32 matrix products."""
    precision = recipe.trainer.precision
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    autocasts = precision == "bf16-mixed" and recipe.trainer.strategy != "fsdp" and frozen_dtype(recipe) is None
    return "bf16-mixed" if autocasts else "32-true"


def cast_parameters(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Cast parameters in place; buffers are tables (the frequencies of the time embedding) that need float32."""
    if dtype is not None:
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)


def state_bytes(denoiser: Denoiser, of_student: int, moments: float, *, averaged: bool = True) -> int:
    """Memory of all weights, of gradients and moments of the trained ones, and of the student's average if it has one.

    of_student: its trained parameters; all others that are trained are the fake score's. moments: bytes of the moments
    of one parameter. One of the two roles has gradients at a time.
    """
    parameters = list(denoiser.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    frozen = sum(p.numel() * p.element_size() for p in parameters if not p.requires_grad)
    copies = trained + max(of_student, trained - of_student) + (of_student if averaged else 0)
    return copies * WEIGHT_BYTES + int(trained * moments) + frozen + fp8.bytes_besides(denoiser)


def gathered_bytes(network: TransformerDenoiser, dtype: torch.dtype) -> int:
    """Memory of what FSDP2 gathers of a network at its busiest, in the backward pass: a block, the next one, what came
    in of it, and the block's gradient on its way out in float32."""
    block = sum(parameter.numel() for parameter in network.blocks[0].parameters())
    return block * (3 * dtype.itemsize + WEIGHT_BYTES)


def shard(denoiser: Denoiser, mesh: DeviceMesh, precision: Precision) -> None:
    """Shard every block and every network of `denoiser` over the data-parallel axis of `mesh`, in place.

    Shards stay float32; `bf16-mixed` computes in bfloat16 and reduces gradients in float32. Networks that were built
    without values read them now, each rank its own shards.

    Raises:
        UserError: as `fill`.
    """
    policy = MixedPrecisionPolicy()
    if precision == "bf16-mixed":
        # The network itself casts what it multiplies; casting all inputs would round the times, by up to 1 / 256.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    data_parallel = mesh["data_parallel"]
    for network in denoiser.transformers():
        for block in network.blocks:
            fully_shard(block, mesh=data_parallel, mp_policy=policy)
        # By default a root stays gathered after a forward. The roles take turns, so parameters listed, averaged or
        # swapped between two forwards would be gathered copies, which no optimiser updates.
        fully_shard(network, mesh=data_parallel, mp_policy=policy, reshard_after_forward=True)
        for method in ("prefixes", "velocity", "velocity_and_features"):
            register_fsdp_forward_method(network, method)
    fill(denoiser, torch.device(mesh.device_type))


def fill(denoiser: Denoiser, device: torch.device) -> None:
    """Let networks that were built without values read them to `device` (collective where there are several ranks).

    Raises:
        UserError: as `stored_weights.fill`.
    """
    empty = [network for network in denoiser.transformers() if stored_weights.is_empty(network.transformer)]
    stored_weights.fill([(network.transformer, network.source) for network in empty if network.source], device)


def shard_whole(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a small module over the data-parallel axis of `mesh` in one piece, in place; it computes in float32."""
    fully_shard(module, mesh=mesh["data_parallel"], reshard_after_forward=True)
