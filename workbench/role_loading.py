"""The networks of a run by their roles, from the folders and files that its recipe names."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import QwenImage21Pipeline, QwenImage21Transformer2DModel

from workbench import adapters, pipeline, roles
from workbench.backbone import QwenImage21
from workbench.config import Recipe
from workbench.precision import frozen_dtype


def load_for_training(recipe: Recipe, folder: str) -> QwenImage21Pipeline:
    """Without its text encoder, and never wider in memory than it is held: a base of 7 B parameters is 14 GB then."""
    shared = recipe.model.roles == "lora"
    return pipeline.load(folder, transformer_dtype=frozen_dtype(recipe) if shared else None, text_encoder=False)


def load_roles(recipe: Recipe, teacher: QwenImage21Pipeline, dtype: torch.dtype | None = None) -> QwenImage21:
    """dtype: what frozen weights are held in."""
    student = load_for_training(recipe, recipe.model.student).transformer if recipe.model.student else None
    specialists = {name: load_specialist(recipe, where) for name, where in recipe.teachers.specialists.items()}
    return roles.build(
        teacher.transformer,
        recipe.model,
        student=student,
        specialists=specialists,
        seed=recipe.seed,
        frozen_dtype=dtype,
    )


def load_specialist(recipe: Recipe, where: str) -> QwenImage21Transformer2DModel | adapters.Adapter:
    """A LoRA file, which may be one of a folder that ships, or the transformer of a pipeline folder."""
    if not where.endswith(".safetensors"):
        return pipeline.load(where, transformer_dtype=frozen_dtype(recipe), text_encoder=False).transformer
    folder, _, file = where.partition("/")
    return adapters.read(pipeline.SHIPPED[folder] / file if folder in pipeline.SHIPPED else Path(where))
