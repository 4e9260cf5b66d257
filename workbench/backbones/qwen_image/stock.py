"""The forward of diffusers over the full sequence, the reference for the network here."""

from __future__ import annotations

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from workbench.batch import Condition


def velocity(stock: QwenImageTransformer2DModel, condition: Condition, x_t: Tensor, t: Tensor) -> Tensor:
    """Velocity of the target tokens by one stock forward: (B, N, C), (B,) -> (B, N, C). Padding is masked."""
    prompt, layout = condition.prompt, condition.layout
    shapes = [(1, layout.height, layout.width), *((1, item.height, item.width) for item in layout.references)]
    images = x_t if condition.references is None else torch.cat([x_t, condition.references], dim=1)
    valid = None
    if min(condition.lengths.tolist()) < prompt.shape[1]:
        valid = torch.arange(prompt.shape[1], device=x_t.device)[None] < condition.lengths[:, None]
    output = stock(
        hidden_states=images.to(stock.dtype),
        encoder_hidden_states=prompt.to(stock.dtype),
        encoder_hidden_states_mask=valid,
        timestep=t,
        img_shapes=[shapes] * len(x_t),
        return_dict=False,
    )[0]
    return output[:, : layout.num_target_tokens].to(x_t.dtype)
