"""LoRA files as diffusers writes and reads them: `transformer.LAYER.lora_A.weight` and `lora_B`.

The scaling of an adapter, y = W x + scaling B A x, is read from the first of three places that has it:
`LAYER.alpha` among the weights (scaling alpha / rank); `lora_adapter_metadata` in the header of the file, where peft's
configuration goes; nowhere, which diffusers reads as 1. Files of other trainers write `lora_down` and `lora_up`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import AfterValidator, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from workbench.backbones.finite import is_finite
from workbench.backbones.lora import Adapters
from workbench.common import files
from workbench.common.errors import UserError
from workbench.common.outside import Outside, parse

_KEY = re.compile(r"transformer\.(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_down|lora_up)(\.default)?\.weight")
_ALPHA = re.compile(r"transformer\.(?P<layer>.+)\.alpha")
METADATA = "lora_adapter_metadata"
_PATTERN = re.compile(r"(?:(?:\\[.dw]|[\w.^$|-]|\[[\w^-]+\])[*+?]?|\((?:\?:)?|\)(?![*+?{]))*")
_MOST_REPETITIONS = 4


@dataclass(frozen=True)
class AdapterLayer:
    """down: (r, in). up: (out, r)."""

    down: Tensor
    up: Tensor
    scaling: float


def _harmless(pattern: str) -> str:
    """A regular expression that ends within microseconds on any layer's name: no repeated groups, few repetitions."""
    if not _PATTERN.fullmatch(pattern) or len(re.findall(r"[*+?]", pattern)) > _MOST_REPETITIONS:
        raise ValueError(f"the pattern {pattern!r} is none of a layer's name")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} is no regular expression ({error})") from error
    return pattern


_LayerPattern = Annotated[str, AfterValidator(_harmless)]


class _Header(Outside):
    """What peft's configuration in the header of a file says of the scaling."""

    alpha: float | None = Field(None, alias="transformer.lora_alpha")
    patterns: dict[_LayerPattern, float] | None = Field(None, alias="transformer.alpha_pattern")
    rank_stabilised: bool | None = Field(None, alias="transformer.use_rslora")

    def scaling(self, layer: str, rank: int) -> float:
        """alpha / rank, or alpha / sqrt(rank) of a rank-stabilised adapter (arXiv 2312.03732); else 1."""
        if self.alpha is None:
            return 1.0
        found = (self.patterns or {}).items()
        matching = (value for pattern, value in found if re.fullmatch(rf"(.*\.)?({pattern})", layer))
        return next(matching, self.alpha) / (math.sqrt(rank) if self.rank_stabilised else rank)


Adapter = Mapping[str, AdapterLayer]
"""Layer name inside the transformer -> its low-rank update."""


def read(path: Path) -> dict[str, AdapterLayer]:
    """The adapter in `path`, float32 on the CPU.

    Raises:
        UserError: no such file, no safetensors, a key that is no part of a LoRA, halves that do not fit each other.
    """
    if not path.is_file():
        raise UserError(f"no LoRA file at {path}: a specialist is a pipeline folder or a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
            metadata = (file.metadata() or {}).get(METADATA, "{}")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"cannot read the LoRA file {path}: {error}") from error
    header = parse(metadata, _Header, f"{path}, {METADATA}", "save the adapter again")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not is_finite(tensor):
            raise UserError(f"{path}: {name} holds values that are no finite numbers; use another file")
    halves, alphas = _sorted(path, tensors)
    layers = {}
    for layer, parts in halves.items():
        down, up = parts.get("down"), parts.get("up")
        if down is None or up is None or down.ndim != 2 or up.ndim != 2 or not 0 < down.shape[0] == up.shape[1]:
            raise UserError(f"{path}: {layer} needs lora_A (r, in) and lora_B (out, r), one of them is missing or odd")
        alpha = alphas.get(layer)
        scaling = alpha / len(down) if alpha is not None else header.scaling(layer, len(down))
        layers[layer] = AdapterLayer(down.float(), up.float(), scaling)
    if not layers:
        raise UserError(f"{path} holds no LoRA weights of a transformer")
    return layers


def _sorted(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, float]]:
    """Halves by layer, and alphas by layer."""
    halves: dict[str, dict[str, Tensor]] = {}
    alphas = {}
    for name, tensor in tensors.items():
        if found := _KEY.fullmatch(name):
            half = "down" if found["part"] in ("lora_A", "lora_down") else "up"
            halves.setdefault(found["layer"], {})[half] = tensor
        elif (found := _ALPHA.fullmatch(name)) and tensor.numel() == 1:
            alphas[found["layer"]] = float(tensor)
        else:
            raise UserError(
                f"{path}: {name} is no part of a LoRA as diffusers writes it (transformer.LAYER.lora_A.weight): save "
                "it again with save_lora_weights"
            )
    return halves, alphas


def write(adapters: Adapters, path: Path, *, header: Mapping[str, str], dtype: torch.dtype = torch.bfloat16) -> None:
    """Write a file for diffusers' `load_lora_weights` and for `teachers.specialists`; `header` goes along as metadata.

    The file carries no alpha: it is in B, and a missing alpha means W + B A.

    Raises:
        UserError: `path` is a folder, or the disk is full or cannot be written. ValueError: no adapters.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a .safetensors file to write")
    if not adapters:
        raise ValueError("there are no adapters to export")
    state = {}
    for name, (down, up) in adapters.items():
        state[f"transformer.{name}.lora_A.weight"] = down.detach().to("cpu", dtype).contiguous()
        state[f"transformer.{name}.lora_B.weight"] = up.detach().to("cpu", dtype).contiguous()
    files.write_bytes(path, save(state, metadata={"format": "pt", **header}))
