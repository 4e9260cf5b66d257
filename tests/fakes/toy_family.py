"""Pipeline folders of the toy family: its network, a text encoder that hashes words, an autoencoder that averages
squares of pixels. Nothing in it is shared with the family that ships: not its sizes, its slots or its files."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from toy_network import CHANNELS, PROMPT_WIDTH, ToyDenoiser, ToyTransformer

from workbench.backbones import families
from workbench.backbones.family import PipelineModel
from workbench.backbones.folders import INDEX_FILE, Finish, copy_parts, read_index, replaced_folder
from workbench.batch import EncodedPrompt, Reference
from workbench.common.errors import UserError
from workbench.method.rollout import Sampling

WEIGHTS = "transformer/weights.safetensors"
SLOTS = 3
"""Text positions of an image, whatever its size."""


class ToyModel(PipelineModel):
    class_names = ("ToyPipeline",)
    pixels_per_token = 8
    side_multiple = 8
    encoder_parts = ("words",)
    network = ToyDenoiser
    default_resolution = 128

    def __init__(self, transformer: ToyTransformer | None, sampling: dict[str, Any] | None, salt: int) -> None:
        self._transformer, self._sampling, self._salt = transformer, sampling, salt

    @classmethod
    def check(cls, folder: Path) -> None:
        for name in (WEIGHTS, "words/salt.txt"):
            if not (folder / name).is_file():
                raise UserError(f"{folder} lacks {name}")

    @classmethod
    def load(
        cls,
        folder: Path,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        *,
        transformer_dtype: torch.dtype | None = None,
        transformer: bool = True,
        text_encoder: bool = True,
        empty: bool = False,
    ) -> Self:
        network = ToyTransformer()
        network.load_state_dict(load_file(folder / WEIGHTS))
        salt = int((folder / "words/salt.txt").read_text())
        return cls(network.eval() if transformer else None, read_index(folder)["sampling"], salt)

    @classmethod
    def export(
        cls, teacher: Path, student_state: Mapping[str, Tensor], how: Sampling, out: Path, finish: Finish
    ) -> None:
        with replaced_folder(out) as folder:
            copy_parts(teacher, folder, ("transformer",))
            _write_network(folder, student_state, how)
            finish(folder)

    @classmethod
    def drawing_code(
        cls, folder: Path, how: Sampling, resolution: int, tasks: Sequence[str], *, stored: bool
    ) -> list[str]:
        return ['pipeline("PROMPT")']

    @property
    def transformer(self) -> ToyTransformer:
        assert self._transformer is not None
        return self._transformer

    @property
    def architecture(self) -> Mapping[str, Any]:
        return {"blocks": len(self.transformer.transformer_blocks)}

    @property
    def embedding_dim(self) -> int:
        return PROMPT_WIDTH

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def move_autoencoder(self, device: torch.device) -> None:
        assert device.type == "cpu"

    def encode_prompts(
        self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]] | None = None
    ) -> list[EncodedPrompt]:
        return [self._encode(prompt, images[i] if images else ()) for i, prompt in enumerate(prompts)]

    def _encode(self, prompt: str, images: Sequence[Image.Image]) -> EncodedPrompt:
        words = ["<start>", *["<image>"] * (SLOTS * len(images)), *prompt.split()]
        side = self.pixels_per_token
        references = tuple(
            Reference(1 + SLOTS * i, image.height // side, image.width // side, SLOTS) for i, image in enumerate(images)
        )
        seeds = [zlib.crc32(f"{self._salt}/{word}".encode()) for word in words]
        rows = [torch.randn(PROMPT_WIDTH, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        return EncodedPrompt(torch.stack(rows), references)

    def encode_images(self, images: Tensor, *, exactly: bool = False) -> Tensor:
        """Mean colour of each square, and how far its lightness varies."""
        side = self.pixels_per_token
        pixels = images[..., :3].float() / 127.5 - 1
        squares = pixels.unflatten(1, (-1, side)).unflatten(3, (-1, side))
        spread = squares.mean(dim=-1).std(dim=(2, 4))[..., None]
        latents = torch.cat([squares.mean(dim=(2, 4)), spread], dim=-1).flatten(1, 2)
        assert latents.shape[-1] == CHANNELS
        return latents

    def decode_latents(self, latents: Tensor, height: int, width: int) -> Tensor:
        side = self.pixels_per_token
        colours = ((latents[..., :3].unflatten(1, (height, width)).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return colours.repeat_interleave(side, dim=1).repeat_interleave(side, dim=2)

    @classmethod
    def sampling_of(cls, folder: Path, steps: int | None = None, sigmas: Sequence[float] = ()) -> Sampling:
        if sigmas:
            return Sampling(len(sigmas), times=tuple(sigmas), cfg_scale=4.0)
        return Sampling(steps, cfg_scale=4.0) if steps else _sampling(read_index(folder)["sampling"])

    def default_sampling(self) -> Sampling:
        return _sampling(self._sampling)


def _sampling(stored: dict[str, Any] | None) -> Sampling:
    return Sampling(**{**stored, "times": tuple(stored["times"])}) if stored else Sampling(3, cfg_scale=4.0)


def write_folder(folder: Path, seed: int = 0) -> None:
    """A pipeline folder with random weights."""
    (folder / "words").mkdir(parents=True)
    (folder / "words/salt.txt").write_text("7")
    (folder / INDEX_FILE).write_text(
        json.dumps({"_class_name": ToyModel.class_names[0], "words": [], "transformer": []})
    )
    _write_network(folder, ToyTransformer(seed).state_dict(), None)


def _write_network(folder: Path, state: Mapping[str, Tensor], how: Sampling | None) -> None:
    (folder / WEIGHTS).parent.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / WEIGHTS)
    grid = {"times": how.grid()[:-1].tolist(), "steps": how.steps, "stochastic": how.stochastic} if how else None
    (folder / INDEX_FILE).write_text(json.dumps({**read_index(folder), "sampling": grid}))


@contextmanager
def known() -> Iterator[None]:
    """The toy family among those that can be used."""
    with patch.object(families, "FAMILIES", (*families.FAMILIES, ToyModel)):
        yield
