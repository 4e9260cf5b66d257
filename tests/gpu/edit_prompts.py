"""Edits through a Qwen2.5-VL of the public size with random weights: one a call, as the stock pipeline takes them, and
many.

    PYTHONPATH=tests/fakes python tests/gpu/edit_prompts.py [size=tiny] [count=32]

prints seconds an edit, the largest relative difference of the two and the peak of memory, for one and three sources.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tiny_qwen_image import assemble
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from workbench.backbones.qwen_image.model import QwenImageModel
from workbench.backbones.qwen_image.text_encoder import prepare

PUBLIC = {
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {
        "depth": 32,
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "out_hidden_size": 3584,
    },
}
"""Of Qwen2.5-VL-7B, over the tiny folder's tokens."""
COLOURS, LOOKS = ("red", "blue", "very blue"), ("round", "wide")


def model_of(size: str, device: str) -> QwenImageModel:
    """An editing pipeline without transformer, its text encoder of that size."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with tempfile.TemporaryDirectory() as folder:
        assemble(Path(folder), [f"make it {colour} and {look}" for colour in COLOURS for look in LOOKS], edits=True)
        model = QwenImageModel.load(Path(folder), device, dtype, transformer=False)
    if size == "public":
        values = model.pipeline.text_encoder.config.to_dict()
        changed = {part: {**values[part], **PUBLIC[part]} for part in PUBLIC}
        with torch.device(device):
            encoder = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**{**values, **changed})).to(dtype).eval()
        prepare(encoder)
        for pipeline in (model.pipeline, model.edits):
            assert pipeline is not None
            pipeline.register_modules(text_encoder=encoder)
    return model


def main(size: str = "public", count: str = "32") -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, generator = model_of(size, device), np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 256, (384, 384, 3), dtype=np.uint8))
    print("sources  alone s/edit  together s/edit  largest difference  peak GiB")
    for sources in (1, 3):
        groups = [[picture] * sources] * int(count)
        texts = [f"make it {'very ' * (i % 8)}blue" for i in range(len(groups))]
        pairs = list(zip(texts, groups, strict=True))
        model.encode_prompts(texts[:1], groups[:1])
        began = time.perf_counter()
        alone = [model.encode_prompts([text], [group])[0].embeddings.cpu() for text, group in pairs]
        between = time.perf_counter()
        together = [each.embeddings.cpu() for each in model.encode_prompts(texts, groups)]
        ended = time.perf_counter()
        differences = [float((a - b).norm() / a.norm()) for a, b in zip(alone, together, strict=True)]
        peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
        each = [(between - began) / len(groups), (ended - between) / len(groups)]
        print(f"{sources:7}  {each[0]:12.4f}  {each[1]:15.4f}  {max(differences):18.1e}  {peak:8.1f}", flush=True)


if __name__ == "__main__":
    main(**dict(item.split("=") for item in sys.argv[1:]))  # type: ignore[arg-type]
