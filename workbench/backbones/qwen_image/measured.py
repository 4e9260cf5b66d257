"""Qwen-Image and Qwen-Image-Edit at any size: a pipeline folder without weights, and a transformer alone."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import diffusers
from diffusers import AutoencoderKLQwenImage, QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock_pipeline
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from workbench.backbones.folders import INDEX_FILE
from workbench.backbones.measured import (
    HEAD,
    FolderSizes,
    Measured,
    NetworkSizes,
    without_values,
    write_scheduler,
)
from workbench.backbones.processor import CHAT_TEMPLATE_FILE, IMAGE_PROCESSOR_FILE, TOKENS
from workbench.backbones.qwen_image import stock
from workbench.backbones.qwen_image.images import PACKED

PUBLIC = FolderSizes(blocks=60, heads=24, text_blocks=2, text_heads=28, vae=96)
"""A transformer of 20.4 B parameters; the text encoder is as wide as its own, and shallow to save disk."""
KEY_HEADS = 4
"""Heads of keys and values in the text encoder, where their number divides that of the queries."""
PIXELS = {"shortest_edge": 3136, "longest_edge": 12845056}
"""Fewest and most of an image that the text encoder reads, as the public processor has them."""
_PATCHES = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}


def _write(folder: Path, like: Path, class_name: str, sizes: FolderSizes) -> dict[str, Any]:
    """like: of the other family. The transformer of the editing pipeline is as in 2511."""
    write_scheduler(folder)
    tokenizer = AutoTokenizer.from_pretrained(like / "processor", trust_remote_code=False)
    tokenizer.save_pretrained(folder / "tokenizer")
    if _edits(class_name):
        _write_processor(folder / "processor", like / "processor", tokenizer)
    (folder / INDEX_FILE).write_text(json.dumps(_index(class_name), indent=2) + "\n")
    width, text = HEAD * sizes.heads, HEAD * sizes.text_heads
    with without_values():
        return {
            "transformer": _network(class_name, NetworkSizes(sizes.blocks, width, sizes.heads, text)),
            "text_encoder": Qwen2_5_VLForConditionalGeneration(_text_encoder(tokenizer, sizes)),
            "vae": AutoencoderKLQwenImage(base_dim=sizes.vae),
        }


def _network(class_name: str, sizes: NetworkSizes) -> QwenImageTransformer2DModel:
    return QwenImageTransformer2DModel(
        in_channels=sizes.channels,
        out_channels=sizes.channels // PACKED**2,
        num_layers=sizes.blocks,
        attention_head_dim=sizes.width // sizes.heads,
        num_attention_heads=sizes.heads,
        joint_attention_dim=sizes.text,
        axes_dims_rope=sizes.rope_axes,
        zero_cond_t=_edits(class_name),
    )


def _edits(class_name: str) -> bool:
    return class_name == QwenImageEditPlusPipeline.__name__


def _index(class_name: str) -> dict[str, Any]:
    processor = {"processor": ["transformers", "Qwen2VLProcessor"]} if _edits(class_name) else {}
    return {
        "_class_name": class_name,
        "_diffusers_version": diffusers.__version__,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage"],
        **processor,
    }


def _text_encoder(tokenizer: PreTrainedTokenizerBase, sizes: FolderSizes) -> Qwen2_5_VLConfig:
    """As wide as asked for, and a small tower of vision of two layers, one of them with windows."""
    width = HEAD * sizes.text_heads
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": sizes.text_blocks,
        "num_attention_heads": sizes.text_heads,
        "num_key_value_heads": math.gcd(sizes.text_heads, KEY_HEADS),
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "patch_size": _PATCHES["patch_size"],
        "spatial_merge_size": _PATCHES["merge_size"],
        "fullatt_block_indexes": [1],
        "out_hidden_size": width,
    }
    ids = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)


def _write_processor(folder: Path, like: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.save_pretrained(folder)
    shutil.copyfile(like / CHAT_TEMPLATE_FILE, folder / CHAT_TEMPLATE_FILE)
    settings = json.loads((like / IMAGE_PROCESSOR_FILE).read_text())
    settings = {key: value for key, value in settings.items() if key != "processor_class"}
    text = json.dumps({**settings, **_PATCHES, "size": PIXELS}, indent=2)
    (folder / IMAGE_PROCESSOR_FILE).write_text(text + "\n")


def _text_slots(height: int, width: int) -> int:
    """The text encoder reads every image at about as many pixels."""
    sides = stock_pipeline.calculate_dimensions(stock_pipeline.CONDITION_IMAGE_SIZE, width / height)
    slot = _PATCHES["patch_size"] * _PATCHES["merge_size"]
    return math.prod(round(side / slot) for side in sides)


MEASURED = Measured(
    public=PUBLIC,
    write_folder=_write,
    network=_network,
    stock_velocity=stock.velocity,
    text_slots=_text_slots,
)
