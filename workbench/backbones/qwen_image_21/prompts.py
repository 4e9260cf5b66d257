"""Prompts with their images, in the templates of `QwenImage21Pipeline`, as token ids and as embeddings.

Equal to the stock pipeline sample by sample (`tests/backbones/qwen_image_21/test_model.py`), which takes one set of
images for all prompts of a call; here every sample of a batch may have different ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from diffusers import QwenImage21Pipeline
from PIL import Image
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from workbench.backbones import template_tokens
from workbench.backbones.qwen_image_21 import text_encoder
from workbench.backbones.qwen_image_21.sequence import LATENT_TOKENS_PER_SLOT, SIDE_MULTIPLE
from workbench.batch import EncodedPrompt, Reference
from workbench.common.images import on_white

IMAGE_TOKEN = "<|image_pad|>"


class PromptTokenizer:
    """Token ids of prompts with their system message; at most one image a prompt."""

    def __init__(self, pipeline: QwenImage21Pipeline) -> None:
        self._tokenizer = pipeline.processor.tokenizer
        self._templates = (
            pipeline.prompt_template_t2i,
            pipeline.prompt_template_ti2i,
        )
        self._template_tokens = template_tokens.of(self._tokenizer)
        self._image_token_id = int(self._tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
        self.num_system_tokens = int(pipeline._drop_idx)

    def __call__(self, text: str, num_slots: int) -> list[int]:
        """Ids of `text` with an image of `num_slots` slots (0: text-to-image); an empty text is a single space."""
        template_tokens.refuse([text], self._template_tokens)
        template = self._templates[num_slots > 0].replace(IMAGE_TOKEN, IMAGE_TOKEN * num_slots)
        ids: list[int] = self._tokenizer(template.format(text or " "))["input_ids"]
        return ids

    def first_slot(self, ids: list[int]) -> int:
        """Position of the first image slot, system message included."""
        return ids.index(self._image_token_id)


def tokenize(
    pipeline: QwenImage21Pipeline, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]] | None = None
) -> dict[str, Tensor]:
    """Inputs of the text encoder for the pipeline's templates, left-padded, on the text encoder's device.

    images: of each prompt, already at the size that the autoencoder sees; none, or an empty list, is text alone.
    """
    template_tokens.refuse(prompts, template_tokens.of(pipeline.processor.tokenizer))
    per_prompt = images if images is not None else [()] * len(prompts)
    if len(per_prompt) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts with {len(per_prompt)} lists of images")
    flat = [on_white(image) for group in per_prompt for image in group]
    texts = [
        _template(pipeline, len(group)).format(text or " ") for text, group in zip(prompts, per_prompt, strict=True)
    ]
    inputs = pipeline.processor(text=texts, images=flat or None, padding=True, padding_side="left", return_tensors="pt")
    names = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw")
    device = pipeline.text_encoder.device
    return {name: inputs[name].to(device) for name in names if name in inputs}


def embed(encoder: Qwen3VLForConditionalGeneration, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Output of the last decoder layer *before* the final norm, with gradient: (B, L, D), and its (B, L) bool mask.

    Positions are those of `inputs`: left padding and the system message included.
    """
    norm = encoder.model.language_model.norm
    # transformers 4 and 5 disagree on which side of the norm their last hidden state lies; without the norm they agree.
    handle = norm.register_forward_hook(lambda module, args, output: args[0])
    try:
        hidden = encoder.model(**inputs, use_cache=False).last_hidden_state
    finally:
        handle.remove()
    return hidden, inputs["attention_mask"].bool()


@torch.no_grad()
def encode_prompts(
    pipeline: QwenImage21Pipeline, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]] | None = None
) -> list[EncodedPrompt]:
    """Each prompt with its images, as `pipeline.encode_prompt` encodes it alone; an empty prompt is one space."""
    if _is_uniform(pipeline, images):
        return _encode_uniform(pipeline, prompts, images)
    inputs = tokenize(pipeline, prompts, images)
    hidden, mask = embed(pipeline.text_encoder, inputs)
    return trim(pipeline, inputs, hidden, mask)


def _is_uniform(pipeline: QwenImage21Pipeline, images: Sequence[Sequence[Image.Image]] | None) -> bool:
    """Whether no sample has an image, or each has one and all have one size that the processor would not change."""
    if images is None or not any(images):
        return True
    sizes = {tuple(image.size for image in group) for group in images}
    if len(sizes) != 1 or len(images[0]) != 1:
        return False
    processor, (width, height) = pipeline.processor.image_processor, images[0][0].size
    side = processor.patch_size * processor.merge_size
    pixels = width * height
    return (
        width % side == 0
        and height % side == 0
        and processor.size["shortest_edge"] <= pixels <= processor.size["longest_edge"]
        and {*processor.image_mean, *processor.image_std} == {0.5}
        and processor.temporal_patch_size == text_encoder.TEMPORAL_PATCH
    )


def _encode_uniform(
    pipeline: QwenImage21Pipeline, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]] | None
) -> list[EncodedPrompt]:
    """The same without a loop over samples on the device: 2.2 times as fast on two CPU cores (32 edits of 128 x 128 a
    call, the tiny model)."""
    tokenizer = PromptTokenizer(pipeline)
    device = pipeline.text_encoder.device
    side = SIDE_MULTIPLE
    pixels, slots = None, None
    references: tuple[Reference, ...] = ()
    if images is not None and any(images):
        pixels = torch.from_numpy(np.stack([np.asarray(on_white(group[0])) for group in images])).to(device)
        height, width = pixels.shape[1] // side, pixels.shape[2] // side
        start = tokenizer.first_slot(tokenizer("", height * width))
        slots = text_encoder.ImageSlots(start, height, width)
        references = (Reference(start - tokenizer.num_system_tokens, 2 * height, 2 * width, height * width),)
    ids = [tokenizer(prompt, slots.height * slots.width if slots else 0) for prompt in prompts]
    padded = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.int64)
    for row, of_prompt in zip(padded, ids, strict=True):
        row[: len(of_prompt)] = torch.tensor(of_prompt)
    hidden = text_encoder.embed(pipeline.text_encoder, padded.to(device), pixels, slots)
    return [
        EncodedPrompt(row[tokenizer.num_system_tokens : len(of_prompt)], references)
        for row, of_prompt in zip(hidden, ids, strict=True)
    ]


def trim(pipeline: QwenImage21Pipeline, inputs: dict[str, Tensor], hidden: Tensor, mask: Tensor) -> list[EncodedPrompt]:
    """Padding and system message dropped, image slots found. Keeps gradients."""
    grids = iter(inputs["image_grid_thw"].tolist() if "image_grid_thw" in inputs else [])
    encoded = []
    for row, ids, valid in zip(hidden, inputs["input_ids"], mask, strict=True):
        is_slot = (ids[valid] == pipeline._img_token_id)[pipeline._drop_idx :].tolist()
        references, position = [], 0
        while position < len(is_slot):
            if not is_slot[position]:
                position += 1
                continue
            _, height, width = next(grids)
            references.append(Reference(position, height, width, height * width // LATENT_TOKENS_PER_SLOT))
            position = references[-1].end
        encoded.append(EncodedPrompt(row[valid][pipeline._drop_idx :], tuple(references)))
    return encoded


def _template(pipeline: QwenImage21Pipeline, num_images: int) -> str:
    if num_images == 0:
        return str(pipeline.prompt_template_t2i)
    slot = "<image{}><|vision_start|><|image_pad|><|vision_end|>"
    slots = " ".join(slot.format(index + 1) for index in range(num_images))
    return str(pipeline.prompt_template_ti2i).replace(slot.format(1), slots)
