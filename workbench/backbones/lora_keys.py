"""Names of the weights in a LoRA file, in every form that trainers and interfaces write.

| form | layer | halves | alpha |
|---|---|---|---|
| diffusers | `transformer.transformer_blocks.0.attn.to_q` | `.lora_A.weight`, `.lora_B.weight` | header of the file |
| PEFT | `base_model.model.transformer_blocks.0.attn.to_q` | `.lora_A.weight`, `.lora_A.NAME.weight` | its own file |
| kohya | `lora_unet_transformer_blocks_0_attn_to_q` | `.lora_down.weight`, `.lora_up.weight` | `.alpha` |
| ComfyUI | `diffusion_model.transformer_blocks.0.attn.to_q` | either | `.alpha`, or none |
| DiffSynth | `transformer_blocks.0.attn.to_q` | either, also without `.weight` | none |

Programs that fuse layers (ComfyUI and what trains for it) name the fused layer; a family lists them (`fused_layers`).
Sources: diffusers `lora_conversion_utils.py`, ComfyUI `comfy/lora.py` and `comfy/weight_adapter/lora.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

Part = Literal["down", "up", "alpha"]
FusedLayers = Mapping[str, Sequence[str]]
"""Last parts of the name of a fused layer -> those of the layers that its output rows belong to, in order."""

_PREFIXES = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "pipe.dit.", "dit.")
_FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
_HALF = re.compile(r"(?P<layer>.+?)[._]lora(?:_linear_layer)?[._](?P<half>A|B|down|up)(?:(?:\.[A-Za-z_]\w*)?\.weight)?")
_ALPHA = re.compile(r"(?P<layer>.+)\.alpha")
_TEXT_ENCODER = "weights of a text encoder"
_OTHER_KINDS = {
    r"(lora_te\d?_|text_encoders?[._]).*": _TEXT_ENCODER,
    r".*\.(diff|diff_b|set_weight|reshape_weight|w_norm|b_norm)": "full-rank patches (.diff), not low-rank ones",
    r".*\.lokr_\w+": "LoKr factors",
    r".*\.hada_\w+": "LoHa factors",
    r".*\.(dora_scale|lora_magnitude_vector.*)": "magnitudes of DoRA",
    r".*\.(lora_mid\.weight|lora_embedding_[AB].*)": "factors of convolutions or embeddings",
    r".*\.(b?oft_\w+|a[12]\.weight|b[12]\.weight|on_input)": "factors of OFT, GLoRA or IA3",
    r".*\.bias": "biases",
    r".*\.weight": "full weights",
}


class Key(NamedTuple):
    """What a name stands for. layer: with dots, or underscores in their place where the form has those."""

    layer: str
    part: Part


def parse_key(name: str) -> Key | None:
    """The part of a LoRA of a transformer that `name` stands for, or None."""
    found = _HALF.fullmatch(name) or _ALPHA.fullmatch(name)
    layer = _without_prefix(found["layer"]) if found else ""
    if not found or not layer or kind_of(name) == _TEXT_ENCODER:
        return None
    match found.groupdict().get("half"):
        case None:
            return Key(layer, "alpha")
        case half:
            return Key(layer, "down" if half in ("A", "down") else "up")


def kind_of(name: str) -> str:
    """In words, what a weight is that is no part of a LoRA."""
    matching = (kind for pattern, kind in _OTHER_KINDS.items() if re.fullmatch(pattern, name))
    return next(matching, "names of no known form")


def spellings(layers: Iterable[str], fused: FusedLayers) -> dict[str, tuple[str, ...]]:
    """Every name that a file may give to one of `layers`, or to several that are fused -> the layers themselves."""
    found: dict[str, tuple[str, ...]] = {layer: (layer,) for layer in layers}
    for fused_name, parts in fused.items():
        for layer in tuple(found):
            block = layer.removesuffix(parts[0])
            members = tuple(f"{block}{part}" for part in parts)
            if block != layer and all(member in found for member in members):
                found[f"{block}{fused_name}"] = members
    return {name.replace(".", "_"): members for name, members in found.items()} | found


def _without_prefix(layer: str) -> str:
    """`layer` without the prefixes of its form, of which some converters write two; empty where nothing remains."""
    for prefix in _FLAT_PREFIXES:
        if layer.startswith(prefix):
            return layer.removeprefix(prefix)
    while found := next((prefix for prefix in _PREFIXES if f"{layer}.".startswith(prefix)), None):
        layer = f"{layer}.".removeprefix(found).removesuffix(".")
    return layer if re.fullmatch(r"\w+(\.\w+)*", layer) else ""
