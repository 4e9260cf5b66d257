"""Pipeline folders of Qwen-Image and Qwen-Image-Edit: one network, two pipelines.

A folder of the editing pipeline generates as well: text alone is encoded as the generating pipeline encodes it, which
can be made from the same components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import QwenImageEditPlusPipeline, QwenImagePipeline, QwenImageTransformer2DModel
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from workbench.backbones import schedule
from workbench.backbones.folders import STORED_SIGMAS, Finish, read_index
from workbench.backbones.processor import load_processor
from workbench.backbones.qwen_image import export, prompts
from workbench.backbones.qwen_image.images import decode_latents, encode_images
from workbench.backbones.qwen_image.measured import MEASURED
from workbench.backbones.qwen_image.text_encoder import prepare
from workbench.backbones.qwen_image.transformer import DualTransformer
from workbench.backbones.stock_folder import StockModel, load_pipeline
from workbench.batch import EncodedPrompt
from workbench.common.errors import UserError
from workbench.method.rollout import Sampling

DEFAULT_SAMPLING = Sampling(50, cfg_scale=4.0, cfg_rescale=1.0)
"""Of both pipelines' calls, given a negative prompt."""
PROMPT_LIMIT = 512
"""Text tokens that a call of `QwenImagePipeline` reads unless it is told to read more, up to 1,024."""


class QwenImageModel(StockModel):
    """A loaded `QwenImagePipeline`, or `QwenImageEditPlusPipeline` and the generating one over its components.

    edits: the editing pipeline, where the folder is one.
    """

    class_names = (QwenImagePipeline.__name__, QwenImageEditPlusPipeline.__name__)
    pixels_per_token = prompts.PIXELS_PER_TOKEN
    side_multiple = 32
    max_sources = prompts.MOST_IMAGES
    encoder_parts = ("text_encoder", "vae", "tokenizer", "processor")
    network = DualTransformer
    measured = MEASURED

    def __init__(self, pipeline: QwenImagePipeline, edits: QwenImageEditPlusPipeline | None, folder: Path) -> None:
        self.pipeline, self.edits, self._folder = pipeline, edits, folder

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
        edits = read_index(folder)["_class_name"] == QwenImageEditPlusPipeline.__name__
        pipeline = load_pipeline(
            QwenImageEditPlusPipeline if edits else QwenImagePipeline,
            QwenImageTransformer2DModel,
            folder,
            device,
            dtype,
            partial(_made, folder, edits),
            transformer_dtype=transformer_dtype,
            transformer=transformer,
            text_encoder=text_encoder,
            empty=empty,
        )
        if text_encoder:
            prepare(pipeline.text_encoder)
        if not edits:
            return cls(pipeline, None, folder)
        shared = {name: part for name, part in pipeline.components.items() if name != "processor"}
        return cls(QwenImagePipeline(**shared), pipeline, folder)

    @classmethod
    def export(
        cls, teacher: Path, student_state: Mapping[str, Tensor], how: Sampling, out: Path, finish: Finish
    ) -> None:
        export.export(teacher, student_state, how, out, finish)

    @classmethod
    def drawing_code(
        cls, folder: Path, how: Sampling, resolution: int, tasks: Sequence[str], *, stored: bool
    ) -> list[str]:
        sigmas = ", ".join(f"{time:.6g}" for time in how.grid()[:-1].tolist())
        steps = f"num_inference_steps={how.steps}" if stored and not how.times else f"sigmas=[{sigmas}]"
        sides = f"height={resolution}, width={resolution}"
        if read_index(folder)["_class_name"] == QwenImagePipeline.__name__:
            return [f'pipeline("PROMPT", {sides}, {steps}, true_cfg_scale=1.0).images[0]']
        edit = [
            "# diffusers up to 0.42 under transformers 5 misplaces the image in the prompt: its issue 14194",
            f'pipeline([IMAGE], "INSTRUCTION", {steps}, true_cfg_scale=1.0).images[0]',
        ]
        generate = [
            "# Without an image, over the same weights:",
            "from diffusers import QwenImagePipeline",
            "generate = QwenImagePipeline.from_pipe(pipeline, torch_dtype=pipeline.dtype)",
            f'generate("PROMPT", {sides}, {steps}, true_cfg_scale=1.0).images[0]',
        ]
        return [*(edit if "edit" in tasks else []), *(generate if "t2i" in tasks else [])]

    @property
    def embedding_dim(self) -> int:
        return int(self.transformer.config.joint_attention_dim)

    @property
    def prompt_limit(self) -> int:
        return min(PROMPT_LIMIT, int(self.pipeline.tokenizer.model_max_length))

    def check_prompt(self, prompt: str) -> None:
        prompts.refuse(self.pipeline.tokenizer, [prompt])

    def move_autoencoder(self, device: torch.device) -> None:
        self.pipeline.vae.to(device)

    def encode_prompts(
        self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]] | None = None
    ) -> list[EncodedPrompt]:
        groups = images if images is not None else [()] * len(texts)
        if not any(groups):
            return prompts.encode_texts(self.pipeline, texts)
        if self.edits is None:
            raise UserError(
                f"{self._folder} is a {QwenImagePipeline.__name__}, which takes no images: name a folder of "
                f"{QwenImageEditPlusPipeline.__name__}, which generates as well"
            )
        if all(groups):
            return prompts.encode_edits(self.edits, texts, groups)
        return [self.encode_prompts([text], [group])[0] for text, group in zip(texts, groups, strict=True)]

    def encode_images(self, images: Tensor, *, exactly: bool = False) -> Tensor:
        return encode_images(self.pipeline.vae, images)

    def decode_latents(self, latents: Tensor, height: int, width: int) -> Tensor:
        return decode_latents(self.pipeline.vae, latents, height, width)

    @classmethod
    def sampling_of(cls, folder: Path, steps: int | None = None, sigmas: Sequence[float] = ()) -> Sampling:
        return schedule.folder_sampling(folder, DEFAULT_SAMPLING, steps, sigmas, STORED_SIGMAS)

    def default_sampling(self) -> Sampling:
        return self.sampling_of(self._folder)


def _made(folder: Path, edits: bool) -> dict[str, Any]:
    """Components that diffusers would load otherwise. Python files in the folder are never run, and nobody is asked
    whether they may be."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    if not edits:
        return {"tokenizer": tokenizer}
    processor = load_processor(folder / "processor", Qwen2VLProcessor, Qwen2VLImageProcessorPil)
    return {"tokenizer": tokenizer, "processor": processor}
