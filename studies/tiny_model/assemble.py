"""A randomly initialised pipeline folder of the real classes: what training of the tiny model starts from.

    python -m studies.tiny_model.assemble OUT [VAE_FOLDER]

VAE_FOLDER: a trained autoencoder (`studies.tiny_model.vae`) to put in the place of a random one. Nothing of ours is
named in the folder, so stock diffusers and transformers load it.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKLQwenImage21, FlowMatchEulerDiscreteScheduler, QwenImage21Transformer2DModel
from transformers import Qwen2Tokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from studies.tiny_model import tokenizer as tokenizers

CORPUS_TEXTS = 30_000
"""Captions and instructions that the tokenizer is trained on."""
PATCH_PIXELS = 16
PATCHES_PER_SLOT_SIDE = 2

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}"
    "{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part.type == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif part.type == 'text' -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


@dataclass(frozen=True)
class Sizes:
    """Widths and depths of the parts. `latent_channels` is shared by autoencoder and transformer.

    vae_patch: side of the pixel patches that the autoencoder folds into channels before its first convolution; with
    the halvings between its `len(vae_mult)` levels it must make up the family's 16 pixels a latent.
    """

    latent_channels: int = 64
    blocks: int = 8
    heads: int = 4
    rope_axes: tuple[int, int, int] = (16, 24, 24)
    text_width: int = 192
    text_layers: int = 2
    text_mlp: int = 512
    text_head_dim: int = 64
    vision_width: int = 96
    vision_depth: int = 2
    vocab_size: int = 1024
    vae_base: int = 24
    vae_decoder_base: int = 32
    vae_mult: tuple[int, ...] = (1, 2, 4, 4, 4)
    vae_patch: int = 1


TINY = Sizes()
FOLDED = replace(TINY, vae_patch=2, vae_base=32, vae_decoder_base=40, vae_mult=(1, 2, 4, 4))
"""TINY with an autoencoder that folds 2 x 2 pixels first: more weights (5.6 M), half the work an image."""
SMALLEST = Sizes(
    latent_channels=8,
    blocks=2,
    heads=2,
    rope_axes=(8, 12, 12),
    text_width=64,
    text_mlp=64,
    text_head_dim=32,
    vision_width=32,
    vae_base=8,
    vae_decoder_base=8,
    vae_mult=(1, 1, 2, 2, 2),
)
"""For tests: the same shapes of everything, about 0.4 M parameters."""
SMALL, LARGE = replace(TINY, heads=2), replace(TINY, heads=11)
"""Proxies: transformers of TINY's depth and another width, 1.9 M and 55 M parameters beside its 7.4 M; all else is the
same."""
SIZES = {"tiny": TINY, "smallest": SMALLEST, "small": SMALL, "large": LARGE}


def assemble(out: Path, corpus: Iterable[str], seed: int, sizes: Sizes = TINY) -> None:
    """Write the pipeline folder `out`. The tokenizer is trained on the lines of `corpus`.

    Weights are stored in bf16, those of the text encoder in float32: asked for no dtype, diffusers loads its parts in
    float32 and transformers loads what was stored. The same arguments give the same files.
    """
    text_tokenizer = tokenizers.train(corpus, sizes.vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        components = {
            "transformer": transformer(sizes),
            "vae": autoencoder(sizes),
            "text_encoder": text_encoder(sizes, text_tokenizer),
        }
    for name, module in components.items():
        if name != "text_encoder":
            for parameter in module.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        module.save_pretrained(out / name)
    FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False).save_pretrained(out / "scheduler")
    _save_processor(out / "processor", text_tokenizer)
    index = {
        "_class_name": "QwenImage21Pipeline",
        "_diffusers_version": diffusers.__version__,
        "processor": ["transformers", "Qwen3VLProcessor"],
        "sample_sigmas": None,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3VLForConditionalGeneration"],
        "transformer": ["diffusers", "QwenImage21Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage21"],
    }
    _write_json(out / "model_index.json", index)


def transformer(sizes: Sizes) -> QwenImage21Transformer2DModel:
    """Single-stream transformer of width heads * sum(rope_axes)."""
    return QwenImage21Transformer2DModel(
        in_channels=sizes.latent_channels,
        out_channels=sizes.latent_channels,
        num_layers=sizes.blocks,
        attention_head_dim=sum(sizes.rope_axes),
        num_attention_heads=sizes.heads,
        context_in_dim=sizes.text_width,
        mlp_ratio=3,
        axes_dims_rope=sizes.rope_axes,
    )


def autoencoder(sizes: Sizes) -> AutoencoderKLQwenImage21:
    """RGBA autoencoder, 16 pixels a latent; mean 0 and deviation 1 until training measures them."""
    channels = 4 * sizes.vae_patch**2
    return AutoencoderKLQwenImage21(
        base_dim=sizes.vae_base,
        decoder_base_dim=sizes.vae_decoder_base,
        z_dim=sizes.latent_channels,
        dim_mult=list(sizes.vae_mult),
        num_res_blocks=1,
        temperal_downsample=[False, True, True, True][-(len(sizes.vae_mult) - 1) :],
        latents_mean=[0.0] * sizes.latent_channels,
        latents_std=[1.0] * sizes.latent_channels,
        in_channels=channels,
        out_channels=channels,
        patch_size=sizes.vae_patch if sizes.vae_patch > 1 else None,
    )


def text_encoder(sizes: Sizes, text_tokenizer: Qwen2Tokenizer) -> Qwen3VLForConditionalGeneration:
    """Vision-language encoder; one image slot a 32 x 32 pixel square."""
    ids = {
        f"{name}_token_id": text_tokenizer.convert_tokens_to_ids(f"<|{token}|>")
        for name, token in (
            ("image", "image_pad"),
            ("video", "video_pad"),
            ("vision_start", "vision_start"),
            ("vision_end", "vision_end"),
        )
    }
    rotary_pairs = sizes.text_head_dim // 2
    side = rotary_pairs // 3
    text = {
        "vocab_size": sizes.vocab_size,
        "hidden_size": sizes.text_width,
        "intermediate_size": sizes.text_mlp,
        "num_hidden_layers": sizes.text_layers,
        "num_attention_heads": sizes.text_width // sizes.text_head_dim,
        "num_key_value_heads": sizes.text_width // sizes.text_head_dim,
        "head_dim": sizes.text_head_dim,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [rotary_pairs - 2 * side, side, side],
            "mrope_interleaved": True,
        },
        "tie_word_embeddings": True,
        "eos_token_id": text_tokenizer.eos_token_id,
        "pad_token_id": text_tokenizer.pad_token_id,
    }
    vision = {
        "depth": sizes.vision_depth,
        "hidden_size": sizes.vision_width,
        "intermediate_size": 2 * sizes.vision_width,
        "num_heads": 2,
        "patch_size": PATCH_PIXELS,
        "spatial_merge_size": PATCHES_PER_SLOT_SIDE,
        "out_hidden_size": sizes.text_width,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    )


def _save_processor(folder: Path, text_tokenizer: Qwen2Tokenizer) -> None:
    """What `Qwen3VLProcessor.from_pretrained` reads: tokenizer, chat template, image and video settings."""
    text_tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    slot_pixels = (PATCH_PIXELS * PATCHES_PER_SLOT_SIDE) ** 2
    common = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "merge_size": PATCHES_PER_SLOT_SIDE,
        "patch_size": PATCH_PIXELS,
        "processor_class": "Qwen3VLProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": slot_pixels, "longest_edge": 4096 * slot_pixels},
        "temporal_patch_size": 2,
    }
    _write_json(folder / "preprocessor_config.json", {**common, "image_processor_type": "Qwen2VLImageProcessorFast"})
    _write_json(folder / "video_preprocessor_config.json", {**common, "video_processor_type": "Qwen3VLVideoProcessor"})


def put_autoencoder(trained: Path, out: Path) -> None:
    """Put the autoencoder that `studies.tiny_model.vae` trained into the pipeline folder `out`."""
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        shutil.copy2(trained / name, out / "vae" / name)


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def main(arguments: list[str]) -> None:
    """Command line: OUT [VAE_FOLDER]."""
    if not 1 <= len(arguments) <= 2:
        raise SystemExit("usage: python -m studies.tiny_model.assemble OUT [VAE_FOLDER]")
    from datamodules.openmoji import corpus

    out = Path(arguments[0])
    assemble(out, corpus(CORPUS_TEXTS, seed=0), seed=0)
    if len(arguments) == 2:
        put_autoencoder(Path(arguments[1]), out)


if __name__ == "__main__":
    main(sys.argv[1:])
