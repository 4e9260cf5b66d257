"""Random transformers of Qwen-Image and random conditions for them."""

from __future__ import annotations

import torch
from diffusers import QwenImageTransformer2DModel
from torch import nn

from workbench.batch import Condition, Layout

CHANNELS, PROMPT_WIDTH, HEAD_DIM = 8, 24, 16


def random_transformer(
    zero_cond_t: bool = False, *, num_layers: int = 2, heads: int = 2, std: float = 0.2, **options: bool
) -> QwenImageTransformer2DModel:
    model = QwenImageTransformer2DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS // 4,
        num_layers=num_layers,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=heads,
        joint_attention_dim=PROMPT_WIDTH,
        axes_dims_rope=(4, 6, 6),
        zero_cond_t=zero_cond_t,
        **options,
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std, generator=generator)
    return model.eval()


def random_condition(layout: Layout, lengths: list[int], seed: int = 0) -> Condition:
    """One sample of each length."""
    generator = torch.Generator().manual_seed(seed)
    batch_size, num_reference_tokens = len(lengths), sum(item.num_tokens for item in layout.references)
    references = torch.randn(batch_size, num_reference_tokens, CHANNELS, generator=generator)
    return Condition(
        prompt=torch.randn(batch_size, layout.text_tokens, PROMPT_WIDTH, generator=generator),
        lengths=torch.tensor(lengths),
        layout=layout,
        references=references if layout.references else None,
    )
