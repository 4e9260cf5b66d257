"""Raw shards to encoded ones, with the encoders of a pipeline folder."""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import torch

from datamodules.shards.encode import EncodeSummary, encode_shards
from datamodules.shards.encode_shard import Encoder
from workbench.backbones import families
from workbench.common import files
from workbench.recipe.config import Recipe


def encode(recipe: Recipe) -> EncodeSummary:
    """Encode the shards of `data.raw` into `data.encoded`, or reuse what the same shards and pipeline made.

    An interrupted run goes on with the first unfinished shard. Text encoder and autoencoder run in float32, or in
    bfloat16 on CUDA with trainer.precision=bf16-mixed; what is stored is float16.

    Raises:
        UserError: raw shards or a pipeline that cannot be used, a full disk, a folder that holds something else.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" and recipe.trainer.precision == "bf16-mixed" else torch.float32
    load = partial(load_encoder, recipe.model.folder, device, dtype)
    summary = encode_shards(recipe.data, load, encoder_fingerprint(recipe.model.folder), str(dtype))
    print(summary)
    return summary


def load_encoder(folder: str, device: str, dtype: torch.dtype) -> Encoder:
    """The encoders of a pipeline folder; at the top of a module, since worker processes call it too."""
    model = families.load(folder, device, dtype, transformer=False)
    return Encoder(
        model.encode_prompts,
        model.encode_images,
        model.pixels_per_token,
        model.side_multiple,
        model.check_prompt,
        model.prompt_limit,
    )


def encoder_fingerprint(folder: str) -> str:
    """sha256 over the files of the components of a pipeline folder that encoded data depend on."""
    path = families.resolve(folder)
    parts: list[Path] = []
    for part in families.family_of(path).encoder_parts:
        parts += (file for file in (path / part).rglob("*") if file.is_file())
    digest = hashlib.sha256()
    for file in sorted(parts):
        digest.update(f"{file.relative_to(path).as_posix()} {files.sha256_of_file(file)}\n".encode())
    return digest.hexdigest()
