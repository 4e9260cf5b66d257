"""Memory of the activations of prefix and target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workbench.backbones.activations import META, BlockMemory, fused_attention, measure, on_meta
from workbench.backbones.qwen_image_21 import sequence
from workbench.backbones.qwen_image_21.blocks import SplitBlock
from workbench.batch import Condition


@dataclass(frozen=True)
class _Attend:
    """Attention to a context and to the tokens of the run."""

    context: tuple[Tensor, Tensor] | None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.context is not None:
            key, value = (torch.cat(pair, dim=1) for pair in zip(self.context, (key, value), strict=True))
        return fused_attention(query, key, value)


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
    block = SplitBlock(on_meta(first.block, dtype))
    batch_size, layout = len(condition.lengths), condition.layout
    num_prefix = sequence.num_prefix_tokens(layout)
    width, heads = block.block.attn.inner_dim, block.block.attn.heads
    head_dim = width // heads

    def run(num_tokens: int, attend: _Attend) -> BlockMemory:
        x = torch.empty(batch_size, num_tokens, width, device=META, dtype=dtype, requires_grad=True)
        modulation = tuple(torch.empty(1, 1, width, device=META, dtype=dtype) for _ in range(4))
        rotary = torch.empty(1, num_tokens, head_dim // 2, 2, device=META)

        def evaluated() -> tuple[Tensor, Tensor, Tensor]:
            x_out, (key, value) = block(x, modulation, rotary, attend, role)
            return x_out, key, value

        # Keys and values of the prefix stay for the target.
        return measure(block, evaluated, 3 if attend.context is None else 1)

    context = torch.empty(batch_size, num_prefix, heads, head_dim, device=META, dtype=dtype)
    return run(num_prefix, _Attend(None)), run(layout.num_target_tokens, _Attend((context, context.clone())))
