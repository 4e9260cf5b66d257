"""What weights are held in, and what is computed in: bfloat16 over float32 masters of whatever is trained."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from workbench.engine.optimisation import lightning_precision
from workbench.recipe.config import Recipe


def frozen_dtype(recipe: Recipe) -> torch.dtype | None:
    """What frozen weights are held in, None for as they come.

    bfloat16 wherever all roles multiply in it without autocast: adapters over a shared base, and sharded networks.
    """
    computes_whole = recipe.model.roles == "lora" or recipe.trainer.strategy == "fsdp"
    return torch.bfloat16 if recipe.trainer.precision == "bf16-mixed" and computes_whole else None


def trainer_precision(recipe: Recipe) -> Literal["32-true", "bf16-mixed"]:
    """Lightning's setting: autocast only over full float32 weights on one device; else weights and casts say it.

    How float32 matrix products are computed is set along, for this process.
    """
    lightning = lightning_precision(recipe.trainer.precision)
    return "32-true" if recipe.trainer.strategy == "fsdp" or frozen_dtype(recipe) else lightning


def cast_parameters(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Parameters alone, in place: buffers are tables (the frequencies of the time embedding) that need float32."""
    if dtype is not None:
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)
