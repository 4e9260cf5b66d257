"""Write a pipeline folder of any size with random weights: `python -m workbench.bench.mkfolder OUT [key=value ...]`.

Time and memory of a run depend on sizes alone, so that this stands for a model of billions of parameters where none is
at hand. Keys as in `Sizes`; `size=full` makes 7.1 billion parameters. No weights are held but those of one file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKLQwenImage21, FlowMatchEulerDiscreteScheduler, QwenImage21Transformer2DModel
from torch import Tensor, nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from workbench.backbones import families, weight_files
from workbench.backbones.folders import INDEX_FILE, read_index, replaced_folder
from workbench.backbones.placement import cast_parameters
from workbench.common import progress
from workbench.common.arguments import read_options
from workbench.common.errors import UserError

FULL: Mapping[str, Any] = {
    "blocks": 32,
    "heads": 32,
    "text_heads": 32,
    "text_blocks": 4,
    "vae": 96,
    "vae_decoder": 128,
    "file": "5GB",
}
"""A transformer of 7.1 B parameters; the text encoder is as wide as its own, and shallow to save disk."""
ROPE_AXES = (16, 56, 56)
DYNAMIC_SHIFT: Mapping[str, Any] = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}
"""As Qwen-Image's scheduler."""


@dataclass(frozen=True)
class Sizes:
    """The defaults are those of `size=tiny`; `FULL` holds what `size=full` changes.

    blocks, heads: of the transformer, each head 128 wide. text_blocks, text_heads: of the text encoder, likewise.
    vae, vae_decoder: channels of the autoencoder's first and last level.
    file: size of the largest file of weights. device: that draws the weights.
    """

    size: Literal["tiny", "full"] = "tiny"
    blocks: int = 2
    heads: int = 1
    text_blocks: int = 2
    text_heads: int = 1
    vae: int = 8
    vae_decoder: int = 8
    file: str = "500KB"
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        counts = (self.blocks, self.heads, self.text_blocks, self.text_heads, self.vae, self.vae_decoder)
        if min(counts) < 1:
            raise UserError(f"a folder of {self}: blocks, heads and channels must be at least 1")

    @property
    def torch_device(self) -> torch.device:
        """Where the weights are drawn."""
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")


def make(out: Path, sizes: Sizes) -> None:
    """Write the pipeline folder `out`, in bfloat16; an earlier one in its place is replaced.

    Tokenizer and configurations are those of the tiny model that ships, with other sizes.

    Raises:
        UserError: as `folders.replaced_folder`.
    """
    like = families.SHIPPED["tiny"]
    networks = {
        "transformer": _transformer(like, sizes),
        "text_encoder": _text_encoder(like, sizes),
        "vae": _autoencoder(like, sizes),
    }
    with replaced_folder(out) as folder:
        total = sum(values.numel() for network in networks.values() for values in network.state_dict().values())
        with progress.job(f"writing {out}", total):
            for part, network in networks.items():
                _write_random(folder / part, network, sizes)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, **DYNAMIC_SHIFT)
        scheduler.save_pretrained(folder / "scheduler")
        shutil.copytree(like / "processor", folder / "processor")
        index = {**read_index(like), "sample_sigmas": None}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")


def _transformer(like: Path, sizes: Sizes) -> nn.Module:
    config = QwenImage21Transformer2DModel.load_config(like / "transformer")
    config |= {
        "num_layers": sizes.blocks,
        "num_attention_heads": sizes.heads,
        "attention_head_dim": sum(ROPE_AXES),
        "axes_dims_rope": ROPE_AXES,
        "context_in_dim": 128 * sizes.text_heads,
    }
    with init_empty_weights(include_buffers=False):
        return QwenImage21Transformer2DModel.from_config(config)


def _text_encoder(like: Path, sizes: Sizes) -> nn.Module:
    config = Qwen3VLConfig.from_pretrained(like / "text_encoder")
    text = config.text_config
    text.hidden_size, text.num_hidden_layers, text.head_dim = 128 * sizes.text_heads, sizes.text_blocks, 128
    text.num_attention_heads = text.num_key_value_heads = sizes.text_heads
    text.intermediate_size = 3 * text.hidden_size
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [24, 20, 20]}
    config.vision_config.out_hidden_size = text.hidden_size
    with init_empty_weights(include_buffers=False):
        return Qwen3VLForConditionalGeneration(config)


def _autoencoder(like: Path, sizes: Sizes) -> nn.Module:
    config = AutoencoderKLQwenImage21.load_config(like / "vae")
    with init_empty_weights(include_buffers=False):
        return AutoencoderKLQwenImage21.from_config(
            {**config, "base_dim": sizes.vae, "decoder_base_dim": sizes.vae_decoder}
        )


def _write_random(folder: Path, network: Any, sizes: Sizes) -> None:
    """Write configuration and random weights of a network without values."""
    cast_parameters(network, torch.bfloat16)
    state, stem = network.state_dict(), weight_files.DIFFUSERS
    match network:
        case Qwen3VLForConditionalGeneration():
            stem = weight_files.TRANSFORMERS
            # Tied to the token embeddings.
            del state["lm_head.weight"]
            network.config.dtype = torch.bfloat16
            network.config.save_pretrained(folder)
        case _:
            network.save_config(folder)
    weight_files.write(folder, _RandomTensors(state, sizes.seed, sizes.torch_device), state, stem, largest=sizes.file)


class _RandomTensors(Mapping[str, Tensor]):
    """Random weights in the shapes of `like`, each drawn when it is asked for, by its name alone: matrices keep the
    size of what they multiply, scales are 1 and biases 0."""

    def __init__(self, like: Mapping[str, Tensor], seed: int, device: torch.device) -> None:
        self.like, self.seed, self.device = like, seed, device

    def __getitem__(self, name: str) -> Tensor:
        like = self.like[name]
        if like.ndim < 2:
            return torch.full(like.shape, float(name.endswith("weight")), dtype=like.dtype, device=self.device)
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        generator = torch.Generator(self.device).manual_seed(int.from_bytes(digest[:7]))
        values = torch.empty(like.shape, dtype=like.dtype, device=self.device)
        return values.normal_(0.0, (like.numel() / len(like)) ** -0.5, generator=generator)

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 done, 2 an error that the user can correct."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not words or "=" in words[0]:
            raise UserError("name the folder to write: python -m workbench.bench.mkfolder OUT [key=value ...]")
        sizes = read_options(Sizes, words[1:], FULL if "size=full" in words else None)
        make(Path(words[0]), sizes)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {words[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
