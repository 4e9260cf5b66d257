"""Random pipeline folders of Qwen-Image and Qwen-Image-Edit, of the real classes: what the public ones are, small."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from studies.tiny_model import tokenizer as tokenizers
from studies.tiny_model.assemble import CHAT_TEMPLATE

TEXT_WIDTH, VOCABULARY, PATCH, MERGE = 48, 512, 14, 2
LATENT_CHANNELS = 16
PUBLIC_SCHEDULER: dict[str, Any] = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 8192,
    "max_shift": 0.9,
    "num_train_timesteps": 1000,
    "shift": 1.0,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
    "use_dynamic_shifting": True,
}
"""As Qwen-Image and Qwen-Image-Edit have it on the Hub."""


@dataclass(frozen=True)
class Sizes:
    """Of the transformer; the public ones are 60, 24 and (16, 56, 56)."""

    blocks: int = 2
    heads: int = 2
    rope_axes: tuple[int, int, int] = (4, 6, 6)


def assemble(
    out: Path,
    corpus: Iterable[str],
    edits: bool,
    zero_cond_t: bool = False,
    seed: int = 0,
    sizes: Sizes = Sizes(),
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the pipeline folder `out`; all folders share text encoder and autoencoder.

    edits: of `QwenImageEditPlusPipeline`, otherwise of `QwenImagePipeline`. zero_cond_t: as in Qwen-Image-Edit-2511.
    dtype: that the transformer is stored in.
    """
    tokenizer = tokenizers.train(corpus, VOCABULARY)
    parts = {
        "text_encoder": text_encoder(tokenizer),
        "vae": autoencoder(),
        "transformer": transformer(sizes, zero_cond_t),
    }
    for name, part in parts.items():
        _randomise(part, seed if name == "transformer" else 0)
        (part.to(dtype) if name == "transformer" else part).save_pretrained(out / name)
    FlowMatchEulerDiscreteScheduler(**PUBLIC_SCHEDULER).save_pretrained(out / "scheduler")
    tokenizer.save_pretrained(out / "tokenizer")
    if edits:
        _save_processor(out / "processor", tokenizer)
    index = {
        "_class_name": "QwenImageEditPlusPipeline" if edits else "QwenImagePipeline",
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
        **({"processor": ["transformers", "Qwen2VLProcessor"]} if edits else {}),
    }
    _write_json(out / "model_index.json", index)
    return out


def transformer(sizes: Sizes, zero_cond_t: bool) -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        in_channels=4 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=sizes.blocks,
        attention_head_dim=sum(sizes.rope_axes),
        num_attention_heads=sizes.heads,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=sizes.rope_axes,
        zero_cond_t=zero_cond_t,
    )


def autoencoder() -> AutoencoderKLQwenImage:
    """8 pixels a latent; mean and deviation of its channels are the public ones."""
    return AutoencoderKLQwenImage(base_dim=8, z_dim=LATENT_CHANNELS, dim_mult=[1, 1, 2, 2], num_res_blocks=1)


def text_encoder(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """Two layers of each tower, one of vision with windows; heads of 16 channels."""
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": TEXT_WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "out_hidden_size": TEXT_WIDTH,
    }
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))


def _randomise(part: nn.Module, seed: int) -> None:
    """Weights of the libraries' own sizes hide errors: some begin at 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in part.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.7 / parameter[0].numel() ** 0.5, generator=generator)
        elif "norm" not in name:
            nn.init.normal_(parameter, std=0.1, generator=generator)


def _save_processor(folder: Path, tokenizer: Qwen2Tokenizer) -> None:
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    common = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "merge_size": MERGE,
        "patch_size": PATCH,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": 3136, "longest_edge": 12845056},
        "temporal_patch_size": 2,
    }
    _write_json(folder / "preprocessor_config.json", {**common, "image_processor_type": "Qwen2VLImageProcessorFast"})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
