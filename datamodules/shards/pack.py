"""`workbench pack`: raw shards from the world that ships, or from one's own images and prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from datamodules.openmoji import CATEGORIES, LICENCE, draw, is_world, samples_of
from datamodules.shards.left_out import LeftOut, Tally, lines
from datamodules.shards.own_sample import OwnSample, own_members
from datamodules.shards.packed import FINISHED, PACKING, made_with, read_packed
from datamodules.shards.user_images import attribution_of, list_own
from datamodules.shards.writer import ShardWriter
from workbench.common import files
from workbench.common.errors import UserError
from workbench.common.images import png_bytes
from workbench.common.parent import spawned_pool
from workbench.recipe.config import Data, Recipe

if TYPE_CHECKING:
    from workbench.batch import Task

_BYTES_PER_PIXEL = 3
_RULE = 2
"""Version of what becomes of pictures: counted up where shards of before would differ."""
_NOT_STORED = ("key", "text", "target", "source", "difficulty")
"""Of a sample, what its JSON lacks: what has a member of its own, and what benchmarks alone read."""


@dataclass(frozen=True)
class PackSummary:
    """What `pack` did. counts: samples by qualified category. reused: the shards were there already."""

    folder: Path
    num_samples: int
    num_shards: int
    num_bytes: int
    counts: dict[str, int]
    reused: bool
    left_out: LeftOut

    def __str__(self) -> str:
        done = "reused, made from the same settings" if self.reused else "packed"
        size = f"{self.num_samples:,} samples in {self.num_shards} shards, {self.num_bytes / 1e6:,.1f} MB"
        return "\n".join([f"{self.folder}: {size} ({done})", *lines(self.left_out, FINISHED)])


@dataclass(frozen=True)
class WorldSample:
    """A sample of the world yet to be drawn."""

    task: Task
    category: str
    index: int
    resolution: int


def pack(recipe: Recipe) -> PackSummary:
    """Write raw shards to `data.raw`, or reuse those that the same settings and inputs made.

    Raises:
        UserError: no samples, input that cannot be used (named), a full disk, a folder that holds something else.
    """
    data = recipe.data
    folder = _output_folder(data)
    if is_world(data) and not (folder / FINISHED).exists():
        # Before the samples are listed: there may be more than fit the memory, let alone the disk.
        _require_space(data, folder, sum(sum(counts.values()) for counts in samples_of(data).values()))
    tally = Tally.of(data)
    samples: Sequence[WorldSample | OwnSample] = _world(data) if is_world(data) else list_own(data, tally)
    if not samples:
        raise UserError("data.samples asks for no samples; give at least one category a count above 0")
    settings = _settings(data, samples)
    with files.alone(folder):
        reused = files.claim(folder, settings, FINISHED, "data.raw", "pack")
        if not reused:
            with files.given_up_if_empty(folder):
                _write(data, folder, samples, settings, tally)
    summary = _summary(folder, reused)
    print(summary)
    return summary


def _output_folder(data: Data) -> Path:
    if "://" in data.raw or data.raw.startswith("pipe:") or data.raw.endswith(".tar"):
        raise UserError(f"pack writes to a folder, data.raw={data.raw} is none; set data.raw=FOLDER")
    return Path(data.raw)


def _world(data: Data) -> list[WorldSample]:
    samples = []
    for task, counts in samples_of(data).items():
        for category, count in counts.items():
            if category not in CATEGORIES.get(task, ()):
                known = ", ".join(f"{name}.{each}" for name, names in CATEGORIES.items() for each in names)
                raise UserError(f"data.samples.{task}.{category}: the world has no such category; it has {known}")
            samples += [WorldSample(task, category, i, data.resolution) for i in range(count)]  # type: ignore[arg-type]
    return samples


def _settings(data: Data, samples: Sequence[WorldSample | OwnSample]) -> str:
    """Hash of all that the shards depend on; for one's own images their names, sizes and dates of change too."""
    values: dict[str, Any] = {"source": data.source, "resolution": data.resolution, "per_shard": data.samples_per_shard}
    if is_world(data):
        # the first sample of each category stands for the world's version
        first = [_drawn(sample)[1] for sample in samples if isinstance(sample, WorldSample) and sample.index == 0]
        digests = [hashlib.sha256(content).hexdigest() for drawn in first for content in drawn.values()]
        return files.settings_hash({**values, "samples": samples_of(data), "world": digests})
    values |= {"rule": _RULE, "aspects": data.aspects, "bounds": [data.min_side, data.max_aspect]}
    if data.max_buckets != Data().max_buckets:
        values["buckets"] = data.max_buckets
    stamps = [sample.stamp() for sample in samples if isinstance(sample, OwnSample)]
    return files.settings_hash({**values, "samples": stamps})


def _write(data: Data, folder: Path, samples: Sequence[WorldSample | OwnSample], settings: str, tally: Tally) -> None:
    _require_space(data, folder, len(samples))
    starts = range(0, len(samples), data.samples_per_shard)
    jobs = [(folder / f"{i:06d}.tar", samples[a : a + data.samples_per_shard]) for i, a in enumerate(starts)]
    shards: dict[str, dict[str, Any]] = {}
    with files.progress() as bar:
        task = bar.add_task(f"packing into {folder}", total=len(samples))
        for shard in _run(jobs, data):
            left_out = LeftOut(**shard.pop("left_out"))
            for line in left_out.broken:
                print(f"left out: {line}")
            tally.add(left_out)
            shards[shard["name"]] = shard
            bar.advance(task, sum(shard["counts"].values()) + len(left_out.broken))
    counts: dict[str, int] = {}
    for name in sorted(shards):
        for category, count in shards[name]["counts"].items():
            counts[category] = counts.get(category, 0) + count
    if not counts:
        raise UserError(f"all {len(samples)} samples are broken; the first: {tally.broken[0]}")
    value = {
        "settings": settings,
        "resolution": data.resolution,
        "left_out": tally.record(),
        "attribution": _attribution(data),
        "made": made_with(data, PACKING),
        "counts": counts,
        "shards": [shards[name] for name in sorted(shards)],
    }
    files.release(folder, FINISHED, value)


def _require_space(data: Data, folder: Path, num_samples: int) -> None:
    """UserError unless the disk holds so many samples, each at most as large as its pixels."""
    files.require_space(folder, num_samples * data.resolution**2 * _BYTES_PER_PIXEL, f"packing {num_samples:,} samples")


def _attribution(data: Data) -> str:
    return LICENCE if is_world(data) else attribution_of(data.source)


def _run(jobs: list[tuple[Path, Sequence[WorldSample | OwnSample]]], data: Data) -> Iterator[dict[str, Any]]:
    """Shards as they get done, over `data.num_workers` processes (0 or 1: this one)."""
    work = partial(write_shard, data=data)
    if data.num_workers <= 1 or len(jobs) == 1:
        for path, samples in jobs:
            yield work(path, samples)
        return
    with spawned_pool(min(data.num_workers, len(jobs))) as executor:
        futures: list[Future[dict[str, Any]]] = [executor.submit(work, path, samples) for path, samples in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                f"one of data.num_workers={data.num_workers} processes was killed, for want of memory perhaps: start "
                "fewer; the same command continues"
            ) from error
        except BaseException:
            for future in futures:
                future.cancel()
            raise


def write_shard(path: Path, samples: Sequence[WorldSample | OwnSample], data: Data) -> dict[str, Any]:
    """Write one shard, a function of its samples alone; returns its entry of `pack.json`, with what was left out."""
    counts: dict[str, int] = {}
    tally = Tally.of(data)
    with ShardWriter(path) as shard:
        for sample in samples:
            with tally.sample():
                key, members = _drawn(sample) if isinstance(sample, WorldSample) else own_members(sample, data)
                for name, content in members.items():
                    shard.add(f"{key}.{name}", content)
                qualified = f"{sample.task}/{sample.category}"
                counts[qualified] = counts.get(qualified, 0) + 1
    entry = {"name": path.name, "bytes": shard.num_bytes, "sha256": shard.sha256, "counts": counts}
    return {**entry, "left_out": tally.record()}


def _drawn(planned: WorldSample) -> tuple[str, dict[str, bytes]]:
    sample = draw(planned.task, planned.category, "train", planned.index, resolution=planned.resolution)
    meta = {name: value for name, value in asdict(sample).items() if name not in _NOT_STORED}
    members = {"png": _png(sample.target), "txt": sample.text.encode(), "json": json.dumps(meta).encode()}
    if sample.source is not None:
        members["source.png"] = _png(sample.source)
    return sample.key, members


def _png(pixels: np.ndarray) -> bytes:
    return png_bytes(Image.fromarray(pixels))


def _summary(folder: Path, reused: bool) -> PackSummary:
    made = read_packed(folder)
    assert made is not None, "pack.json was written"
    for shard in made.shards:
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise UserError(f"shard {path} is missing or truncated; delete {folder} and pack again")
    num_bytes = sum(shard.bytes for shard in made.shards)
    return PackSummary(folder, made.num_samples, len(made.shards), num_bytes, made.counts, reused, made.left_out)
