"""The networks of a run by their roles, from the folders and files that its recipe names."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import QwenImage21Pipeline, QwenImage21Transformer2DModel

from workbench.backbones import lora_files, roles
from workbench.backbones.base import RoleNetworks
from workbench.backbones.placement import frozen_dtype
from workbench.backbones.qwen_image_21 import pipeline
from workbench.backbones.qwen_image_21.transformer import SplitTransformer
from workbench.common.errors import UserError
from workbench.recipe.config import Recipe


def load_for_training(recipe: Recipe, folder: str) -> QwenImage21Pipeline:
    """Without its text encoder, and never wider in memory than it is held: a base of 7 B parameters is 14 GB then."""
    shared = recipe.model.roles == "lora"
    return pipeline.load(folder, transformer_dtype=frozen_dtype(recipe) if shared else None, text_encoder=False)


def load_roles(recipe: Recipe, teacher: QwenImage21Pipeline, dtype: torch.dtype | None = None) -> RoleNetworks:
    """dtype: what frozen weights are held in.

    Raises:
        UserError: a folder or file that cannot be used, or a student of another architecture than the teacher.
    """
    student = load_for_training(recipe, recipe.model.student).transformer if recipe.model.student else None
    if student is not None:
        _require_alike(student, teacher.transformer, recipe)
    specialists = {name: load_specialist(recipe, where) for name, where in recipe.teachers.specialists.items()}
    return roles.build(
        SplitTransformer,
        teacher.transformer,
        recipe.model,
        student=student,
        specialists=specialists,
        seed=recipe.seed,
        frozen_dtype=dtype,
    )


def _require_alike(
    student: QwenImage21Transformer2DModel, teacher: QwenImage21Transformer2DModel, recipe: Recipe
) -> None:
    """The student is exported in the teacher's pipeline folder, with the teacher's architecture."""
    ours, theirs = _architecture(student), _architecture(teacher)
    different = [
        f"{name} {ours.get(name)} against {theirs.get(name)}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if different:
        raise UserError(
            f"model.student={recipe.model.student} is of another architecture than model.folder={recipe.model.folder} "
            f"({', '.join(different)}), so it could not be exported: name a student like the teacher, or leave it out"
        )


def _architecture(network: QwenImage21Transformer2DModel) -> dict[str, object]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in network.config.items()
        if not name.startswith("_")
    }


def load_specialist(recipe: Recipe, where: str) -> QwenImage21Transformer2DModel | lora_files.Adapter:
    """A LoRA file, which may be one of a folder that ships, or the transformer of a pipeline folder."""
    if not where.endswith(".safetensors"):
        return pipeline.load(where, transformer_dtype=frozen_dtype(recipe), text_encoder=False).transformer
    folder, _, file = where.partition("/")
    return lora_files.read(pipeline.SHIPPED[folder] / file if folder in pipeline.SHIPPED else Path(where))
