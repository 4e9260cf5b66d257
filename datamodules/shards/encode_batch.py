"""Raw samples through an encoder in batches: captions of like length, pictures of one size, as many as fit the memory.

Only what is alike goes through the encoder together, and the order of the samples is kept, so a sample's arrays depend
on its neighbours by rounding alone.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.shards.arrays import npy_bytes
from datamodules.shards.encoded import Geometry
from datamodules.shards.raw import RawSample
from workbench.batch import EncodedPrompt, Reference
from workbench.common.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
Key = TypeVar("Key", bound=Hashable)
_TARGET, _SOURCES = "latent.npy", "source_latent.npy"


@dataclass(frozen=True)
class FamilyLimits:
    """What a family takes: sides of images that are multiples of `side_multiple` pixels, and at most `max_sources`
    source images of one edit."""

    side_multiple: int
    max_sources: int = 1


@dataclass(frozen=True)
class Encoder:
    """Text encoder and autoencoder of a pipeline.

    prompts: prompts, each with its images. images: uint8 (B, H, W, 3 or 4) -> latents (B, N, C).
    pixels_per_token: side of the square of pixels behind one latent token. check: raises UserError for a prompt that
    would be misread. prompt_limit: tokens of a prompt beyond which a warning is due; 0 for none.
    """

    prompts: Callable[[list[str], list[list[Image.Image]] | None], Sequence[EncodedPrompt]]
    images: Callable[[Tensor], Tensor]
    pixels_per_token: int
    limits: FamilyLimits
    check: Callable[[str], None] = lambda _: None
    prompt_limit: int = 0


@dataclass(frozen=True)
class EncodedRaw:
    """One sample encoded. length, uncond_length: text positions (uncond: edits only). members: .npy files by name."""

    geometry: Geometry
    length: int
    uncond_length: int | None
    members: dict[str, bytes]


@dataclass(frozen=True)
class _Text:
    """An encoded prompt on the host: its .npy file, text positions, image slots."""

    content: bytes
    length: int
    references: tuple[Reference, ...]


class Batches:
    """Runs items through a function, at most `size` at once; after running out of memory half as many.

    The most of each kind of item is kept, so that what did not fit once is not tried again.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._most: dict[str, int] = {}

    def run(self, kind: str, items: Sequence[Item], function: Callable[[Sequence[Item]], list[Result]]) -> list[Result]:
        """`function` of all items, in order; it takes several and returns as many.

        Raises:
            UserError: a single item needs more memory than there is.
        """
        done: list[Result] = []
        while len(done) < len(items):
            part = items[len(done) : len(done) + self._most.get(kind, self._size)]
            found = _unless_out_of_memory(function, part)
            if found is None:
                self._halve(kind, len(part))
            else:
                done += found
        return done

    def _halve(self, kind: str, count: int) -> None:
        if count == 1:
            raise UserError(
                f"one of {kind} needs more memory than there is: set data.encode_dtype=bfloat16 or a smaller "
                "data.resolution, or free the device of others"
            )
        self._most[kind] = count // 2
        # What the failed batch held is free, but in pieces of its sizes.
        torch.cuda.empty_cache()
        print(f"out of memory with {count} {kind} at once: {count // 2} from here on (data.encode_batch_size)")


def _unless_out_of_memory(
    function: Callable[[Sequence[Item]], list[Result]], part: Sequence[Item]
) -> list[Result] | None:
    """The function's result, or None: outside of `except` nothing holds on to the failed batch any more."""
    try:
        return function(part)
    except torch.OutOfMemoryError:
        return None


def encode_window(encoder: Encoder, batches: Batches, url: str, window: Sequence[RawSample]) -> list[EncodedRaw]:
    """The samples of `window`, fitted to their sizes, encoded, in order.

    Raises:
        UserError: naming the sample, for values that float16 does not hold and for an encoder whose parts disagree.
    """
    where = [f"sample {raw.key} of {url}" for raw in window]
    prompts = _prompts(encoder, batches, window, where)
    latents = _latents(encoder, batches, window, where)
    results = []
    for i, raw in enumerate(window):
        prompt, uncond = prompts[i]
        height, width = (raw.meta[side] // encoder.pixels_per_token for side in ("height", "width"))
        geometry = Geometry(raw.task, height, width, prompt.references, uncond.references if uncond else ())
        members = {"prompt.npy": prompt.content}
        if uncond is not None:
            members["uncond.npy"] = uncond.content
        members |= {name: npy_bytes(values, f"{where[i]}, {name}") for name, values in sorted(latents[i].items())}
        _check_slots(geometry, latents[i], where[i])
        results.append(EncodedRaw(geometry, prompt.length, uncond.length if uncond else None, members))
    return results


def _check_slots(geometry: Geometry, latents: dict[str, np.ndarray], where: str) -> None:
    slots = sum(reference.num_tokens for reference in geometry.references)
    if _SOURCES in latents and slots != len(latents[_SOURCES]):
        raise UserError(
            f"{where}: the text encoder sees {slots} tokens of source images and the VAE {len(latents[_SOURCES])}; "
            "resize source images to what the pipeline's processor keeps"
        )


def _prompts(
    encoder: Encoder, batches: Batches, window: Sequence[RawSample], where: Sequence[str]
) -> list[tuple[_Text, _Text | None]]:
    """Prompt and, for edits, empty prompt of every sample. Captions need not be of pictures of one size."""
    found: dict[int, tuple[_Text, _Text | None]] = {}

    def embed(texts: Sequence[str], chosen: Sequence[int], name: str) -> list[_Text]:
        images = [list(window[i].sources) for i in chosen]
        encoded = encoder.prompts(list(texts), images if any(images) else None)
        arrays = [(i, array(each.embeddings), each.references) for i, each in zip(chosen, encoded, strict=True)]
        return [
            _Text(npy_bytes(values, f"{where[i]}, {name}"), len(values), tuple(references))
            for i, values, references in arrays
        ]

    def captions(chosen: Sequence[int]) -> list[tuple[_Text, _Text | None]]:
        return [(text, None) for text in embed([window[i].text for i in chosen], chosen, "prompt.npy")]

    def instructions(chosen: Sequence[int]) -> list[tuple[_Text, _Text | None]]:
        texts = embed([window[i].text for i in chosen], chosen, "prompt.npy")
        return list(zip(texts, embed([""] * len(chosen), chosen, "uncond.npy"), strict=True))

    for sizes, alike in _grouped(enumerate(window), lambda item: tuple(image.size for image in item[1].sources)):
        # Of like length: a batch is padded to its longest.
        indices = sorted((i for i, _ in alike), key=lambda i: (len(window[i].text), i))
        pictures = " and ".join(f"{width} x {height}" for width, height in sizes)
        kind = f"instructions with pictures of {pictures}" if sizes else "captions"
        found.update(zip(indices, batches.run(kind, indices, instructions if sizes else captions), strict=True))
    return [found[i] for i in range(len(window))]


def _latents(
    encoder: Encoder, batches: Batches, window: Sequence[RawSample], where: Sequence[str]
) -> list[dict[str, np.ndarray]]:
    """Of every sample: name of a member -> latents (tokens, C) of its target, or of all its sources in order."""
    pictures = [
        (i, name, image)
        for i, raw in enumerate(window)
        for name, images in ((_TARGET, (raw.target,)), (_SOURCES, raw.sources))
        for image in images
        if image is not None
    ]
    encoded: dict[int, np.ndarray] = {}
    for (size, _), alike in _grouped(enumerate(pictures), lambda item: (item[1][2].size, item[1][2].mode)):
        indices = [index for index, _ in alike]

        def run(part: Sequence[int]) -> list[np.ndarray]:
            return _encode_pictures(encoder, [pictures[j][2] for j in part], where[pictures[part[0]][0]])

        found = batches.run(f"pictures of {size[0]} x {size[1]}", indices, run)
        encoded.update(zip(indices, found, strict=True))
    results: list[dict[str, np.ndarray]] = [{} for _ in window]
    for (i, name), of_one in _grouped(range(len(pictures)), lambda j: pictures[j][:2]):
        results[i][name] = np.concatenate([encoded[j] for j in of_one])
    return results


def _encode_pictures(encoder: Encoder, images: Sequence[Image.Image], where: str) -> list[np.ndarray]:
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    latents = array(encoder.images(pixels))
    num_tokens = pixels.shape[1] * pixels.shape[2] // encoder.pixels_per_token**2
    if latents.shape[1] != num_tokens:
        raise UserError(
            f"{where}: the VAE makes {latents.shape[1]} tokens of an image, not {num_tokens}; use another VAE"
        )
    return list(latents)


def _grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> list[tuple[Key, list[Item]]]:
    """Items that share a key, in order of first appearance."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.items())


def array(values: Tensor) -> np.ndarray:
    """As float32 on the host."""
    return values.detach().float().cpu().numpy()
