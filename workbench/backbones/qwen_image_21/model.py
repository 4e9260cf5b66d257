"""Pipeline folders of the Qwen-Image-2.1 family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import torch
from diffusers import QwenImage21Pipeline, QwenImage21Transformer2DModel
from PIL import Image
from torch import Tensor

from workbench.backbones import schedule, template_tokens
from workbench.backbones.folders import Finish, sample_sigmas
from workbench.backbones.qwen_image_21 import export
from workbench.backbones.qwen_image_21.images import decode_latents, encode_images
from workbench.backbones.qwen_image_21.measured import MEASURED
from workbench.backbones.qwen_image_21.pretraining import TrainableQwen
from workbench.backbones.qwen_image_21.processor import load_processor
from workbench.backbones.qwen_image_21.prompts import encode_prompts
from workbench.backbones.qwen_image_21.sequence import PIXELS_PER_TOKEN, SIDE_MULTIPLE
from workbench.backbones.qwen_image_21.transformer import SplitTransformer
from workbench.backbones.qwen_image_21.vae import FastVae
from workbench.backbones.stock_folder import StockModel, load_pipeline
from workbench.batch import EncodedPrompt
from workbench.method.rollout import Sampling

PROMPT_LIMIT = 1024
"""Text tokens: Qwen-Image's own pipeline (diffusers, `QwenImagePipeline.tokenizer_max_length`) takes no more."""
DEFAULT_SAMPLING = Sampling(40)
"""Of `QwenImage21Pipeline.__call__`, which does not guide by default."""


class QwenImage21Model(StockModel):
    """A loaded `QwenImage21Pipeline`, and its autoencoder a second time in a faster form where there is one."""

    class_names = ("QwenImage21Pipeline",)
    pixels_per_token = PIXELS_PER_TOKEN
    side_multiple = SIDE_MULTIPLE
    encoder_parts = ("text_encoder", "vae", "processor", "tokenizer")
    network = SplitTransformer
    measured = MEASURED

    def __init__(self, pipeline: QwenImage21Pipeline) -> None:
        self.pipeline = pipeline
        self._fast = FastVae(pipeline.vae).eval() if pipeline.vae.config.is_residual else None

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
        """See `PipelineModel.load`; with or without torchvision installed."""
        pipeline = load_pipeline(
            QwenImage21Pipeline,
            QwenImage21Transformer2DModel,
            folder,
            device,
            dtype,
            lambda: {"processor": load_processor(folder / "processor")},
            transformer_dtype=transformer_dtype,
            transformer=transformer,
            text_encoder=text_encoder,
            empty=empty,
        )
        return cls(pipeline)

    @classmethod
    def export(
        cls, teacher: Path, student_state: Mapping[str, Tensor], how: Sampling, out: Path, finish: Finish
    ) -> None:
        sigmas = sample_sigmas(how.grid())
        export.export(teacher, student_state, sigmas, out, finish, stochastic=how.stochastic)

    @classmethod
    def drawing_code(
        cls, folder: Path, how: Sampling, resolution: int, tasks: Sequence[str], *, stored: bool
    ) -> list[str]:
        sigmas = ", ".join(f"{time:.6g}" for time in how.grid()[:-1].tolist())
        return [
            f'pipeline("PROMPT", output_resolution={resolution}{"" if stored else f", sigmas=[{sigmas}]"}).images[0]'
        ]

    def export_pretrained(self, source: Path, out: Path) -> None:
        export.export_pretrained(source, self.pipeline.transformer, self.pipeline.text_encoder, out)

    @property
    def embedding_dim(self) -> int:
        return int(self.transformer.config.context_in_dim)

    @property
    def prompt_limit(self) -> int:
        tokenizer, config = self.pipeline.processor.tokenizer, self.pipeline.text_encoder.config.text_config
        return min(PROMPT_LIMIT, int(tokenizer.model_max_length), int(config.max_position_embeddings))

    def check_prompt(self, prompt: str) -> None:
        template_tokens.refuse([prompt], template_tokens.of(self.pipeline.processor.tokenizer))

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
        return schedule.folder_sampling(folder, DEFAULT_SAMPLING, steps, sigmas)

    def default_sampling(self) -> Sampling:
        scheduler, stored = self.pipeline.scheduler, self.pipeline.config.sample_sigmas
        return schedule.sampling(type(scheduler).__name__, scheduler.config, stored, DEFAULT_SAMPLING)

    def trainable_text(self) -> TrainableQwen:
        return TrainableQwen(self.pipeline)
