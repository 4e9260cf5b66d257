"""Pipeline folders of the Qwen-Image-2.1 family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import QwenImage21Pipeline, QwenImage21Transformer2DModel
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from torch import Tensor
from transformers.utils import logging as transformers_logging

from workbench.backbones.family import PipelineModel
from workbench.backbones.finite import require_finite
from workbench.backbones.folders import check_weights, sample_sigmas
from workbench.backbones.qwen_image_21 import export, schedule
from workbench.backbones.qwen_image_21.images import decode_latents, encode_images
from workbench.backbones.qwen_image_21.pretraining import TrainableQwen
from workbench.backbones.qwen_image_21.processor import load_processor
from workbench.backbones.qwen_image_21.prompts import encode_prompts, refuse_template_tokens
from workbench.backbones.qwen_image_21.sequence import PIXELS_PER_TOKEN, SIDE_MULTIPLE
from workbench.backbones.qwen_image_21.transformer import SplitTransformer
from workbench.backbones.qwen_image_21.vae import FastVae
from workbench.batch import EncodedPrompt
from workbench.common.errors import UserError
from workbench.method.rollout import Sampling

PROMPT_LIMIT = 1024
"""Text tokens: Qwen-Image's own pipeline (diffusers, `QwenImagePipeline.tokenizer_max_length`) takes no more."""
_WEIGHTED = ("transformer", "vae", "text_encoder")


class QwenImage21Model(PipelineModel):
    """A loaded `QwenImage21Pipeline`, and its autoencoder a second time in a faster form where there is one."""

    class_name = "QwenImage21Pipeline"
    pixels_per_token = PIXELS_PER_TOKEN
    side_multiple = SIDE_MULTIPLE
    encoder_parts = ("text_encoder", "vae", "processor", "tokenizer")
    network = SplitTransformer

    def __init__(self, pipeline: QwenImage21Pipeline) -> None:
        self.pipeline = pipeline
        self._fast = FastVae(pipeline.vae).eval() if pipeline.vae.config.is_residual else None

    @classmethod
    def check(cls, folder: Path) -> None:
        for name in _WEIGHTED:
            check_weights(folder / name)
        for name in ("scheduler/scheduler_config.json", *(f"{part}/config.json" for part in _WEIGHTED)):
            if not (folder / name).is_file():
                raise UserError(f"{folder} lacks {name}: copy the pipeline folder again")

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
    ) -> Self:
        """See `PipelineModel.load`; with or without torchvision installed."""
        absent = {
            name: None for name, wanted in (("transformer", transformer), ("text_encoder", text_encoder)) if not wanted
        }
        try:
            processor = load_processor(folder / "processor")
            with _no_progress_bars():
                pipeline = QwenImage21Pipeline.from_pretrained(
                    folder,
                    processor=processor,
                    dtype={"default": dtype, "transformer": transformer_dtype or dtype},
                    use_safetensors=True,
                    local_files_only=True,
                    **absent,
                )
        except (UserError, MemoryError):
            raise
        except Exception as error:  # the libraries raise almost any kind over a folder that they cannot use
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"cannot load the pipeline folder {folder}: {reason}; copy it again") from error
        require_finite(folder, pipeline.components)
        pipeline.set_progress_bar_config(disable=True)
        return cls(pipeline.to(device))

    @classmethod
    def export(cls, teacher: Path, student_state: Mapping[str, Tensor], how: Sampling, out: Path, card: str) -> None:
        sigmas = sample_sigmas(how.grid())
        export.export(teacher, student_state, sigmas, out, card=card, stochastic=how.stochastic)

    def export_pretrained(self, source: Path, out: Path) -> None:
        export.export_pretrained(source, self.pipeline.transformer, self.pipeline.text_encoder, out)

    @property
    def transformer(self) -> QwenImage21Transformer2DModel:
        return self.pipeline.transformer

    @property
    def architecture(self) -> Mapping[str, Any]:
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in self.transformer.config.items()
            if not name.startswith("_")
        }

    @property
    def embedding_dim(self) -> int:
        return int(self.transformer.config.context_in_dim)

    @property
    def device(self) -> torch.device:
        return self.pipeline.vae.device

    @property
    def prompt_limit(self) -> int:
        tokenizer, config = self.pipeline.processor.tokenizer, self.pipeline.text_encoder.config.text_config
        return min(PROMPT_LIMIT, int(tokenizer.model_max_length), int(config.max_position_embeddings))

    def check_prompt(self, prompt: str) -> None:
        refuse_template_tokens(self.pipeline, [prompt])

    def move_autoencoder(self, device: torch.device) -> None:
        (self._fast or self.pipeline.vae).to(device)

    def encode_prompts(
        self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]] | None = None
    ) -> list[EncodedPrompt]:
        return encode_prompts(self.pipeline, prompts, images)

    def encode_images(self, images: Tensor, *, exactly: bool = False) -> Tensor:
        return encode_images(self.pipeline.vae, images, None if exactly else self._fast)

    def decode_latents(self, latents: Tensor, height: int, width: int) -> Tensor:
        return decode_latents(self.pipeline.vae, latents, height, width, self._fast)

    @classmethod
    def sampling_of(cls, folder: Path, steps: int | None = None, sigmas: Sequence[float] = ()) -> Sampling:
        return schedule.folder_sampling(folder, steps, sigmas)

    def default_sampling(self) -> Sampling:
        scheduler = self.pipeline.scheduler
        return schedule.sampling(type(scheduler).__name__, scheduler.config, self.pipeline.config.sample_sigmas)

    def trainable_text(self) -> TrainableQwen:
        return TrainableQwen(self.pipeline)


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Both libraries draw bars for every component; a folder loads within seconds."""
    libraries = [library for library in (diffusers_logging, transformers_logging) if library.is_progress_bar_enabled()]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in libraries:
            library.enable_progress_bar()
