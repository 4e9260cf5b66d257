"""Prompts with their images, encoded as by the stock pipelines.

Without images they are encoded by `QwenImagePipeline`, with images as by `QwenImageEditPlusPipeline`, many at once.
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
def encode_edits(
    pipeline: QwenImageEditPlusPipeline, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]]
) -> list[EncodedPrompt]:
    """Each prompt with its images, as the pipeline encodes it in a call of its own; an empty prompt is one space.

    images: as the autoencoder sees them; the text encoder reads each at 384 x 384 pixels or as many at its aspect.

    Raises:
        UserError: more images than the model is trained for.
    """
    for group in images:
        if len(group) > MOST_IMAGES:
            raise UserError(f"Qwen-Image-Edit takes at most {MOST_IMAGES} reference images, not {len(group)}")
    refuse(pipeline.tokenizer, prompts)
    read = [[_as_read(pipeline, image) for image in group] for group in images]
    texts = [_text(pipeline, text or " ", len(group)) for text, group in zip(prompts, images, strict=True)]
    flat = [image for group in read for image in group]
    inputs = pipeline.processor(text=texts, images=flat, padding=True, return_tensors="pt")
    inputs = inputs.to(pipeline.text_encoder.device)
    names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw")
    encoder = pipeline.text_encoder(**{name: inputs[name] for name in names}, output_hidden_states=True)
    dropped = pipeline.prompt_template_encode_start_idx
    valid = inputs["attention_mask"].bool()
    return [
        EncodedPrompt(hidden[mask][dropped:], _references(pipeline, ids[mask][dropped:].tolist(), of_one, seen))
        for hidden, mask, ids, of_one, seen in zip(
            encoder.hidden_states[-1], valid, inputs["input_ids"], images, read, strict=True
        )
    ]


def _text(pipeline: QwenImageEditPlusPipeline, prompt: str, num_images: int) -> str:
    pictures = "".join(_PICTURE.format(index + 1) for index in range(num_images))
    return pipeline.prompt_template_encode.format(pictures + prompt)


def _as_read(pipeline: QwenImageEditPlusPipeline, image: Image.Image) -> Image.Image:
    """The image as the text encoder reads it."""
    width, height = stock.calculate_dimensions(stock.CONDITION_IMAGE_SIZE, image.width / image.height)
    return pipeline.image_processor.resize(on_white(image), height, width)


def _references(
    pipeline: QwenImageEditPlusPipeline, ids: Sequence[int], images: Sequence[Image.Image], read: Sequence[Image.Image]
) -> tuple[Reference, ...]:
    """Slots of the images in the embeddings of the tokens `ids`, and their sizes in latent tokens."""
    processor = pipeline.processor
    references: list[Reference] = []
    for image, seen in zip(images, read, strict=True):
        slot = ids.index(processor.image_token_id, references[-1].end if references else 0)
        patches = processor.image_processor.get_number_of_image_patches(seen.height, seen.width, {})
        num_slots = patches // processor.image_processor.merge_size**2
        height, width = image.height // PIXELS_PER_TOKEN, image.width // PIXELS_PER_TOKEN
        references.append(Reference(slot, height, width, num_slots))
    return tuple(references)
