"""The interface of a family of pipeline folders: how a folder is read, encoded with, sampled and written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from PIL import Image
from torch import Tensor, nn

from workbench.backbones.base import NetworkFactory
from workbench.backbones.folders import Finish
from workbench.backbones.measured import Measured
from workbench.batch import EncodedPrompt, Layout
from workbench.common.errors import UserError
from workbench.method.rollout import Sampling


class TrainableText(ABC):
    """The prompts of a family as token ids, and its text encoder as pretraining trains it.

    encoder: the text encoder. tokenize: (text, number of image slots, 0 for none) -> token ids of the whole prompt.
    num_system_tokens: leading tokens of every prompt, which the denoiser never sees.
    """

    encoder: nn.Module
    tokenize: Callable[[str, int], list[int]]
    num_system_tokens: int

    @abstractmethod
    def set_trainable(self, trains: bool) -> None:
        """Let gradients reach the parameters that the embeddings depend on, or freeze all."""

    @abstractmethod
    def compile_layers(self) -> None:
        """Run the layers of the encoder compiled from now on."""

    @abstractmethod
    def embed(self, token_ids: Tensor, images: Tensor | None, layout: Layout) -> Tensor:
        """Embeddings (B, L, D) without the system tokens, with gradient; arguments as in `CaptionBatch`."""


class PipelineModel(ABC):
    """A loaded pipeline folder of one family.

    class_names: classes in the index of a folder of the family. pixels_per_token: side of the square of pixels behind
    one latent token. side_multiple: sides of images are multiples of so many pixels. encoder_parts: components that
    encoded data depend on, where a folder has them. transformer: diffusers' network, absent where it was left on the
    disk. default_resolution: pictures have about its square in pixels where neither a recipe nor the folder says
    otherwise. max_sources: source images that an edit may have. measured: what measuring at any size needs, where the
    family has it.
    """

    class_names: ClassVar[tuple[str, ...]]
    pixels_per_token: ClassVar[int]
    side_multiple: ClassVar[int]
    encoder_parts: ClassVar[tuple[str, ...]]
    network: ClassVar[NetworkFactory]
    measured: ClassVar[Measured | None] = None
    default_resolution: ClassVar[int] = 1024
    max_sources: ClassVar[int] = 1

    @classmethod
    @abstractmethod
    def check(cls, folder: Path) -> None:
        """Raise UserError where a component of the folder is missing."""

    @classmethod
    @abstractmethod
    def load(
        cls,
        folder: Path,
        device: str | torch.device,
        dtype: torch.dtype,
        *,
        transformer_dtype: torch.dtype | None,
        transformer: bool,
        text_encoder: bool,
        empty: bool,
    ) -> Self:
        """The model of a folder in evaluation mode.

        transformer_dtype: of the transformer where it differs. transformer, text_encoder: False leaves it on the disk.
        empty: the transformer needs no values yet: see `stored_weights`.

        Raises:
            UserError: the files cannot be read or do not fit the classes.
        """

    @classmethod
    @abstractmethod
    def export(
        cls, teacher: Path, student_state: Mapping[str, Tensor], how: Sampling, out: Path, finish: Finish
    ) -> None:
        """Write the pipeline folder `out`: the teacher's, with the student's weights and its sampling.

        Every rank calls it, and takes part in the writing.

        student_state: unsharded, with the names of the stock network; a tensor is asked for once, by all ranks, and may
        be gathered then. how: the student's own sampling, unguided. finish: adds to the folder what is not the
        family's, such as a model card, on the first rank, before it appears.
        `out` appears complete or not at all; a pipeline folder in its place is replaced, anything else is left alone.
        """

    @classmethod
    @abstractmethod
    def sampling_of(cls, folder: Path, steps: int | None = None, sigmas: Sequence[float] = ()) -> Sampling:
        """How the stock pipeline samples a folder: over its stored grid, or else with the steps and guidance of the
        family, always through the folder's scheduler. Reads no weights.

        steps: in place of the stored grid and the family's number. sigmas: in place of either.

        Raises:
            UserError: a scheduler that cannot be followed.
        """

    @classmethod
    @abstractmethod
    def drawing_code(
        cls, folder: Path, how: Sampling, resolution: int, tasks: Sequence[str], *, stored: bool
    ) -> list[str]:
        """Lines of Python for a model card: what draws with a student, sampled as `how` says, of the teacher in
        `folder`, once the stock pipeline is there as `pipeline`.

        stored: its own folder was loaded, with its scheduler; otherwise one that leaves sigmas as they are given.
        """

    def export_pretrained(self, source: Path, out: Path) -> None:
        """Write the pipeline folder `out`: the source's, with this transformer and text encoder."""
        raise UserError(f"a {self.class_names[0]} cannot be pretrained here")

    @property
    @abstractmethod
    def transformer(self) -> nn.Module: ...

    @property
    @abstractmethod
    def architecture(self) -> Mapping[str, Any]:
        """What decides names and shapes of the transformer's weights."""

    @property
    @abstractmethod
    def embedding_dim(self) -> int:
        """Width of the prompt embeddings that the transformer reads."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the encoders are."""

    @property
    def prompt_limit(self) -> int:
        """Text tokens of a prompt beyond which the family is out of its depth; 0 where none is known."""
        return 0

    def check_prompt(self, prompt: str) -> None:  # noqa: B027 (most families have no such prompts)
        """Raise UserError for a prompt that would be misread, such as one with tokens of the family's template."""

    @abstractmethod
    def move_autoencoder(self, device: torch.device) -> None:
        """Move what encodes and decodes images to `device`."""

    @abstractmethod
    def encode_prompts(
        self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]] | None = None
    ) -> list[EncodedPrompt]:
        """Each prompt with its images, as the stock pipeline encodes it alone; an empty prompt as it encodes that."""

    @abstractmethod
    def encode_images(self, images: Tensor, *, exactly: bool = False) -> Tensor:
        """uint8 (B, H, W, 3 or 4) -> packed latents (B, N, C), as the stock pipeline encodes reference images.

        exactly: to the last bit, where a faster way rounds differently.
        """

    @abstractmethod
    def decode_latents(self, latents: Tensor, height: int, width: int) -> Tensor:
        """Packed latents (B, N, C) of `height` x `width` tokens -> uint8 (B, H, W, 3)."""

    @abstractmethod
    def default_sampling(self) -> Sampling:
        """The sampling used unless another is requested: that of the folder's own pipeline (`sampling_of`)."""

    def trainable_text(self) -> TrainableText:
        """Tokenizer and text encoder for pretraining."""
        raise UserError(f"a {self.class_names[0]} cannot be pretrained here")
