"""A small random LoRA file: a smoke run's specialist over the tiny transformer. `random_adapter.py OUT`"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

TINY = Path(__file__).parents[2] / "workbench" / "assets" / "tiny"
RANK = 2


def write_adapter(out: Path, pipeline_folder: Path = TINY) -> None:
    """A and B of a thousandth on the first block's queries, drawn from the file's name."""
    config = json.loads((pipeline_folder / "transformer" / "config.json").read_text())
    width = config["num_attention_heads"] * config["attention_head_dim"]
    generator = np.random.default_rng(zlib.crc32(out.stem.encode()))
    layer = "transformer.transformer_blocks.0.attn.to_q"
    halves = {"lora_A": (RANK, width), "lora_B": (width, RANK)}
    state = {f"{layer}.{half}.weight": 1e-3 * generator.standard_normal(shape) for half, shape in halves.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_suffix(".part")
    save_file({name: value.astype(np.float32) for name, value in state.items()}, part)
    part.replace(out)


if __name__ == "__main__":
    write_adapter(Path(sys.argv[1]))
