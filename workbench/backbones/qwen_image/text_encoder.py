"""Qwen2.5-VL as the stock pipelines call it, without two faults of that call."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration


def prepare(encoder: Qwen2_5_VLForConditionalGeneration) -> None:
    """Let the encoder place image tokens on their grids, and compute no scores of words, which nobody reads.

    transformers 5 derives the positions of image tokens from `mm_token_type_ids` alone. The pipelines of diffusers do
    not give them up to 0.42 (its issue 14194), so that every image would be read as a line of text, other than in
    training; where a pipeline gives them, nothing is changed.
    """
    image_token = encoder.config.image_token_id

    def add_token_types(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if kwargs.get("image_grid_thw") is None or kwargs.get("mm_token_type_ids") is not None:
            return args, kwargs
        return args, {**kwargs, "mm_token_type_ids": (kwargs["input_ids"] == image_token).int()}

    encoder.register_forward_pre_hook(add_token_types, with_kwargs=True)
    encoder.lm_head = nn.Identity()
