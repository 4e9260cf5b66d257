"""The order of tokens in Qwen-Image's joint attention: text, then the image stream of target and references.

The text keeps the slots of the images that its encoder read, so their latents add to the image stream alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.batch import Condition, Layout


def num_image_tokens(layout: Layout) -> int:
    """Tokens of the target and of all references."""
    return layout.num_target_tokens + sum(item.num_tokens for item in layout.references)


def key_valid(condition: Condition) -> Tensor | None:
    """(B, 1, 1, L + image tokens) bool: False from each sample's true length to the end of the text; None without
    padding, which leaves attention its fastest kernels."""
    layout, lengths = condition.layout, condition.lengths
    if not layout.padded:
        return None
    positions = torch.arange(layout.text_tokens + num_image_tokens(layout), device=lengths.device)
    return ((positions < lengths[:, None]) | (positions >= layout.text_tokens))[:, None, None]
