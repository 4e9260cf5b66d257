"""Encoded shards: what the text encoder and the VAE make of raw ones, readable at any position at once.

The shards are valid WebDataset tars; `index.json` next to them holds byte offset and size of every member, so a sample
is one `pread` a member. Members: KEY.prompt.npy (L, D), KEY.uncond.npy (edits), KEY.latent.npy (N, C) if there is a
target, KEY.source_latent.npy (R, C) for edits, all arrays float16; KEY.txt, KEY.json; with `data.keep_raw` also
KEY.source.* and the target image. `uncond_t2i.npy` (L, D) is the empty prompt of every T2I sample.
"""

from __future__ import annotations

import hashlib
import io
import os
import zlib
from dataclasses import dataclass
from functools import lru_cache
from tokenize import TokenError
from typing import Any

import numpy as np
from PIL import Image

from datamodules.shards.index import damaged, fetch_shards, read_index
from workbench.batch import Layout, Reference, Task
from workbench.common.errors import UserError
from workbench.common.images import IMAGE_SUFFIXES, decode_image
from workbench.common.outside import read_bytes

TEXT_TOKENS_MULTIPLE = 8
"""Text is padded to the longest of its geometry, rounded up to this, so that the shapes of a run are few."""


@dataclass(frozen=True, order=True)
class Geometry:
    """What samples share that can be batched together. Sizes in latent tokens; `uncond_references` differ from
    `references` only where the empty prompt moves the image slots."""

    task: Task
    height: int
    width: int
    references: tuple[Reference, ...] = ()
    uncond_references: tuple[Reference, ...] = ()


@dataclass(frozen=True)
class EncodedSample:
    """float16 arrays: prompt (L, D), uncond (L', D), latent (N, C), source_latent (R, C); None where there is none or
    where it was not asked for."""

    prompt: np.ndarray
    uncond: np.ndarray | None
    latent: np.ndarray | None
    source_latent: np.ndarray | None


class EncodedDataset:
    """Encoded shards in a folder, or behind an http(s) address (then cached whole first).

    categories: qualified names of the samples' categories. geometries: what `samples.geometry` counts into.
    resolution: `data.resolution` of their encoding, None where an older index does not say. left_out: what was not
    taken.
    Threads and processes may share one: no file stays open between two reads.

    Raises:
        UserError: no index, a missing or truncated shard, an index that does not fit its shards.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        index = read_index(address)
        self.pipeline_fingerprint, self.attribution = index.pipeline, index.attribution
        self._index = index
        self.resolution, self.left_out, self.made = index.resolution, index.left_out, index.made
        self.categories, self.samples, self._members = index.categories, index.samples, index.members
        try:
            self.geometries = tuple(geometry_from_json(value) for value in index.geometries)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(index.folder, error) from error
        self._paths = fetch_shards(address, index)
        constant = read_bytes(self._paths[-1], "encode again")
        if hashlib.sha256(constant).hexdigest() != index.shards[-1][2]:
            raise UserError(f"{self._paths[-1]} is damaged; encode again")
        self.uncond_t2i = _array(constant, str(self._paths[-1]))
        self._text_tokens = self._padded_lengths()

    def _padded_lengths(self) -> list[tuple[int, int]]:
        def padded(lengths: np.ndarray) -> int:
            return -(-int(lengths.max()) // TEXT_TOKENS_MULTIPLE) * TEXT_TOKENS_MULTIPLE

        masks = [self.samples.geometry == i for i in range(len(self.geometries))]
        return [
            (padded(self.samples.length[mask]), padded(self.samples.uncond_length[mask])) if mask.any() else (0, 0)
            for mask in masks
        ]

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def content(self) -> str:
        """Hash of what training reads; see `Index.content`."""
        return self._index.content

    @property
    def embedding_dim(self) -> int:
        """D, the width of the prompt embeddings."""
        return int(self.uncond_t2i.shape[1])

    def layouts(self, geometry: int) -> tuple[Layout, Layout]:
        """Layouts of the prompt and of the empty prompt of a geometry's samples, text padded to constant lengths."""
        shape, (text, uncond) = self.geometries[geometry], self._text_tokens[geometry]
        return (
            Layout(text, shape.height, shape.width, shape.references),
            Layout(uncond, shape.height, shape.width, shape.uncond_references),
        )

    def read(self, i: int, uncond: bool = True, latent: bool = True) -> EncodedSample:
        """Sample `i`; without its empty prompt or target latents if they are not needed, which saves their reads."""
        shape = self.geometries[self.samples.geometry[i]]
        rows = {"prompt.npy": int(self.samples.length[i])}
        if uncond:
            rows["uncond.npy"] = int(self.samples.uncond_length[i])
        if latent:
            rows["latent.npy"] = shape.height * shape.width
        if shape.references:
            rows["source_latent.npy"] = sum(reference.num_tokens for reference in shape.references)
        found = {name: self._read_array(i, name, count) for name, count in rows.items() if name in self._members[i]}
        return EncodedSample(
            prompt=found["prompt.npy"],
            uncond=found.get("uncond.npy", self.uncond_t2i) if uncond else None,
            latent=found.get("latent.npy"),
            source_latent=found.get("source_latent.npy"),
        )

    def has_target(self, i: int) -> bool:
        """Whether sample `i` has a target image (prompt-only samples have none)."""
        return "latent.npy" in self._members[i]

    def read_text(self, i: int) -> str:
        """Caption or instruction of sample `i`."""
        return self._read_raw_member(i, ("txt",))[1].decode()

    def read_source(self, i: int) -> Image.Image | None:
        """Source image of an edit as PIL, None for T2I. UserError unless encoded with `data.keep_raw`."""
        if not self.geometries[self.samples.geometry[i]].references:
            return None
        name, content = self._read_raw_member(i, tuple(f"source.{suffix}" for suffix in IMAGE_SUFFIXES))
        return decode_image(content, f"sample {self.samples.keys[i]}, {name}")

    def read_target(self, i: int) -> Image.Image | None:
        """Target image as PIL, None for prompt-only samples. UserError unless encoded with `data.keep_raw`."""
        if not self.has_target(i):
            return None
        name, content = self._read_raw_member(i, IMAGE_SUFFIXES)
        return decode_image(content, f"sample {self.samples.keys[i]}, {name}")

    def _read_raw_member(self, i: int, names: tuple[str, ...]) -> tuple[str, bytes]:
        for name in names:
            if name in self._members[i]:
                return name, self._read_member(i, name)
        raise UserError(
            f"sample {self.samples.keys[i]} of {self.address} has no {names[0]}; "
            "encode with data.keep_raw=true into another data.encoded"
        )

    def _read_array(self, i: int, name: str, rows: int) -> np.ndarray:
        where = f"sample {self.samples.keys[i]} of {self.address}, {name}"
        found = _array(self._read_member(i, name), where)
        if len(found) != rows:
            raise UserError(f"{where}: {len(found)} rows, {rows} in the index; encode again")
        return found

    def _read_member(self, i: int, name: str) -> bytes:
        shard, offset, size, *checksum = self._members[i][name]
        try:
            with open(self._paths[shard], "rb", buffering=0) as file:
                content = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise UserError(f"cannot read shard {self._paths[shard]}: {error.strerror}") from error
        if len(content) != size:
            raise UserError(f"shard {self._paths[shard]} is truncated at sample {self.samples.keys[i]}; encode again")
        if checksum and zlib.crc32(content) != checksum[0]:
            raise UserError(f"shard {self._paths[shard]} is damaged at {self.samples.keys[i]}.{name}; encode again")
        return content


def geometry_to_json(geometry: Geometry) -> dict[str, Any]:
    """As `index.json` holds it."""

    def plain(references: tuple[Reference, ...]) -> list[list[int]]:
        return [[item.slot, item.height, item.width, item.num_slots] for item in references]

    return {
        "task": geometry.task,
        "height": geometry.height,
        "width": geometry.width,
        "references": plain(geometry.references),
        "uncond_references": plain(geometry.uncond_references),
    }


def geometry_from_json(value: dict[str, Any]) -> Geometry:
    """Inverse of `geometry_to_json`."""
    return Geometry(
        task=value["task"],
        height=int(value["height"]),
        width=int(value["width"]),
        references=tuple(_reference(*map(int, numbers)) for numbers in value["references"]),
        uncond_references=tuple(_reference(*map(int, numbers)) for numbers in value["uncond_references"]),
    )


def _reference(slot: int, height: int, width: int, num_slots: int | None = None) -> Reference:
    """Indexes written before slots were counted are of Qwen-Image-2.1, whose slots stand for 2 x 2 latent tokens."""
    return Reference(slot, height, width, height * width // 4 if num_slots is None else num_slots)


def npy_bytes(values: np.ndarray, where: str) -> bytes:
    """`values` as a float16 .npy file. UserError naming `where` if a value is not finite in float16."""
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(values, dtype=np.float16)
    if not np.isfinite(half).all():
        largest = float(np.abs(np.asarray(values, dtype=np.float64)).max())
        raise UserError(f"{where}: values up to {largest:g} do not fit float16 (65504 at most); use other weights")
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, half, allow_pickle=False)
    return buffer.getvalue()


@lru_cache(maxsize=4096)
def _parsed_header(header: bytes) -> tuple[np.dtype, tuple[int, ...]]:
    """dtype and shape of an .npy header. Parsing one takes longer than reading an array, and few differ."""
    stream = io.BytesIO(header)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("of an unknown version")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or is_fortran:
        raise ValueError("not of numbers in C order")
    return dtype, shape


def _array(content: bytes, where: str) -> np.ndarray:
    """The float16 array (rows, columns) in an .npy file, read-only, finite. Objects, which would be unpickled, are
    refused."""
    try:
        start = 10 + int.from_bytes(content[8:10], "little")
        dtype, shape = _parsed_header(content[:start])
        if dtype != np.float16 or len(shape) != 2:
            raise ValueError(f"{dtype} of shape {shape}, not rows of float16")
        found = np.frombuffer(content, dtype, offset=start).reshape(shape)
    except (ValueError, SyntaxError, TokenError) as error:
        raise UserError(f"{where}: not a plain array ({error}); encode again") from error
    # Bits, since numpy has no fast isfinite of float16: all ones in the exponent are infinity and NaN.
    if found.size and int((found.view(np.int16) & 0x7FFF).max()) >= 0x7C00:
        raise UserError(f"{where}: holds values that are not finite; encode again")
    return found
