"""One shard, from raw to encoded: its samples window by window through an encoder, their members into a tar."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.shards.buckets import bucket_of, fitted, frame_of
from datamodules.shards.encode_batch import Batches, EncodedRaw, Encoder, FamilyLimits, array, encode_window
from datamodules.shards.encoded import geometry_to_json
from datamodules.shards.left_out import Tally
from datamodules.shards.raw import RawSample, read_raw
from datamodules.shards.sources import source_name, source_number
from datamodules.shards.writer import ShardWriter
from workbench.common import files
from workbench.common.errors import UserError
from workbench.common.images import IMAGE_SUFFIXES, check_sources, png_bytes
from workbench.common.outside import read_json
from workbench.recipe.config import Data

WINDOW_BATCHES = 16
_WINDOW_PIXELS = 1 << 26
"""Samples are read this many batches or pixels at a time, so that those of one size find each other."""
LARGEST_SIDE = 1 << 13
LONG = "have captions of more than {} tokens: all prompts of their size are padded to the longest"


def record_path(path: Path) -> Path:
    """Where the record of an encoded shard lies until the index holds it."""
    return path.with_name(f".{path.name}.json")


def read_record(path: Path) -> dict[str, Any] | None:
    """The record of the encoded shard at `path`, or None where one of them is not there."""
    if not path.is_file() or not record_path(path).is_file():
        return None
    found: dict[str, Any] = read_json(record_path(path), dict, f"delete {path.parent} and encode again")
    return found


def finished(path: Path) -> dict[str, Any] | None:
    """The record of a shard that an interrupted run finished, or None; the shard is read whole to be sure."""
    record = read_record(path)
    return record if record and record.get("sha256") == files.sha256_of_file(path) else None


class ShardEncoder:
    """Encodes shards, one after another. empty: the empty prompt of a T2I sample, (L, D) float32."""

    def __init__(self, data: Data, encoder: Encoder) -> None:
        self._data, self._encoder = data, encoder
        self._batches = Batches(data.encode_batch_size)
        self.empty: np.ndarray = array(encoder.prompts([""], None)[0].embeddings)

    def encode(self, url: str, path: Path, advance: Callable[[int], None]) -> dict[str, Any]:
        """Encode the raw shard at `url` into `path`, in the order of its samples; returns and keeps its record.

        advance: called with the number of samples done.

        Raises:
            UserError: a sample that cannot be read or encoded, by its key; with `data.broken=skip` more than
                `data.max_broken` of those whose files are at fault.
        """
        data = self._data
        reading, checking = Tally.of(data), Tally.of(data)
        entries: list[dict[str, Any]] = []
        with ShardWriter(path) as shard:
            for window in read_windows(data, self._encoder.limits, url, reading):
                chosen = [raw for raw in window if self._is_readable(raw, checking)]
                for raw, encoded in zip(chosen, self.encode_samples(url, chosen), strict=True):
                    entries.append(self._write(shard, raw, encoded, checking))
                advance(len(window))
        reading.add(checking)
        record = {"name": path.name, "bytes": shard.num_bytes, "sha256": shard.sha256, "samples": entries}
        record["left_out"] = reading.record()
        files.write_json(record_path(path), record)
        return record

    def encode_samples(self, url: str, samples: list[RawSample]) -> list[EncodedRaw]:
        """Samples of `url` that are fitted to their sizes, encoded, in order."""
        return encode_window(self._encoder, self._batches, url, samples)

    def _is_readable(self, raw: RawSample, tally: Tally) -> bool:
        """Whether the encoder reads a prompt for what it is. Here and not where pictures are read, in a thread of its
        own: tokenizers are not made for two."""
        is_readable = False
        with tally.sample():
            self._encoder.check(raw.text)
            is_readable = True
        return is_readable

    def _write(self, shard: ShardWriter, raw: RawSample, encoded: EncodedRaw, tally: Tally) -> dict[str, Any]:
        """Add a sample's members to the shard; its entry of the index."""
        images = sorted((name for name in raw.members if _place(name) is not None), key=lambda name: _place(name) or 0)
        kept = ("txt", *images) if self._data.keep_raw else ("txt",)
        members = encoded.members | {name: raw.members[name] for name in kept}
        text_tokens = encoded.length - sum(reference.num_slots for reference in encoded.geometry.references)
        if 0 < self._encoder.prompt_limit < text_tokens:
            tally.warned[LONG.format(self._encoder.prompt_limit)] += 1
        uncond = len(self.empty) if encoded.uncond_length is None else encoded.uncond_length
        entry = {"task": raw.task, "category": raw.category, "length": encoded.length, "uncond_length": uncond}
        plain = geometry_to_json(encoded.geometry)
        members["json"] = json.dumps({**entry, **plain}).encode()
        places = {name: shard.add(f"{raw.key}.{name}", content) for name, content in members.items()}
        return {"key": raw.key, **entry, "geometry": plain, "members": places}


def _place(name: str) -> int | None:
    """Of an image among those of a raw sample, by the name of its member: 0 of the target, the number of a source."""
    stem, _, suffix = name.rpartition(".")
    return None if suffix not in IMAGE_SUFFIXES else source_number(stem) if stem else 0


def read_windows(data: Data, limits: FamilyLimits, url: str, tally: Tally) -> Iterator[list[RawSample]]:
    """The samples of a raw shard that can be encoded, in order, as many as are encoded together. The next ones are
    read and scaled in a thread meanwhile."""
    windows = _windows(read_fitted(data, limits, url, tally), WINDOW_BATCHES * data.encode_batch_size)
    thread = ThreadPoolExecutor(1, "raw samples")
    try:
        ahead = thread.submit(next, windows, None)
        while (window := ahead.result()) is not None:
            ahead = thread.submit(next, windows, None)
            yield window
    finally:
        thread.shutdown(cancel_futures=True)


def read_fitted(data: Data, limits: FamilyLimits, url: str, tally: Tally) -> Iterator[RawSample]:
    """The samples of a raw shard that can be encoded, images brought to a bucket, whose sides are `height` and `width`
    of `meta`."""
    for raw in read_raw(url, tally):
        ready: RawSample | None = None
        with tally.sample():
            where = f"shard {url}, sample {raw.key}"
            check_sources(len(raw.sources), limits.max_sources, where)
            ready = _in_bucket(raw, data, limits.side_multiple, where)
        if ready is not None:
            yield ready


def _in_bucket(raw: RawSample, data: Data, multiple: int, where: str) -> RawSample:
    target, sources = fitted(raw.target, raw.sources, data, multiple, where)
    image = frame_of(target, sources)
    width, height = image.size if image else bucket_of(_stated_size(raw.meta, data, where), data, multiple, where)
    members = dict(raw.members)
    named = {f"{source_name(i)}.": pair for i, pair in enumerate(zip(raw.sources, sources, strict=True), 1)}
    for prefix, (before, after) in {"": (raw.target, target), **named}.items():
        # Writing a PNG takes longer than all else that is done to a picture here.
        if data.keep_raw and before is not None and after is not None and before.size != after.size:
            for suffix in IMAGE_SUFFIXES:
                members.pop(prefix + suffix, None)
            members[f"{prefix}png"] = png_bytes(after)
    meta = {**raw.meta, "width": width, "height": height}
    return replace(raw, target=target, sources=sources, meta=meta, members=members)


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
        pixels += sum(image.width * image.height for image in (raw.target, *raw.sources) if image is not None)
        if len(window) == most or pixels >= _WINDOW_PIXELS:
            yield window
            window, pixels = [], 0
    if window:
        yield window
