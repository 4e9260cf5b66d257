"""What a run is made from, by content: hashes of its data and weights, so that a moved disk ends no run and other
weights under an old name are noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from workbench.backbones import families
from workbench.backbones.load import lora_file
from workbench.backbones.weights_hash import HEX_DIGITS, weights_hash
from workbench.common.errors import UserError
from workbench.common.outside import read_json
from workbench.recipe.config import Recipe
from workbench.recipe.effects import Command


def hashes_of(recipe: Recipe, data: str | None, command: Command) -> dict[str, str]:
    """Key of the recipe -> hash of the data or weights that it names.

    data: hash of the encoded data, None where the run is on other samples.
    """
    folders = {"model.folder": recipe.model.folder}
    files: dict[str, str] = {}
    if command == "distill":
        named = {f"teachers.specialists.{name}": where for name, where in recipe.teachers.specialists.items()}
        named |= {"model.student": recipe.model.student} if recipe.model.student else {}
        for key, where in named.items():
            (files if where.endswith(".safetensors") else folders)[key] = where
    elif recipe.pretrain.lora_start:
        files["pretrain.lora_start"] = recipe.pretrain.lora_start
    found = {key: _folder_hash(folder, command) for key, folder in folders.items()}
    found |= {key: weights_hash([("", lora_file(where))], {}) for key, where in files.items()}
    if data is not None:
        found["data.encoded"] = data[:HEX_DIGITS]
    return {key: value for key, value in found.items() if value}


def _folder_hash(folder: str, command: Command) -> str:
    """Hash of what training reads of a pipeline folder: distillation needs none of its encoders."""
    path = families.resolve(folder)
    unread = set(families.family_of(path).encoder_parts) if command == "distill" else set()
    parts = [part for part in sorted(path.iterdir()) if part.is_dir() and part.name not in unread]
    named = [(part.name, file) for part in parts for file in sorted(part.glob("*.safetensors"))]
    return weights_hash(named, {part.name: _config(part / "config.json") for part in parts})


def _config(path: Path) -> dict[str, Any]:
    """A component's configuration without what tells where and by which version it was saved."""
    try:
        found: dict[str, Any] = read_json(path, dict, "")
    except UserError:
        return {}
    left_out = ("transformers_version", "dtype", "torch_dtype")
    return {key: value for key, value in found.items() if not key.startswith("_") and key not in left_out}
