"""The order of tokens in Qwen-Image-2.1: text, each reference in place of its slots in the text, then the target.

The prefix is everything before the target; P counts its tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.batch import Condition, Layout

LATENT_TOKENS_PER_SLOT = 4
"""One image slot of the text encoder stands for 2 x 2 latent tokens."""
PIXELS_PER_TOKEN = 16
"""Side of the square of pixels behind one latent token."""
SIDE_MULTIPLE = 2 * PIXELS_PER_TOKEN
"""Sides of images are multiples of so many pixels: an image fills entire slots."""


def num_prefix_tokens(layout: Layout) -> int:
    """P: text tokens outside the slots, and the latent tokens of all references."""
    return layout.text_tokens + sum(item.num_tokens - item.num_slots for item in layout.references)


def runs(layout: Layout) -> list[tuple[int, int, bool]]:
    """(start, end, is_text) of the runs of tokens that make up the prefix."""
    found, read, length = [], 0, 0
    for reference in layout.references:
        for count, is_text in ((reference.slot - read, True), (reference.num_tokens, False)):
            if count:
                found.append((length, length + count, is_text))
                length += count
        read = reference.end
    if layout.text_tokens > read:
        found.append((length, length + layout.text_tokens - read, True))
    return found


def join(text: Tensor, references: Tensor | None, layout: Layout) -> Tensor:
    """Text (B, L, width) with each reference's tokens in place of its slots, (B, P, width)."""
    parts, read, used = [], 0, 0
    for reference in layout.references:
        assert references is not None
        parts += [text[:, read : reference.slot], references[:, used : used + reference.num_tokens]]
        read, used = reference.end, used + reference.num_tokens
    return torch.cat([*parts, text[:, read:]], dim=1) if parts else text


def key_valid(condition: Condition) -> Tensor | None:
    """(B, 1, 1, P + N) bool: False from each sample's true length to the end of the prefix; None without padding."""
    layout, lengths = condition.layout, condition.lengths
    if not layout.padded:
        return None
    length = num_prefix_tokens(layout)
    positions = torch.arange(length + layout.num_target_tokens, device=lengths.device)
    valid = positions < (lengths + length - layout.text_tokens)[:, None]
    return (valid | (positions >= length))[:, None, None]


def begin_alike(cond: Condition, uncond: Condition) -> bool:
    """Whether two conditions of the same samples agree up to the end of the last reference, and text follows in both.

    What precedes a reference is the pipeline's template, which does not depend on the prompt, and text is causal: with
    references in equal slots everything up to the last of them is the same.
    """
    references = cond.layout.references
    return (
        bool(references)
        and references == uncond.layout.references
        and len(cond.lengths) == len(uncond.lengths)
        and min(cond.layout.text_tokens, uncond.layout.text_tokens) > references[-1].end
    )
