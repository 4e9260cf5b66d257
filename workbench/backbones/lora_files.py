"""LoRA files in all forms of `lora_keys`, read and written, and summed with strengths.

The scaling of an adapter, y = W x + scaling B A x, is read from the first of four places that has it:
`LAYER.alpha` among the weights (scaling alpha / rank); `lora_adapter_metadata` in the header of the file, where
diffusers puts PEFT's configuration; `adapter_config.json` next to an `adapter_model.safetensors`, where PEFT itself
puts it; nowhere, which all programs read as 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import AfterValidator, AliasChoices, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from workbench.backbones.finite import is_finite, require_finite_values
from workbench.backbones.fp8 import Fp8Linear
from workbench.backbones.lora import Adapters
from workbench.backbones.lora_keys import FusedLayers, Part, kind_of, parse_key, spellings
from workbench.common import files
from workbench.common.errors import UserError, shortened
from workbench.common.outside import Outside, parse, read_json

METADATA = "lora_adapter_metadata"
Shape = tuple[int, int]
"""(out, in) of a linear layer."""
_PATTERN = re.compile(r"(?:(?:\\[.dw]|[\w.^$|-]|\[[\w^-]+\])[*+?]?|\((?:\?:)?|\)(?![*+?{]))*")
_MOST_REPETITIONS = 4


@dataclass(frozen=True)
class AdapterLayer:
    """down: (r, in). up: (out, r)."""

    down: Tensor
    up: Tensor
    scaling: float

    @property
    def shape(self) -> Shape:
        """Of the layer that it adapts."""
        return len(self.up), self.down.shape[1]


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


def _either(name: str) -> AliasChoices:
    return AliasChoices(f"transformer.{name}", name)


class _PeftConfig(Outside):
    """What PEFT's configuration says of the scaling; in the header of a file its fields have a prefix."""

    alpha: float | None = Field(None, validation_alias=_either("lora_alpha"))
    patterns: dict[_LayerPattern, float] | None = Field(None, validation_alias=_either("alpha_pattern"))
    rank_stabilised: bool | None = Field(None, validation_alias=_either("use_rslora"))

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
            metadata = (file.metadata() or {}).get(METADATA)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"cannot read the LoRA file {path}: {error}") from error
    config = _config(path, metadata)
    for name, tensor in tensors.items():
        if not (tensor.is_floating_point() or name.endswith(".alpha")) or not is_finite(tensor):
            raise UserError(f"{path}: {name} holds values that are no finite numbers; use another file")
    layers = {}
    for layer, parts in _by_layer(path, tensors).items():
        down, up, alpha = parts.get("down"), parts.get("up"), parts.get("alpha")
        if down is None or up is None or down.ndim != 2 or up.ndim != 2 or not 0 < down.shape[0] == up.shape[1]:
            raise UserError(f"{path}: {layer} needs lora_A (r, in) and lora_B (out, r), one of them is missing or odd")
        scaling = float(alpha) / len(down) if alpha is not None else config.scaling(layer, len(down))
        layers[layer] = AdapterLayer(down.float(), up.float(), scaling)
    if not layers:
        raise UserError(f"{path} holds no LoRA weights of a transformer")
    return layers


def _config(path: Path, metadata: str | None) -> _PeftConfig:
    beside = path.with_name("adapter_config.json")
    if metadata is None and path.name == "adapter_model.safetensors" and beside.is_file():
        return read_json(beside, _PeftConfig, "save the adapter again")
    return parse(metadata or "{}", _PeftConfig, f"{path}, {METADATA}", "save the adapter again")


def _by_layer(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, dict[Part, Tensor]]:
    """Halves and alpha of each layer, whose name is without prefixes."""
    layers: dict[str, dict[Part, Tensor]] = {}
    wrong = []
    for name, tensor in tensors.items():
        key = parse_key(name)
        if key is None or (key.part == "alpha" and tensor.numel() != 1):
            wrong.append(name)
        elif layers.setdefault(key.layer, {}).setdefault(key.part, tensor) is not tensor:
            raise UserError(f"{path} has two weights for {key.part} of {key.layer}: use a file with one adapter")
    if wrong:
        kinds = ", ".join(sorted({kind_of(name) for name in wrong}))
        raise UserError(
            f"{path}: {listed(wrong)} {'is' if len(wrong) == 1 else 'are'} no part of a LoRA of a transformer "
            f"({len(wrong):,} of its {len(tensors):,} keys; {kinds}): use a LoRA file without them"
        )
    return layers


def listed(names: Sequence[str]) -> str:
    """The first ten names, and how many there are when they are more."""
    shown = ", ".join(shortened(name, 100) for name in names[:10])
    return shown if len(names) <= 10 else f"{shown}, ... ({len(names):,} in all)"


def fit(adapter: Adapter, layers: Mapping[str, Shape], fused: FusedLayers, which: str, network: str) -> Adapter:
    """`adapter` under the names of a network's own layers, a fused layer as the layers that it fuses.

    layers: (out, in) of every layer that can be adapted. which, network: what errors call the LoRA and the network.

    Raises:
        UserError: layers that the network does not have, or of other sizes.
    """
    known = spellings(layers, fused)
    if unknown := [name for name in adapter if name not in known]:
        are = "which is no linear layer" if len(unknown) == 1 else "which are no linear layers"
        raise UserError(f"{which} adapts {listed(unknown)}, {are} of {network}: it is of another model")
    fitted: dict[str, AdapterLayer] = {}
    for name, layer in adapter.items():
        targets = known[name]
        expected, found = (sum(layers[t][0] for t in targets), layers[targets[0]][1]), layer.shape
        if expected != found:
            raise UserError(f"{which} is of another model: {name} is {expected} here and {found} there")
        for target, up in zip(targets, layer.up.split([layers[t][0] for t in targets]), strict=True):
            if target in fitted:
                raise UserError(f"{which} adapts {target} twice: use a file with one adapter")
            fitted[target] = _without_zeros(AdapterLayer(layer.down, up, layer.scaling))
    return fitted


def _without_zeros(layer: AdapterLayer) -> AdapterLayer:
    """The same update without the ranks whose B is zero, which a fused layer has where it was put together from two."""
    used = layer.up.any(dim=0)
    return layer if used.all() or not used.any() else AdapterLayer(layer.down[used], layer.up[:, used], layer.scaling)


def shape(linear: nn.Linear | Fp8Linear) -> Shape:
    """Of a layer that can be adapted."""
    return linear.out_features, linear.in_features


def weighted_sum(adapters: Sequence[tuple[Adapter, float]]) -> Adapter:
    """One adapter for the sum of several, each times its strength: of a layer's ranks together, with scaling 1.

    The adapters name layers alike, as after `fit`.
    """
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for adapter, strength in adapters:
        for name, layer in adapter.items():
            parts.setdefault(name, []).append((layer.down, strength * layer.scaling * layer.up))
    return {
        name: AdapterLayer(torch.cat([down for down, _ in halves]), torch.cat([up for _, up in halves], dim=1), 1.0)
        for name, halves in parts.items()
    }


@dataclass(frozen=True)
class Form:
    """How a program names what a LoRA file holds. fuses: as one layer what the program fuses."""

    prefix: str
    down: str
    up: str
    alpha: bool
    fuses: bool


FORMS = {
    "diffusers": Form("transformer.", "lora_A.weight", "lora_B.weight", alpha=False, fuses=False),
    "comfyui": Form("diffusion_model.", "lora_down.weight", "lora_up.weight", alpha=True, fuses=True),
}
"""Forms that are written: for diffusers' `load_lora_weights`, and for ComfyUI and what reads its files."""


def write(
    adapters: Adapters,
    path: Path,
    *,
    header: Mapping[str, str],
    dtype: torch.dtype = torch.bfloat16,
    form: Form = FORMS["diffusers"],
    fused: FusedLayers | None = None,
) -> None:
    """Write a LoRA file, which `teachers.specialists` reads too; `header` goes along as metadata.

    The scaling is in B: a file without alpha means W + B A, and an alpha that is written is the rank.

    Raises:
        UserError: `path` is a folder, or the disk is full or cannot be written. ValueError: no adapters.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a .safetensors file to write")
    if not adapters:
        raise ValueError("there are no adapters to export")
    state = {}
    for name, (down, up) in (fuse(adapters, fused or {}) if form.fuses else adapters).items():
        layer = f"{form.prefix}{name}"
        state[f"{layer}.{form.down}"] = down.detach().to("cpu", dtype).contiguous()
        state[f"{layer}.{form.up}"] = up.detach().to("cpu", dtype).contiguous()
        if form.alpha:
            state[f"{layer}.alpha"] = torch.tensor(float(len(down)))
    require_finite_values(str(path), state, "the run has diverged")
    files.write_bytes(path, save(state, metadata={"format": "pt", **header}))


def fuse(adapters: Adapters, fused: FusedLayers) -> Adapters:
    """The same updates with each group of layers that a program fuses as one layer.

    A = [A_1; A_2] and B = diag(B_1, B_2), so that B A = [B_1 A_1; B_2 A_2]; a layer of the group without an adapter
    counts as one of its neighbour's size whose update is zero.
    """
    found = dict(adapters)
    for fused_name, parts in fused.items():
        blocks = {name.removesuffix(part) for name in adapters for part in parts if name.endswith(f".{part}")}
        for block in blocks:
            halves = [found.pop(f"{block}{part}", None) for part in parts]
            rows = next(len(half[1]) for half in halves if half is not None)
            ups = [half[1] if half is not None else torch.zeros(rows, 0) for half in halves]
            down = torch.cat([half[0] for half in halves if half is not None])
            found[f"{block}{fused_name}"] = down, torch.block_diag(*(up.to(down.device) for up in ups))
    return found
