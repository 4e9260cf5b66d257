"""Prompts with their images, encoded by the stock pipelines themselves.

Without images they are encoded as by `QwenImagePipeline`, with images as by `QwenImageEditPlusPipeline`, which takes
one sample a call.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import QwenImageEditPlusPipeline, QwenImagePipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as stock
from PIL import Image
from transformers import PreTrainedTokenizerBase

from workbench.backbones import template_tokens
from workbench.backbones.processor import TOKENS
from workbench.batch import EncodedPrompt, Reference
from workbench.common.errors import UserError
from workbench.common.images import on_white

PIXELS_PER_TOKEN = 16
MOST_IMAGES = 3
"""References that Qwen-Image-Edit is trained for."""
_PICTURE = f"Picture {{}}: {TOKENS['vision_start']}{TOKENS['image']}{TOKENS['vision_end']}"


def refuse(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> None:
    """Raise UserError for a prompt with a token of the templates."""
    template_tokens.refuse(prompts, template_tokens.of(tokenizer))


@torch.no_grad()
def encode_texts(pipeline: QwenImagePipeline, prompts: Sequence[str]) -> list[EncodedPrompt]:
    """Each prompt, as the pipeline encodes it alone; an empty prompt is one space."""
    refuse(pipeline.tokenizer, prompts)
    embeddings, mask = pipeline.encode_prompt([text or " " for text in prompts], pipeline.text_encoder.device)
    return [EncodedPrompt(row if mask is None else row[mask[i].bool()], ()) for i, row in enumerate(embeddings)]


@torch.no_grad()
def encode_edit(pipeline: QwenImageEditPlusPipeline, prompt: str, images: Sequence[Image.Image]) -> EncodedPrompt:
    """A prompt with its images, as the pipeline encodes them; an empty prompt is one space.

    images: as the autoencoder sees them; the text encoder reads each at 384 x 384 pixels or as many at its aspect.

    Raises:
        UserError: more images than the model is trained for.
    """
    if len(images) > MOST_IMAGES:
        raise UserError(f"Qwen-Image-Edit takes at most {MOST_IMAGES} reference images, not {len(images)}")
    refuse(pipeline.tokenizer, [prompt])
    text, read = prompt or " ", [_as_read(pipeline, image) for image in images]
    embeddings, _ = pipeline.encode_prompt(text, read, pipeline.text_encoder.device)
    return EncodedPrompt(embeddings[0], _references(pipeline, text, images, read))


def _as_read(pipeline: QwenImageEditPlusPipeline, image: Image.Image) -> Image.Image:
    """The image as the text encoder reads it."""
    width, height = stock.calculate_dimensions(stock.CONDITION_IMAGE_SIZE, image.width / image.height)
    return pipeline.image_processor.resize(on_white(image), height, width)


def _references(
    pipeline: QwenImageEditPlusPipeline, text: str, images: Sequence[Image.Image], read: Sequence[Image.Image]
) -> tuple[Reference, ...]:
    """Slots of the images in the embeddings, and their sizes in latent tokens."""
    processor = pipeline.processor
    pictures = "".join(_PICTURE.format(index + 1) for index in range(len(images)))
    ids = processor.tokenizer(pipeline.prompt_template_encode.format(pictures + text))["input_ids"]
    position = -pipeline.prompt_template_encode_start_idx
    references = []
    remaining = zip(images, read, strict=True)
    for token in ids:
        if token != processor.image_token_id:
            position += 1
            continue
        image, seen = next(remaining)
        patches = processor.image_processor.get_number_of_image_patches(seen.height, seen.width, {})
        slots = patches // processor.image_processor.merge_size**2
        height, width = image.height // PIXELS_PER_TOKEN, image.width // PIXELS_PER_TOKEN
        references.append(Reference(position, height, width, slots))
        position += slots
    return tuple(references)
