"""The forward of diffusers over the full sequence, the reference for the split network."""

from __future__ import annotations

import torch
from diffusers import QwenImage21Transformer2DModel
from torch import Tensor

from workbench.batch import Condition


def velocity(stock: QwenImage21Transformer2DModel, condition: Condition, x_t: Tensor, t: Tensor) -> Tensor:
    """Velocity of the target tokens by one stock forward: (B, N, C), (B,) -> (B, N, C).

    Padding is masked, but shifts the target's positions: exact for samples as long as the text of the batch.
    """
    prompt, layout = condition.prompt, condition.layout
    num_text, device = prompt.shape[1], x_t.device
    images = torch.zeros(len(prompt), num_text + layout.num_target_tokens // 4, dtype=torch.bool, device=device)
    images[:, num_text:] = True
    for reference in layout.references:
        images[:, reference.slot : reference.end] = True
    shapes = [(1, item.height, item.width) for item in layout.references] + [(1, layout.height, layout.width)]
    mask = None
    if min(condition.lengths.tolist()) < num_text:
        mask = torch.arange(num_text, device=device)[None] < condition.lengths[:, None]
    latents = x_t if condition.references is None else torch.cat([condition.references, x_t], dim=1)
    output = stock(
        hidden_states=latents.to(stock.dtype),
        encoder_hidden_states=prompt.to(stock.dtype),
        encoder_hidden_states_mask=mask,
        timestep=t,
        img_shapes=[shapes] * len(prompt),
        img_mask=images,
        return_dict=False,
    )[0]
    return output[:, -layout.num_target_tokens :].to(x_t.dtype)
