"""LoRA files as diffusers writes and reads them: `transformer.LAYER.lora_A.weight` and `lora_B`.

The scaling of an adapter, y = W x + scaling B A x, is read from the first of three places that has it:
`LAYER.alpha` among the weights (scaling alpha / rank); `lora_adapter_metadata` in the header of the file, where peft's
configuration goes; nowhere, which diffusers reads as 1. Files of other trainers write `lora_down` and `lora_up`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from workbench.backbones.lora import Adapters
from workbench.common import files
from workbench.common.errors import UserError

_KEY = re.compile(r"transformer\.(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_down|lora_up)(\.default)?\.weight")
_ALPHA = re.compile(r"transformer\.(?P<layer>.+)\.alpha")
METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class AdapterLayer:
    """down: (r, in). up: (out, r)."""

    down: Tensor
    up: Tensor
    scaling: float


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
            header = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"cannot read the LoRA file {path}: {error}") from error
    halves, alphas = _sorted(path, tensors)
    layers = {}
    for layer, parts in halves.items():
        down, up = parts.get("down"), parts.get("up")
        if down is None or up is None or down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1]:
            raise UserError(f"{path}: {layer} needs lora_A (r, in) and lora_B (out, r), one of them is missing or odd")
        alpha = alphas.get(layer)
        scaling = alpha / len(down) if alpha is not None else _header_scaling(header, layer, len(down))
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


def _header_scaling(header: Mapping[str, Any], layer: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) of a rank-stabilised adapter (arXiv 2312.03732); 1 where there is none."""
    if "transformer.lora_alpha" not in header:
        return 1.0
    alpha = header["transformer.lora_alpha"]
    for pattern, value in (header.get("transformer.alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            alpha = value
            break
    return float(alpha) / (math.sqrt(rank) if header.get("transformer.use_rslora") else rank)


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
