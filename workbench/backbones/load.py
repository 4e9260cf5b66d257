"""The networks of a run by their roles, from the folders and files that its recipe names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from workbench.backbones import families, lora_files, roles, stored_weights
from workbench.backbones.base import RoleNetworks, TransformerDenoiser
from workbench.backbones.family import PipelineModel
from workbench.backbones.placement import frozen_dtype
from workbench.backbones.stored_weights import StoredTensors, WeightSource
from workbench.backbones.weights_hash import weights_hash
from workbench.common.errors import UserError
from workbench.recipe.config import Model, Recipe


def load_for_training(recipe: Recipe, folder: str) -> PipelineModel:
    """Without its text encoder, and loaded in the dtype that it is stored in: a base of 7 B parameters takes 14 GB.
    Without values where these are read later: see `_reads_later`."""
    dtype = frozen_dtype(recipe) if recipe.model.roles == "lora" else None
    return families.load(folder, transformer_dtype=dtype, text_encoder=False, empty=_reads_later(recipe))


def load_roles(recipe: Recipe, teacher: PipelineModel, dtype: torch.dtype | None = None) -> RoleNetworks:
    """dtype: storage of frozen weights.

    Raises:
        UserError: a folder or file that cannot be used, or a student of another architecture than the teacher.
    """
    specialists = {name: load_specialist(recipe, where) for name, where in recipe.teachers.specialists.items()}
    student = _load_start(recipe, teacher)
    denoiser = roles.build(
        teacher.network,
        teacher.transformer,
        recipe.model,
        student=student,
        specialists=specialists,
        seed=recipe.seed,
        frozen_dtype=dtype,
    )
    for name, network in denoiser.by_name.items():
        if stored_weights.is_empty(network.transformer):
            network.source = _source(recipe, name, network, student)
    return denoiser


def _source(
    recipe: Recipe, name: str, network: TransformerDenoiser, student: nn.Module | lora_files.Adapter | None
) -> WeightSource:
    """Where the values of the network called `name` are. student: what the student starts from."""
    folders = {f"{roles.TEACHER}_{specialist}": where for specialist, where in recipe.teachers.specialists.items()}
    updates: lora_files.Adapter = {}
    if name == roles.STUDENT and student is not None:
        match student:
            case nn.Module():
                folders[name] = str(recipe.model.student)
            case _:
                updates = roles.updates_of(network, [(student, 1.0, "model.student")])
    return WeightSource(families.resolve(folders.get(name, recipe.model.folder)) / "transformer", updates)


def _reads_later(recipe: Recipe) -> bool:
    """Whether values go straight to their device: as shards, or quantised there one by one."""
    return recipe.trainer.strategy == "fsdp" or recipe.model.frozen == "fp8"


def stored_base(recipe: Recipe, dtype: torch.dtype | None) -> StoredTensors:
    """The weights of the base teacher as its folder has them, read one by one; float32 for no `dtype`."""
    return StoredTensors(families.resolve(recipe.model.folder) / "transformer", dtype or torch.float32)


def single_role(model: PipelineModel, role: str = roles.TEACHER) -> RoleNetworks:
    """One network, one role: for sampling and pretraining."""
    return RoleNetworks({role: model.network(model.transformer)}, {role: role})


def trained_specialist(model: PipelineModel, recipe: Recipe) -> RoleNetworks:
    """The teacher of `model`, frozen, under a trainable adapter of `pretrain.lora_rank` that starts as
    `pretrain.lora_start` where one is named.

    Raises:
        UserError: a file that is no LoRA, or one of another model or a larger rank.
    """
    options, denoiser = recipe.pretrain, single_role(model)
    model.transformer.requires_grad_(False)
    network = denoiser.network(roles.TEACHER)
    roles.add_adapter(network, roles.TEACHER, options.lora_rank, alpha=options.lora_rank, seed=recipe.seed)
    if options.lora_start:
        start = lora_files.read(lora_file(options.lora_start))
        roles.start_adapter(network, roles.TEACHER, start, "pretrain.lora_start", "pretrain.lora_rank")
    return denoiser


def _load_start(recipe: Recipe, teacher: PipelineModel) -> nn.Module | lora_files.Adapter | None:
    """What the student starts from, if not from the base teacher."""
    where = recipe.model.student
    if where is None or where.endswith(".safetensors"):
        return lora_files.read(lora_file(where)) if where else None
    student = load_for_training(recipe, where)
    _require_alike(student.architecture, teacher.architecture, recipe.model)
    return student.transformer


def load_specialist(recipe: Recipe, where: str) -> nn.Module | lora_files.Adapter:
    """A LoRA file, which may be one of a folder that ships, or the transformer of a pipeline folder.

    Raises:
        UserError: a folder of another family, or with another text encoder or autoencoder, than the base teacher's.
    """
    if not where.endswith(".safetensors"):
        _require_shared_encoders(where, recipe.model.folder)
        dtype, empty = frozen_dtype(recipe), _reads_later(recipe)
        return families.load(where, transformer_dtype=dtype, text_encoder=False, empty=empty).transformer
    return lora_files.read(lora_file(where))


def _require_shared_encoders(specialist: str, base: str) -> None:
    """All teachers of a run read the same embeddings and latents."""
    folders = (families.resolve(specialist), families.resolve(base))
    family, other = (families.family_of(folder) for folder in folders)
    if family is not other:
        names = " and ".join(f"{folder} a {families.class_of(folder)}" for folder in folders)
        raise UserError(f"{names}: a specialist is of the family of the base teacher, or a LoRA file over it")
    for part in family.encoder_parts:
        found, wanted = (
            weights_hash([("", file) for file in sorted((folder / part).glob("*.safetensors"))], {})
            for folder in folders
        )
        if found != wanted:
            raise UserError(
                f"{specialist} has another {part} than {base}, so what is encoded for the base teacher would mean "
                "something else to it: name a folder with the same one, or a LoRA file over the base teacher"
            )


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
