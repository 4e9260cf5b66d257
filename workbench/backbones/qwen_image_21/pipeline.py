"""Pipeline folders of the Qwen-Image-2.1 family: load one, encode prompts and images, decode latents.

Equal to the stock `QwenImage21Pipeline` sample by sample (`tests/backbones/qwen_image_21/test_pipeline.py`),
which shares one set of images
among all prompts of a call; here every sample of a batch may bring its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import QwenImage21Pipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration
from transformers.utils import logging as transformers_logging

from workbench.backbones.qwen_image_21 import text_encoder
from workbench.backbones.qwen_image_21.processor import load_processor
from workbench.backbones.qwen_image_21.prompts import PromptTokenizer
from workbench.backbones.qwen_image_21.sequence import LATENT_TOKENS_PER_SLOT
from workbench.backbones.qwen_image_21.vae import FastVae
from workbench.batch import Condition, Layout, Reference
from workbench.common.errors import UserError

PIPELINE_CLASS = "QwenImage21Pipeline"
PIXELS_PER_LATENT = 16
INDEX_FILE = "model_index.json"
SHIPPED = {"tiny": Path(__file__).parents[2] / "assets" / "tiny"}
_WEIGHTED = ("transformer", "vae", "text_encoder")


@dataclass(frozen=True)
class EncodedPrompt:
    """One prompt, its images read along.

    embeddings: (L, D), system message dropped, image slots included. references: where the images' slots lie in it.
    """

    embeddings: Tensor
    references: tuple[Reference, ...]


def resolve(folder: str) -> Path:
    """Path of the pipeline folder that `folder` names; `tiny` is the one that ships.

    Raises:
        UserError: there is none, it is of another family, or a component is missing.
    """
    path = SHIPPED.get(folder, Path(folder))
    if not (path / INDEX_FILE).is_file():
        if (path / "student" / INDEX_FILE).is_file():
            raise UserError(f"{path} is a run folder, not a pipeline folder: name {path / 'student'}")
        raise UserError(f"no pipeline folder at {path}: it has no {INDEX_FILE}")
    try:
        index = json.loads((path / INDEX_FILE).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path / INDEX_FILE} is not valid JSON: {error}") from error
    found = index.get("_class_name") if isinstance(index, dict) else None
    if found != PIPELINE_CLASS:
        raise UserError(f"{path} is a {found}, not a {PIPELINE_CLASS}: only the Qwen-Image-2.1 family can be used here")
    for name in _WEIGHTED:
        if not any((path / name).glob("*.safetensors")):
            raise UserError(f"{path / name} holds no .safetensors weights: copy the pipeline folder again")
    for name in ("scheduler/scheduler_config.json", *(f"{part}/config.json" for part in _WEIGHTED)):
        if not (path / name).is_file():
            raise UserError(f"{path} lacks {name}: copy the pipeline folder again")
    return path


def load(
    folder: str,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    transformer_dtype: torch.dtype | None = None,
    transformer: bool = True,
    text_encoder: bool = True,
) -> QwenImage21Pipeline:
    """The pipeline of a folder, in evaluation mode, with or without torchvision installed.

    transformer_dtype: of the transformer where it differs. transformer, text_encoder: False leaves it on the disk, for
    encoding alone and for training on encoded data.

    Raises:
        UserError: see `resolve`; or the files do not fit the classes.
    """
    path = resolve(folder)
    absent = {
        name: None for name, wanted in (("transformer", transformer), ("text_encoder", text_encoder)) if not wanted
    }
    processor = load_processor(path / "processor")
    try:
        with _no_progress_bars():
            pipeline = QwenImage21Pipeline.from_pretrained(
                path,
                processor=processor,
                dtype={"default": dtype, "transformer": transformer_dtype or dtype},
                use_safetensors=True,
                local_files_only=True,
                **absent,
            )
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"cannot load the pipeline folder {path}: {str(error).strip().splitlines()[0]}") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def tokenize(
    pipeline: QwenImage21Pipeline, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]] | None = None
) -> dict[str, Tensor]:
    """Inputs of the text encoder for the pipeline's templates, left-padded, on the text encoder's device.

    images: of each prompt, already at the size that the autoencoder sees; none, or an empty list, is text alone.
    """
    per_prompt = images if images is not None else [()] * len(prompts)
    if len(per_prompt) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts with {len(per_prompt)} lists of images")
    flat = [_on_white(image) for group in per_prompt for image in group]
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
    """Each prompt with its own images, as `pipeline.encode_prompt` gives it alone; an empty prompt is one space."""
    if _is_uniform(pipeline, images):
        return _encode_uniform(pipeline, prompts, images)
    inputs = tokenize(pipeline, prompts, images)
    hidden, mask = embed(pipeline.text_encoder, inputs)
    return trim(pipeline, inputs, hidden, mask)


def _is_uniform(pipeline: QwenImage21Pipeline, images: Sequence[Sequence[Image.Image]] | None) -> bool:
    """Whether no sample has an image, or each has one, all of one size that the processor would leave as it is."""
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
    """As the general way, without a loop over samples on the device."""
    tokenizer = PromptTokenizer(pipeline)
    device = pipeline.text_encoder.device
    side = PIXELS_PER_LATENT * 2
    pixels, slots = None, None
    references: tuple[Reference, ...] = ()
    if images is not None and any(images):
        pixels = torch.from_numpy(np.stack([np.asarray(_on_white(group[0])) for group in images])).to(device)
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


@torch.no_grad()
def encode_images(pipeline: QwenImage21Pipeline, images: Tensor, fast: FastVae | None = None) -> Tensor:
    """uint8 (B, H, W, 3 or 4) -> packed, normalised posterior modes (B, N, C), as the pipeline encodes references.

    fast: the pipeline's autoencoder with fewer passes over memory, `fast_vae`.
    """
    vae = pipeline.vae
    if images.shape[-1] == 3:
        images = torch.cat([images, images.new_full((*images.shape[:-1], 1), 255)], dim=-1)
    pixels = (images.to(vae.device).permute(0, 3, 1, 2).float() / 255 * 2 - 1).to(vae.dtype)
    if fast is None:
        latents = vae.encode(pixels.unsqueeze(2)).latent_dist.mode()
    else:
        latents = fast.encode(pixels.contiguous(memory_format=torch.channels_last))[0].float().unsqueeze(2)
    mean, std = _statistics(pipeline, latents)
    return ((latents - mean) / std).flatten(2).transpose(1, 2)


@torch.no_grad()
def decode_latents(
    pipeline: QwenImage21Pipeline, latents: Tensor, height: int, width: int, fast: FastVae | None = None
) -> Tensor:
    """Packed latents (B, N, C) of `height` x `width` latent tokens -> uint8 (B, H, W, 3); alpha is dropped.

    fast: the pipeline's autoencoder with fewer passes over memory, `fast_vae`.
    """
    vae = pipeline.vae
    grid = latents.to(vae.device, vae.dtype).transpose(1, 2).unflatten(2, (1, height, width))
    mean, std = _statistics(pipeline, grid)
    grid = grid * std + mean
    if fast is None:
        pixels = vae.decode(grid, return_dict=False)[0][:, :3, 0].float()
    else:
        pixels = fast.decode(grid[:, :, 0].contiguous(memory_format=torch.channels_last))[:, :3].float()
    return ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def fast_vae(pipeline: QwenImage21Pipeline) -> FastVae | None:
    """The pipeline's autoencoder for images alone, where it is of the kind that can be written that way."""
    return FastVae(pipeline.vae).eval() if pipeline.vae.config.is_residual else None


def conditions(
    encoded: Sequence[EncodedPrompt], references: Tensor | None, height: int, width: int, text_tokens: int | None = None
) -> Condition:
    """One batch of samples that share their references' places, right-padded to `text_tokens` or to the longest.

    references: (B, R, C) packed latents. height, width: of the target, in latent tokens.

    Raises:
        ValueError: the samples differ in layout, or one is longer than `text_tokens`.
    """
    layouts = {item.references for item in encoded}
    if len(layouts) != 1:
        raise ValueError(f"samples of one batch must share their references, got {sorted(layouts)}")
    lengths = [len(item.embeddings) for item in encoded]
    padded = max(lengths) if text_tokens is None else text_tokens
    if max(lengths) > padded:
        raise ValueError(f"a prompt of {max(lengths)} tokens does not fit into {padded}")
    first = encoded[0].embeddings
    prompt = first.new_zeros(len(encoded), padded, first.shape[1])
    for row, item in zip(prompt, encoded, strict=True):
        row[: len(item.embeddings)] = item.embeddings
    layout = Layout(padded, height, width, encoded[0].references, padded=min(lengths) < padded)
    return Condition(prompt, torch.tensor(lengths, device=first.device), layout, references)


def _template(pipeline: QwenImage21Pipeline, num_images: int) -> str:
    if num_images == 0:
        return str(pipeline.prompt_template_t2i)
    slot = "<image{}><|vision_start|><|image_pad|><|vision_end|>"
    slots = " ".join(slot.format(index + 1) for index in range(num_images))
    return str(pipeline.prompt_template_ti2i).replace(slot.format(1), slots)


def _on_white(image: Image.Image) -> Image.Image:
    """The text encoder reads no alpha."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def _statistics(pipeline: QwenImage21Pipeline, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latent channels, each (1, C, 1, 1, 1)."""
    config = pipeline.vae.config
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1).to(like) for values in (config.latents_mean, config.latents_std)
    )
    return mean, std


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
