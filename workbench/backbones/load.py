"""The networks of a run by their roles, from the folders and files that its recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workbench.backbones import families, lora_files, roles
from workbench.backbones.base import RoleNetworks
from workbench.backbones.family import PipelineModel
from workbench.backbones.placement import frozen_dtype
from workbench.common.errors import UserError
from workbench.recipe.config import Model, Recipe


def load_for_training(recipe: Recipe, folder: str) -> PipelineModel:
    """Without its text encoder, and loaded in the dtype that it is stored in: a base of 7 B parameters takes 14 GB."""
    shared = recipe.model.roles == "lora"
    return families.load(folder, transformer_dtype=frozen_dtype(recipe) if shared else None, text_encoder=False)


def load_roles(recipe: Recipe, teacher: PipelineModel, dtype: torch.dtype | None = None) -> RoleNetworks:
    """dtype: storage of frozen weights.

    Raises:
        UserError: a folder or file that cannot be used, or a student of another architecture than the teacher.
    """
    specialists = {name: load_specialist(recipe, where) for name, where in recipe.teachers.specialists.items()}
    return roles.build(
        teacher.network,
        teacher.transformer,
        recipe.model,
        student=_load_start(recipe, teacher),
        specialists=specialists,
        seed=recipe.seed,
        frozen_dtype=dtype,
    )


def single_role(model: PipelineModel, role: str = roles.TEACHER) -> RoleNetworks:
    """One network, one role: for sampling and pretraining."""
    return RoleNetworks({role: model.network(model.transformer)}, {role: role})


def _load_start(recipe: Recipe, teacher: PipelineModel) -> nn.Module | lora_files.Adapter | None:
    """What the student starts from, if not from the base teacher."""
    where = recipe.model.student
    if where is None or where.endswith(".safetensors"):
        return lora_files.read(lora_file(where)) if where else None
    student = load_for_training(recipe, where)
    _require_alike(student.architecture, teacher.architecture, recipe.model)
    return student.transformer


def load_specialist(recipe: Recipe, where: str) -> nn.Module | lora_files.Adapter:
    """A LoRA file, which may be one of a folder that ships, or the transformer of a pipeline folder."""
    if not where.endswith(".safetensors"):
        return families.load(where, transformer_dtype=frozen_dtype(recipe), text_encoder=False).transformer
    return lora_files.read(lora_file(where))


def lora_file(where: str) -> Path:
    """Path of a LoRA file; `tiny/NAME.safetensors` is one of those that ship."""
    folder, _, file = where.partition("/")
    return families.SHIPPED[folder] / file if folder in families.SHIPPED else Path(where)


def _require_alike(student: Mapping[str, Any], teacher: Mapping[str, Any], model: Model) -> None:
    """The student is exported in the teacher's pipeline folder, with the teacher's architecture."""
    different = [
        f"{name} {student.get(name)} against {teacher.get(name)}"
        for name in sorted(student.keys() | teacher.keys())
        if student.get(name) != teacher.get(name)
    ]
    if different:
        raise UserError(
            f"model.student={model.student} is of another architecture than model.folder={model.folder} "
            f"({', '.join(different)}), so it could not be exported: name a student like the teacher, or leave it out"
        )
