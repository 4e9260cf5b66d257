"""FSDP2 over the networks of a denoiser."""

from __future__ import annotations

from typing import Literal

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from workbench.backbones.qwen_image_21.transformer import QwenImage21, SplitTransformer


def shard(denoiser: QwenImage21, mesh: DeviceMesh, precision: Literal["32-true", "tf32", "bf16-mixed"]) -> None:
    """Shard every block and every network of `denoiser` over the data-parallel axis of `mesh`, in place.

    Shards stay float32; `bf16-mixed` computes in bfloat16 and reduces gradients in float32.
    """
    policy = MixedPrecisionPolicy()
    if precision == "bf16-mixed":
        # The network casts what it multiplies; times cast with the inputs would be off by up to 1 / 256.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    data_parallel = mesh["data_parallel"]
    for network in denoiser.networks.values():
        assert isinstance(network, SplitTransformer)
        for block in network.blocks:
            fully_shard(block, mesh=data_parallel, mp_policy=policy)
        # A root stays gathered after a forward by default, and the roles take turns: parameters listed, averaged or
        # swapped between two forwards would be copies that no optimiser steps.
        fully_shard(network, mesh=data_parallel, mp_policy=policy, reshard_after_forward=True)
        for method in ("prefix", "velocity"):
            register_fsdp_forward_method(network, method)
