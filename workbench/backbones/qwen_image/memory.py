"""Memory of the activations of both streams."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from workbench.backbones.activations import META, BlockMemory, fused_attention, measure, on_meta
from workbench.backbones.qwen_image import sequence
from workbench.backbones.qwen_image.blocks import DualBlock
from workbench.batch import Condition


def activation_bytes(
    blocks: nn.ModuleList, num_recomputed: int, num_times: int, condition: Condition, role: str, dtype: torch.dtype
) -> int:
    """Bytes that one evaluation with gradient on `condition` keeps, uncompiled; compiled blocks recompute what is cheap
    and keep about half as much. num_times: embeddings of time of each sample. dtype: of the computation."""
    first = blocks[0]
    assert isinstance(first, DualBlock)
    memory, stored = block_memory(first, num_times, condition, role, dtype), len(blocks) - num_recomputed
    # One block at a time has all its activations again while it is recomputed.
    return stored * memory.stored + num_recomputed * memory.input + (memory.stored if not stored else 0)


def block_memory(first: DualBlock, num_times: int, condition: Condition, role: str, dtype: torch.dtype) -> BlockMemory:
    """Memory of a block like `first`."""
    block = DualBlock(on_meta(first.block, dtype))
    layout, width, heads = condition.layout, block.block.attn.inner_dim, block.block.attn.heads
    counts = (sequence.num_image_tokens(layout), layout.text_tokens, num_times)

    def empty(num_tokens: int) -> Tensor:
        return torch.empty(len(condition.lengths), num_tokens, width, device=META, dtype=dtype, requires_grad=True)

    images, text, time = (empty(count) for count in counts)
    rotary = torch.empty(1, sum(counts[:2]), width // heads // 2, 2, device=META)
    return measure(block, lambda: block(images, text, time, layout.num_target_tokens, rotary, fused_attention, role), 2)
