"""Runs on the smallest pipeline: their recipe in another folder, and the weights of their students."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from workbench.recipe.config import Recipe

SAMPLES = {
    "t2i": {"landscape": 3, "portrait": 3, "text": 3},
    "edit": {"scene": 2, "enhance": 2, "object": 2, "text": 2, "identity": 2, "style": 2},
}


def in_folder(recipe: Recipe, folder: Path, **trainer: object) -> Recipe:
    return replace(recipe, trainer=replace(recipe.trainer, folder=str(folder), **trainer))  # type: ignore[arg-type]


def student_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "transformer" / "diffusion_pytorch_model.safetensors")
