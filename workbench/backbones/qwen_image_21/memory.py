"""Memory of activations, measured on the meta device before anything is run."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from workbench.backbones.qwen_image_21 import sequence
from workbench.backbones.qwen_image_21.blocks import SplitBlock
from workbench.batch import Condition

META = torch.device("meta")


class _FusedAttention(torch.autograd.Function):
    """Attention that saves what a fused kernel saves: inputs and output, no (S, S) matrix."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise NotImplementedError("the meta device has no backward pass")


@dataclass(frozen=True)
class _Attend:
    """Attention to a context and to the tokens of the run."""

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


def activation_bytes(
    blocks: nn.ModuleList, num_recomputed: int, condition: Condition, role: str, dtype: torch.dtype
) -> int:
    """Bytes that one evaluation with gradient on `condition` keeps, prefix and target, uncompiled; compiled blocks
    recompute what is cheap and keep about half as much. dtype: of the computation."""
    first = blocks[0]
    assert isinstance(first, SplitBlock)
    prefix, target = block_memory(first, condition, role, dtype)
    stored = len(blocks) - num_recomputed
    # Keys and values are all that the last block computes of the prefix.
    prefixes = max(0, stored - 1) * prefix.stored + (num_recomputed + min(1, stored)) * prefix.input
    kept = prefixes + stored * target.stored + num_recomputed * target.input
    # One block at a time has all its activations again while it is recomputed.
    return kept + (max(prefix.stored, target.stored) if num_recomputed and not stored else 0)


def block_memory(
    first: SplitBlock, condition: Condition, role: str, dtype: torch.dtype
) -> tuple[BlockMemory, BlockMemory]:
    """Memory of a block like `first` over the prefix, and over the target."""
    block = SplitBlock(copy.deepcopy(first.block)).to(META, dtype)
    batch_size, layout = len(condition.lengths), condition.layout
    num_prefix = sequence.num_prefix_tokens(layout)
    width, heads = block.block.attn.inner_dim, block.block.attn.heads
    head_dim = width // heads

    def run(num_tokens: int, attend: _Attend) -> BlockMemory:
        x = torch.empty(batch_size, num_tokens, width, device=META, dtype=dtype, requires_grad=True)
        modulation = tuple(torch.empty(1, 1, width, device=META, dtype=dtype) for _ in range(4))
        rotary = torch.empty(1, num_tokens, head_dim // 2, 2, device=META)
        weights = {parameter.untyped_storage()._cdata for parameter in block.parameters()}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.untyped_storage()._cdata not in weights:
                kept[tensor.untyped_storage()._cdata] = tensor
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            _, (key, value) = block(x, modulation, rotary, attend, role)
        # The next block reads the output, and keys and values stay for the target.
        for tensor in (x, key, value):
            keep(tensor)
        stored = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        passed_on = (x, key, value) if attend.context is None else (x,)
        return BlockMemory(stored, sum(tensor.untyped_storage().nbytes() for tensor in passed_on))

    context = torch.empty(batch_size, num_prefix, heads, head_dim, device=META, dtype=dtype)
    return run(num_prefix, _Attend(None)), run(layout.num_target_tokens, _Attend((context, context.clone())))
