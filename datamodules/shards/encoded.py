"""Encoded shards: what the text encoder and the VAE make of raw ones, readable at any position at once.

The shards are valid WebDataset tars; `index.json` next to them holds byte offset and size of every member, so a sample
is one `pread` a member. Members: KEY.prompt.npy (L, D), KEY.uncond.npy (edits), KEY.latent.npy (N, C) if there is a
target, KEY.source_latent.npy (R, C) for edits, the sources one after another, all arrays float16; KEY.txt, KEY.json;
with `data.keep_raw` also KEY.source.*, KEY.source_2.* and so on, and the target image. `uncond_t2i.npy` (L, D) is the
empty prompt of every T2I sample.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datamodules.shards.arrays import finite_view_of, is_finite, view_of
from datamodules.shards.index import damaged, fetch_shards, read_index
from datamodules.shards.sources import source_name
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
        self.uncond_t2i = finite_view_of(constant, str(self._paths[-1]))
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
        return self.has(i, "latent.npy")

    def read_text(self, i: int) -> str:
        """Caption or instruction of sample `i`."""
        return self._read_raw_member(i, ("txt",))[1].decode()

    def read_sources(self, i: int) -> list[Image.Image]:
        """Source images of an edit as PIL, none for T2I. UserError unless encoded with `data.keep_raw`."""
        count = len(self.geometries[self.samples.geometry[i]].references)
        return [self._read_image(i, f"{source_name(number)}.") for number in range(1, count + 1)]

    def read_target(self, i: int) -> Image.Image | None:
        """Target image as PIL, None for prompt-only samples. UserError unless encoded with `data.keep_raw`."""
        if not self.has_target(i):
            return None
        return self._read_image(i, "")

    def _read_image(self, i: int, prefix: str) -> Image.Image:
        name, content = self._read_raw_member(i, tuple(prefix + suffix for suffix in IMAGE_SUFFIXES))
        return decode_image(content, f"sample {self.samples.keys[i]}, {name}")

    def _read_raw_member(self, i: int, names: tuple[str, ...]) -> tuple[str, bytes]:
        for name in names:
            if name in self._members[i]:
                return name, self._read_member(i, name)
        raise UserError(
            f"sample {self.samples.keys[i]} of {self.address} has no {names[0]}; "
            "encode with data.keep_raw=true into another data.encoded"
        )

    def read_rows(
        self, indices: Sequence[int], name: str, num_rows: int, lengths: Sequence[int], opened: OpenShards
    ) -> np.ndarray:
        """Array `name` of samples that share a geometry, (B, num_rows, D) float16, zeros below a sample's own rows.

        lengths: (B,) rows of each. opened: what else is read for the same batch shares it.

        Raises:
            UserError: as `read`.
        """
        rows: np.ndarray | None = None
        for row, (i, length) in enumerate(zip(indices, lengths, strict=True)):
            content = self._read_member(i, name, opened)
            found = self._checked(i, name, length, view_of(content, self._where(i, name)))
            if rows is None:
                rows = np.zeros((len(indices), num_rows, found.shape[1]), np.float16)
            rows[row, :length] = found
        assert rows is not None, "a batch has samples"
        if not is_finite(rows):  # once for all of them; who it is matters only now
            for i, length in zip(indices, lengths, strict=True):
                self._read_array(i, name, length)
        return rows

    def has(self, i: int, name: str) -> bool:
        """Whether sample `i` has a member of this name."""
        return name in self._members[i]

    def opened(self) -> OpenShards:
        """Shards that stay open between the reads of one batch, in a `with` block."""
        return OpenShards(self._paths)

    def _read_array(self, i: int, name: str, rows: int) -> np.ndarray:
        content = self._read_member(i, name)
        return self._checked(i, name, rows, finite_view_of(content, self._where(i, name)))

    def _checked(self, i: int, name: str, rows: int, found: np.ndarray) -> np.ndarray:
        if len(found) != rows:
            raise UserError(f"{self._where(i, name)}: {len(found)} rows, {rows} in the index; encode again")
        return found

    def _where(self, i: int, name: str) -> str:
        return f"sample {self.samples.keys[i]} of {self.address}, {name}"

    def _read_member(self, i: int, name: str, opened: OpenShards | None = None) -> bytes:
        place = self._members[i].get(name)
        if place is None:
            raise UserError(f"sample {self.samples.keys[i]} of {self.address} has no {name}; encode again")
        shard, offset, size, *checksum = place
        try:
            if opened is not None:
                content = os.pread(opened.descriptor(shard), size, offset)
            else:
                with open(self._paths[shard], "rb", buffering=0) as file:
                    content = os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise UserError(f"cannot read shard {self._paths[shard]}: {error.strerror}") from error
        if len(content) != size:
            raise UserError(f"shard {self._paths[shard]} is truncated at sample {self.samples.keys[i]}; encode again")
        if checksum and zlib.crc32(content) != checksum[0]:
            raise UserError(f"shard {self._paths[shard]} is damaged at {self.samples.keys[i]}.{name}; encode again")
        return content


class OpenShards:
    """Descriptors of shards, each opened when it is first read, and closed with the block."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._descriptors: dict[int, int] = {}

    def descriptor(self, shard: int) -> int:
        """Of the shard of this number. Raises: OSError."""
        found = self._descriptors.get(shard)
        if found is None:
            found = self._descriptors[shard] = os.open(self._paths[shard], os.O_RDONLY)
        return found

    def __enter__(self) -> OpenShards:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)


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
