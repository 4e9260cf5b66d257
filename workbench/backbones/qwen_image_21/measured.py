"""Qwen-Image-2.1 at any size: a pipeline folder without weights, whose configurations and tokenizer are those of a
folder that is there, and a transformer alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from workbench.backbones.folders import INDEX_FILE, read_index
from workbench.backbones.measured import (
    HEAD,
    ROPE_AXES,
    FolderSizes,
    Measured,
    NetworkSizes,
    without_values,
    write_scheduler,
)
from workbench.backbones.qwen_image_21 import stock
from workbench.backbones.qwen_image_21.sequence import LATENT_TOKENS_PER_SLOT

PUBLIC = FolderSizes(blocks=32, heads=32, text_blocks=4, text_heads=32, vae=96, vae_decoder=128)
"""A transformer of 7.1 B parameters; the text encoder is as wide as its own, and shallow to save disk."""


def _write(folder: Path, like: Path, _: str, sizes: FolderSizes) -> dict[str, Any]:
    """Write all but the weights of `folder`, after the folder `like`; the networks by component, without values."""
    write_scheduler(folder)
    shutil.copytree(like / "processor", folder / "processor")
    index = {**read_index(like), "sample_sigmas": None}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n")
    with without_values():
        return {
            "transformer": QwenImage21Transformer2DModel.from_config(_transformer(like, sizes)),
            "text_encoder": Qwen3VLForConditionalGeneration(_text_encoder(like, sizes)),
            "vae": AutoencoderKLQwenImage21.from_config(
                AutoencoderKLQwenImage21.load_config(like / "vae")
                | {"base_dim": sizes.vae, "decoder_base_dim": sizes.vae_decoder}
            ),
        }


def _transformer(like: Path, sizes: FolderSizes) -> dict[str, Any]:
    config: dict[str, Any] = QwenImage21Transformer2DModel.load_config(like / "transformer")
    return config | {
        "num_layers": sizes.blocks,
        "num_attention_heads": sizes.heads,
        "attention_head_dim": sum(ROPE_AXES),
        "axes_dims_rope": ROPE_AXES,
        "context_in_dim": HEAD * sizes.text_heads,
    }


def _text_encoder(like: Path, sizes: FolderSizes) -> Qwen3VLConfig:
    config = Qwen3VLConfig.from_pretrained(like / "text_encoder")
    text = config.text_config
    text.hidden_size, text.num_hidden_layers, text.head_dim = HEAD * sizes.text_heads, sizes.text_blocks, HEAD
    text.num_attention_heads = text.num_key_value_heads = sizes.text_heads
    text.intermediate_size = 3 * text.hidden_size
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [24, 20, 20]}
    config.vision_config.out_hidden_size = text.hidden_size
    return config


def _network(_: str, sizes: NetworkSizes) -> QwenImage21Transformer2DModel:
    return QwenImage21Transformer2DModel(
        in_channels=sizes.channels,
        out_channels=sizes.channels,
        num_layers=sizes.blocks,
        attention_head_dim=sizes.width // sizes.heads,
        num_attention_heads=sizes.heads,
        context_in_dim=sizes.text,
        axes_dims_rope=sizes.rope_axes,
    )


MEASURED = Measured(
    public=PUBLIC,
    write_folder=_write,
    network=_network,
    stock_velocity=stock.velocity,
    text_slots=lambda height, width: height * width // LATENT_TOKENS_PER_SLOT,
)
