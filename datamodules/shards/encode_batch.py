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


@dataclass(frozen=True)
class _Picture:
    """One picture of a sample. name: of the member that its latents become."""

    image: Image.Image
    name: str
    where: str


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
        members |= {name: content for name, (content, _) in sorted(latents[i].items())}
        _check_slots(geometry, latents[i], where[i])
        results.append(EncodedRaw(geometry, prompt.length, uncond.length if uncond else None, members))
    return results


def _check_slots(geometry: Geometry, latents: dict[str, tuple[bytes, int]], where: str) -> None:
    slots = sum(reference.num_tokens for reference in geometry.references)
    if "source_latent.npy" in latents and slots != latents["source_latent.npy"][1]:
        raise UserError(
            f"{where}: the text encoder sees {slots} tokens of the source image and the VAE "
            f"{latents['source_latent.npy'][1]}; resize source images to what the pipeline's processor keeps"
        )


def _prompts(
    encoder: Encoder, batches: Batches, window: Sequence[RawSample], where: Sequence[str]
) -> list[tuple[_Text, _Text | None]]:
    """Prompt and, for edits, empty prompt of every sample. Captions need not be of pictures of one size."""
    found: dict[int, tuple[_Text, _Text | None]] = {}

    def embed(texts: Sequence[str], chosen: Sequence[int], name: str) -> list[_Text]:
        images = [[raw.source] for raw in (window[i] for i in chosen) if raw.source is not None] or None
        encoded = encoder.prompts(list(texts), images)
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

    for size, alike in _grouped(enumerate(window), lambda item: _size_of_source(item[1])):
        # Of like length: a batch is padded to its longest.
        indices = sorted((i for i, _ in alike), key=lambda i: (len(window[i].text), i))
        kind = "captions" if size is None else f"instructions with pictures of {size[0]} x {size[1]}"
        found.update(zip(indices, batches.run(kind, indices, captions if size is None else instructions), strict=True))
    return [found[i] for i in range(len(window))]


def _size_of_source(raw: RawSample) -> tuple[int, int] | None:
    return None if raw.source is None else raw.source.size


def _latents(
    encoder: Encoder, batches: Batches, window: Sequence[RawSample], where: Sequence[str]
) -> list[dict[str, tuple[bytes, int]]]:
    """Of every sample: name of a picture's member -> its .npy file and its tokens."""
    results: list[dict[str, tuple[bytes, int]]] = [{} for _ in window]
    pictures = [
        (i, _Picture(image, name, where[i]))
        for i, raw in enumerate(window)
        for name, image in (("latent.npy", raw.target), ("source_latent.npy", raw.source))
        if image is not None
    ]
    for (size, _), alike in _grouped(pictures, lambda item: (item[1].image.size, item[1].image.mode)):
        kind = f"pictures of {size[0]} x {size[1]}"
        encoded = batches.run(kind, [picture for _, picture in alike], lambda part: _encode_pictures(encoder, part))
        for (i, picture), result in zip(alike, encoded, strict=True):
            results[i][picture.name] = result
    return results


def _encode_pictures(encoder: Encoder, pictures: Sequence[_Picture]) -> list[tuple[bytes, int]]:
    pixels = torch.from_numpy(np.stack([np.asarray(picture.image) for picture in pictures]))
    latents = array(encoder.images(pixels))
    num_tokens = pixels.shape[1] * pixels.shape[2] // encoder.pixels_per_token**2
    if latents.shape[1] != num_tokens:
        raise UserError(
            f"{pictures[0].where}: the VAE makes {latents.shape[1]} tokens of an image, not {num_tokens}; use another "
            "VAE"
        )
    return [
        (npy_bytes(values, f"{picture.where}, {picture.name}"), len(values))
        for picture, values in zip(pictures, latents, strict=True)
    ]


def _grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> list[tuple[Key, list[Item]]]:
    """Items that share a key, in order of first appearance."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.items())


def array(values: Tensor) -> np.ndarray:
    """As float32 on the host."""
    return values.detach().float().cpu().numpy()
