"""One shard, from raw to encoded: samples of one size in batches through an encoder, their members into a tar."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.shards.buckets import bucket_of, fitted
from datamodules.shards.encoded import Geometry, geometry_to_json, npy_bytes
from datamodules.shards.left_out import Tally
from datamodules.shards.raw import RawSample, read_raw
from datamodules.shards.writer import ShardWriter
from workbench.batch import EncodedPrompt
from workbench.common import files
from workbench.common.errors import UserError
from workbench.common.images import IMAGE_SUFFIXES, png_bytes
from workbench.common.outside import read_json
from workbench.recipe.config import Data

_WINDOW_BATCHES = 4
_WINDOW_PIXELS = 1 << 28
"""Samples are read this many batches or pixels ahead, so that those of one size find each other."""
LARGEST_SIDE = 1 << 13
LONG = "have captions of more than {} tokens: all prompts of their size are padded to the longest"
_RAW_IMAGES = (*IMAGE_SUFFIXES, *(f"source.{suffix}" for suffix in IMAGE_SUFFIXES))


@dataclass(frozen=True)
class Encoder:
    """Text encoder and autoencoder of a pipeline.

    prompts: prompts, each with its images. images: uint8 (B, H, W, 3 or 4) -> latents (B, N, C).
    pixels_per_token: side of the square of pixels behind one latent token. side_multiple: sides of images are multiples
    of so many pixels. check: raises UserError for a prompt that would be misread. prompt_limit: tokens of a prompt
    beyond which a warning is due; 0 for none.
    """

    prompts: Callable[[list[str], list[list[Image.Image]] | None], Sequence[EncodedPrompt]]
    images: Callable[[Tensor], Tensor]
    pixels_per_token: int
    side_multiple: int
    check: Callable[[str], None] = lambda _: None
    prompt_limit: int = 0


def record_path(path: Path) -> Path:
    """Where the record of an encoded shard lies until the index holds it."""
    return path.with_name(f".{path.name}.json")


def finished(path: Path) -> dict[str, Any] | None:
    """The record of a shard that an interrupted run finished, or None."""
    if not path.is_file() or not record_path(path).is_file():
        return None
    record = read_json(record_path(path), dict, f"delete {path.parent} and encode again")
    return record if record.get("sha256") == files.sha256_of_file(path) else None


def encode_shard(
    data: Data, encoder: Encoder, url: str, path: Path, uncond_length: int, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Encode the raw shard at `url` into `path`, in the order of its samples; returns and keeps its record.

    Args:
        uncond_length: text positions of the empty prompt of a T2I sample.
        advance: called with the number of samples done.

    Raises:
        UserError: a sample that cannot be read or encoded, by its key; with `data.broken=skip` more than
            `data.max_broken` of those whose files are at fault.
    """
    tally = Tally.of(data)
    samples = _fitted(read_raw(url, tally), data, encoder, url, tally)
    entries: list[dict[str, Any]] = []
    with ShardWriter(path) as shard:
        for window in _windows(samples, _WINDOW_BATCHES * data.encode_batch_size):
            for raw, (geometry, arrays) in zip(window, _encode_window(data, encoder, url, window), strict=True):
                where = f"sample {raw.key} of {url}"
                members = {name: npy_bytes(values, f"{where}, {name}") for name, values in arrays.items()}
                kept = ("txt", *_RAW_IMAGES) if data.keep_raw else ("txt",)
                members |= {name: raw.members[name] for name in kept if name in raw.members}
                lengths = {
                    "length": len(arrays["prompt.npy"]),
                    "uncond_length": len(arrays["uncond.npy"]) if "uncond.npy" in arrays else uncond_length,
                }
                text_tokens = lengths["length"] - sum(reference.num_slots for reference in geometry.references)
                if 0 < encoder.prompt_limit < text_tokens:
                    tally.warned[LONG.format(encoder.prompt_limit)] += 1
                entry = {"task": raw.task, "category": raw.category, **lengths}
                plain = geometry_to_json(geometry)
                members["json"] = json.dumps({**entry, **plain}).encode()
                places = {name: shard.add(f"{raw.key}.{name}", content) for name, content in members.items()}
                entries.append({"key": raw.key, **entry, "geometry": plain, "members": places})
            advance(len(window))
    record = {"name": path.name, "bytes": shard.num_bytes, "sha256": shard.sha256, "samples": entries}
    record["left_out"] = tally.record()
    files.write_json(record_path(path), record)
    return record


def _fitted(samples: Iterable[RawSample], data: Data, encoder: Encoder, url: str, tally: Tally) -> Iterator[RawSample]:
    """The samples that can be encoded, images brought to a bucket, whose sides are `height` and `width` of `meta`."""
    for raw in samples:
        ready: RawSample | None = None
        with tally.sample():
            encoder.check(raw.text)
            ready = _in_bucket(raw, data, encoder.side_multiple, f"shard {url}, sample {raw.key}")
        if ready is not None:
            yield ready


def _in_bucket(raw: RawSample, data: Data, multiple: int, where: str) -> RawSample:
    target, source = fitted(raw.target, raw.source, data, multiple, where)
    image = target or source
    width, height = image.size if image else bucket_of(_stated_size(raw.meta, data, where), data, multiple, where)
    members = dict(raw.members)
    for prefix, before, after in (("", raw.target, target), ("source.", raw.source, source)):
        if before is not None and after is not None and before.size != after.size:
            for suffix in IMAGE_SUFFIXES:
                members.pop(prefix + suffix, None)
            members[f"{prefix}png"] = png_bytes(after)
    meta = {**raw.meta, "width": width, "height": height}
    return replace(raw, target=target, source=source, meta=meta, members=members)


def _stated_size(meta: dict[str, Any], data: Data, where: str) -> tuple[int, int]:
    """(width, height) in pixels that a sample without images asks for."""
    width, height = (data.resolution if meta.get(side) is None else meta[side] for side in ("width", "height"))
    if not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in (width, height)):
        raise UserError(f"{where}: height and width {height, width} must be whole numbers up to {LARGEST_SIDE}")
    return width, height


def _windows(samples: Iterable[RawSample], most: int) -> Iterator[list[RawSample]]:
    """Samples in order, `most` at a time, or as many as have `_WINDOW_PIXELS` pixels."""
    window: list[RawSample] = []
    pixels = 0
    for raw in samples:
        window.append(raw)
        pixels += sum(image.width * image.height for image in (raw.target, raw.source) if image is not None)
        if len(window) == most or pixels >= _WINDOW_PIXELS:
            yield window
            window, pixels = [], 0
    if window:
        yield window


def _encode_window(
    data: Data, encoder: Encoder, url: str, window: list[RawSample]
) -> Iterator[tuple[Geometry, dict[str, np.ndarray]]]:
    """Geometry and arrays of each sample, in order; encoded in batches of one task and size."""
    alike: dict[Any, list[int]] = {}
    for i, raw in enumerate(window):
        modes = [image.mode if image is not None else None for image in (raw.target, raw.source)]
        alike.setdefault((raw.task, raw.meta["height"], raw.meta["width"], *modes), []).append(i)
    encoded: dict[int, tuple[Geometry, dict[str, np.ndarray]]] = {}
    for indices in alike.values():
        for start in range(0, len(indices), data.encode_batch_size):
            chosen = indices[start : start + data.encode_batch_size]
            encoded.update(zip(chosen, _encode_batch(encoder, url, [window[i] for i in chosen]), strict=True))
    return (encoded[i] for i in range(len(window)))


def _encode_batch(encoder: Encoder, url: str, batch: list[RawSample]) -> list[tuple[Geometry, dict[str, np.ndarray]]]:
    first = batch[0]
    height, width = (first.meta[side] // encoder.pixels_per_token for side in ("height", "width"))
    sources = [[raw.source] for raw in batch if raw.source is not None] or None
    prompts = encoder.prompts([raw.text for raw in batch], sources)
    unconds = encoder.prompts([""] * len(batch), sources) if sources else None
    where = f"sample {first.key} of {url}"
    targets = _latents(encoder, [raw.target for raw in batch if raw.target is not None], where)
    references = _latents(encoder, [raw.source for raw in batch if raw.source is not None], where)
    results = []
    for i, prompt in enumerate(prompts):
        uncond = unconds[i].references if unconds else ()
        geometry = Geometry(first.task, height, width, tuple(prompt.references), tuple(uncond))
        arrays = {"prompt.npy": array(prompt.embeddings)}
        if unconds:
            arrays["uncond.npy"] = array(unconds[i].embeddings)
        if targets is not None:
            arrays["latent.npy"] = targets[i]
        if references is not None:
            arrays["source_latent.npy"] = references[i]
            slots = sum(reference.num_tokens for reference in geometry.references)
            if slots != len(references[i]):
                raise UserError(
                    f"sample {batch[i].key} of {url}: the text encoder sees {slots} tokens of the source image and the "
                    f"VAE {len(references[i])}; resize source images to what the pipeline's processor keeps"
                )
        results.append((geometry, arrays))
    return results


def _latents(encoder: Encoder, images: list[Image.Image], where: str) -> np.ndarray | None:
    """(B, N, C) float32, or None for no images."""
    if not images:
        return None
    latents = array(encoder.images(torch.from_numpy(np.stack([np.asarray(image) for image in images]))))
    num_tokens = images[0].width * images[0].height // encoder.pixels_per_token**2
    if latents.shape[1] != num_tokens:
        raise UserError(
            f"{where}: the VAE makes {latents.shape[1]} tokens of an image, not {num_tokens}; use another VAE"
        )
    return latents


def array(values: Tensor) -> np.ndarray:
    """As float32 on the host."""
    return values.detach().float().cpu().numpy()
