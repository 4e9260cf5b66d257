"""Raw shards to encoded ones, with the encoders of a pipeline folder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from datamodules.shards import team as teams
from datamodules.shards.encode import EncodeSummary, encode_shards, encode_shards_among_ranks
from datamodules.shards.encode_batch import Encoder, FamilyLimits
from workbench.backbones import families
from workbench.common import files
from workbench.common.errors import UserError
from workbench.recipe.config import Recipe

LARGEST_DIFFERENCE = 0.05
"""Norm of what bfloat16 changes about latents, as a share of theirs, beyond which it is not usable."""
_PICTURES_COMPARED = 4


def encode(recipe: Recipe) -> EncodeSummary | None:
    """Encode the shards of `data.raw` into `data.encoded`, or reuse what the same shards and pipeline made.

    An interrupted run goes on with the shards that are not finished. What is stored is float16. Of the ranks that
    torchrun or SLURM started, all but the first return nothing.

    Raises:
        UserError: raw shards or a pipeline that cannot be used, a full disk, a folder that holds something else.
    """
    team, started = teams.join(), time.perf_counter()
    _check_workers(recipe, team)
    model, dtype = recipe.model.folder, dtype_of(recipe)
    load = EncoderLoader(model, dtype)
    if team is None:
        summary: EncodeSummary | None = encode_shards(recipe.data, load, encoder_fingerprint(model), str(dtype))
    else:
        fingerprint = partial(encoder_fingerprint, model)
        summary = encode_shards_among_ranks(recipe.data, load, fingerprint, str(dtype), team)
        team.leave()
    if summary is not None:
        print(summary)
        if not summary.reused:
            print(f"took {time.perf_counter() - started:,.0f} s")
    return summary


def _check_workers(recipe: Recipe, team: teams.Team | None) -> None:
    if team is not None and recipe.data.encode_workers > 1:
        raise UserError(
            f"torchrun or SLURM started {team.world} processes, and data.encode_workers="
            f"{recipe.data.encode_workers} asks for more in each: leave out data.encode_workers"
        )


def dtype_of(recipe: Recipe) -> torch.dtype:
    """What text encoder and autoencoder compute in."""
    match recipe.data.encode_dtype:
        case "float32":
            return torch.float32
        case "bfloat16":
            return torch.bfloat16
        case "auto":
            rounded = torch.cuda.is_available() and recipe.trainer.precision == "bf16-mixed"
            return torch.bfloat16 if rounded else torch.float32


def device_of(number: int) -> str:
    """The device of the process of this number on its machine: its GPUs in turn."""
    return f"cuda:{number % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class EncoderLoader:
    """Loads the encoders of a pipeline folder; worker processes get one too.

    The first process of a machine compares what bfloat16 makes of its first pictures with float32.
    """

    folder: str
    dtype: torch.dtype

    def __call__(self, number: int) -> Encoder:
        device = device_of(number)
        if device != "cpu":
            torch.cuda.set_device(device)
        model = families.load(self.folder, device, self.dtype, transformer=False)
        images: Callable[[Tensor], Tensor] = model.encode_images
        if self.dtype != torch.float32 and number == 0:
            exact = families.load(self.folder, device, transformer=False, text_encoder=False)
            images = ComparedImages(images, exact.encode_images)
        return Encoder(
            model.encode_prompts,
            images,
            model.pixels_per_token,
            FamilyLimits(model.side_multiple, model.max_sources),
            model.check_prompt,
            model.prompt_limit,
        )


class ComparedImages:
    """Encodes pictures by `rounded`, and a few of the first by `exact` too, to say how far they differ.

    Raises:
        UserError: by more than LARGEST_DIFFERENCE.
    """

    def __init__(self, rounded: Callable[[Tensor], Tensor], exact: Callable[[Tensor], Tensor]) -> None:
        self._rounded = rounded
        self._exact: Callable[[Tensor], Tensor] | None = exact

    def __call__(self, images: Tensor) -> Tensor:
        latents = self._rounded(images)
        if self._exact is not None:
            self._compare(latents[:_PICTURES_COMPARED], self._exact(images[:_PICTURES_COMPARED]))
            self._exact = None  # and its weights
        return latents

    def _compare(self, rounded: Tensor, exact: Tensor) -> None:
        difference = float((rounded.float() - exact.float()).norm() / exact.float().norm())
        found = f"latents of {len(exact)} pictures in bfloat16 differ from float32 by {difference:.2%} of their norm"
        if not difference <= LARGEST_DIFFERENCE:
            raise UserError(f"{found}, {LARGEST_DIFFERENCE:.0%} at most: set data.encode_dtype=float32")
        print(found)


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
