"""Runs on the smallest pipeline: their recipe in another folder, and the weights of their students."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from workbench.recipe.config import Recipe


def in_folder(recipe: Recipe, folder: Path, **trainer: object) -> Recipe:
    return replace(recipe, trainer=replace(recipe.trainer, folder=str(folder), **trainer))  # type: ignore[arg-type]


def student_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "student" / "transformer" / "diffusion_pytorch_model.safetensors")
