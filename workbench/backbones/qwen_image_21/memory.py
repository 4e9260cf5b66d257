"""Peak memory of a distillation step on one device, before it is run: held state, and activations of one evaluation."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.backbones.qwen_image_21.blocks import SplitBlock
from workbench.backbones.qwen_image_21.transformer import QwenImage21, SplitTransformer
from workbench.backbones.roles import STUDENT
from workbench.batch import Condition

META = torch.device("meta")
BYTES_PER_TRAINED = 4 * 4
"""Weight, gradient and two moments in float32; the student's average is a fifth copy."""


class _FusedAttention(torch.autograd.Function):
    """What a fused kernel keeps, which is no (S, S) matrix: inputs and output."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise NotImplementedError("a run without numbers has no backward pass")


@dataclass(frozen=True)
class _Attend:
    """Attention to a context and to the run's own tokens."""

    context: tuple[Tensor, Tensor] | None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.context is not None:
            key, value = (torch.cat(pair, dim=1) for pair in zip(self.context, (key, value), strict=True))
        return _FusedAttention.apply(query, key, value)


@dataclass(frozen=True)
class BlockMemory:
    """Bytes of one block for one batch. stored: kept for its backward pass. input: kept where it is recomputed."""

    stored: int
    input: int


def state_bytes(denoiser: torch.nn.Module, averaged: int) -> int:
    """Weights of every role, gradients and moments of the trained ones, and an average of `averaged` parameters.

    The gradients of the two trained roles are never there at once; the smaller is counted all the same.
    """
    parameters = list(denoiser.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    frozen = sum(p.numel() * p.element_size() for p in parameters if not p.requires_grad)
    return trained * BYTES_PER_TRAINED + averaged * 4 + frozen


def activation_bytes(denoiser: QwenImage21, condition: Condition, dtype: torch.dtype) -> int:
    """Of one graded evaluation of the student on `condition`, prefix and target, uncompiled; compiled blocks recompute
    what is cheap and keep about half of what others store.

    dtype: what is computed in.
    """
    network = denoiser.network(STUDENT)
    prefix, target = block_memory(network, condition, dtype)
    recomputed, stored = network.num_recomputed, len(network.blocks) - network.num_recomputed
    # Keys and values are all that the last block makes of the prefix.
    prefixes = max(0, stored - 1) * prefix.stored + (recomputed + min(1, stored)) * prefix.input
    kept = prefixes + stored * target.stored + recomputed * target.input
    # One block at a time is whole again while it is recomputed.
    return kept + (max(prefix.stored, target.stored) if recomputed and not stored else 0)


def prefix_bytes(denoiser: QwenImage21, condition: Condition, dtype: torch.dtype) -> int:
    """Keys and values of one prefix without gradient. While the student's graph is held, the direction needs one of the
    fake score and one or, with guidance, two of the teacher."""
    network = denoiser.network(STUDENT)
    numbers = 2 * len(network.blocks) * network.transformer.inner_dim
    return len(condition.lengths) * condition.layout.num_prefix_tokens * numbers * dtype.itemsize


def block_memory(
    network: SplitTransformer, condition: Condition, dtype: torch.dtype
) -> tuple[BlockMemory, BlockMemory]:
    """Of a block over the prefix, and of one over the target; found by a run that has shapes and no numbers."""
    width = network.transformer.inner_dim
    first = network.blocks[0]
    assert isinstance(first, SplitBlock)
    block = copy.deepcopy(first).to(META, dtype)
    block.uncompile_body()
    batch_size = len(condition.lengths)
    num_prefix, num_target = condition.layout.num_prefix_tokens, condition.layout.num_target_tokens
    head_dim = block.block.attn.inner_dim // block.block.attn.heads

    def run(num_tokens: int, attend: _Attend) -> BlockMemory:
        x = torch.empty(batch_size, num_tokens, width, device=META, dtype=dtype, requires_grad=True)
        modulation = tuple(torch.empty(1, 1, width, device=META, dtype=dtype) for _ in range(4))
        rotary = torch.empty(1, num_tokens, head_dim // 2, 2, device=META)
        own = {parameter.untyped_storage()._cdata for parameter in block.parameters()}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage()._cdata not in own:
                kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            _, (key, value) = block(x, modulation, rotary, attend, STUDENT)
        # The next block reads the output, and keys and values stay for the target.
        for tensor in (x, key, value):
            keep(tensor)
        stored = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        passed_on = (x, key, value) if attend.context is None else (x,)
        return BlockMemory(stored, sum(tensor.untyped_storage().nbytes() for tensor in passed_on))

    context = torch.empty(batch_size, num_prefix, block.block.attn.heads, head_dim, device=META, dtype=dtype)
    return run(num_prefix, _Attend(None)), run(num_target, _Attend((context, context.clone())))
