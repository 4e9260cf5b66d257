"""What a run is made from, by content: hashes of its data and weights, so that a moved disk ends no run and other
weights under an old name are noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from workbench.backbones import families
from workbench.backbones.load import lora_file
from workbench.common.errors import UserError
from workbench.common.outside import read_json
from workbench.recipe.config import Recipe
from workbench.recipe.effects import Command

WHOLE_BYTES = 1 << 28
"""Weights of more bytes are hashed by parts of every tensor: reading 14 GB would take longer than beginning the run."""
_PARTS, _PART_BYTES = 4, 4096
_HEX_DIGITS = 16


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
    found = {key: _folder_hash(folder, command) for key, folder in folders.items()}
    found |= {key: weights_hash([("", lora_file(where))], {}) for key, where in files.items()}
    if data is not None:
        found["data.encoded"] = data[:_HEX_DIGITS]
    return {key: value for key, value in found.items() if value}


def _folder_hash(folder: str, command: Command) -> str:
    """Hash of what training reads of a pipeline folder: distillation needs none of its encoders."""
    path = families.resolve(folder)
    unread = set(families.family_of(path).encoder_parts) if command == "distill" else set()
    parts = [part for part in sorted(path.iterdir()) if part.is_dir() and part.name not in unread]
    named = [(part.name, file) for part in parts for file in sorted(part.glob("*.safetensors"))]
    return weights_hash(named, {part.name: _config(part / "config.json") for part in parts})


def weights_hash(files: Iterable[tuple[str, Path]], extra: Any) -> str:
    """Hash of the tensors in safetensors files, each with the name of its component, and of `extra`; the same however
    they are split into files. Empty where a file cannot be read: whoever loads it says what is wrong.
    """
    files, rows = list(files), []
    try:
        whole = sum(path.stat().st_size for _, path in files) <= WHOLE_BYTES
        for part, path in files:
            with safe_open(path, framework="pt") as opened:
                rows += [
                    (part, name, *_content(opened.get_tensor(name), whole))
                    for name in opened.keys()  # noqa: SIM118 (no mapping)
                ]
    except (OSError, SafetensorError):
        return ""
    content = json.dumps([sorted(rows), extra], sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:_HEX_DIGITS]


def _content(tensor: Tensor, whole: bool) -> tuple[str, str, str]:
    digest = hashlib.sha256()
    for part in _parts(tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.zeros(0), whole):
        digest.update(part.numpy().data)
    return str(tensor.dtype), str(tuple(tensor.shape)), digest.hexdigest()


def _parts(content: Tensor, whole: bool) -> Iterator[Tensor]:
    """All bytes, or evenly spaced stretches of them; the file is mapped, so what is not taken is not read."""
    if whole or len(content) <= _PARTS * _PART_BYTES:
        yield content
        return
    last = len(content) - _PART_BYTES
    for i in range(_PARTS):
        start = last * i // (_PARTS - 1)
        yield content[start : start + _PART_BYTES]


def _config(path: Path) -> dict[str, Any]:
    """A component's configuration without what tells where and by which version it was saved."""
    try:
        found: dict[str, Any] = read_json(path, dict, "")
    except UserError:
        return {}
    left_out = ("transformers_version", "dtype", "torch_dtype")
    return {key: value for key, value in found.items() if not key.startswith("_") and key not in left_out}
