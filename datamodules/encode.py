"""`workbench encode`: raw shards to encoded ones, with a pipeline folder's own text encoder and VAE."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules import files, remote
from datamodules.encoded import INDEX, INDEX_VERSION, UNCOND_T2I, EncodedDataset, Geometry, geometry_to_json, npy_bytes
from datamodules.pack import FINISHED
from datamodules.shards import RawSample, raw_shards, read_raw
from datamodules.writer import IMAGE_SUFFIXES, ShardWriter
from workbench.config import Data, Recipe
from workbench.errors import UserError

if TYPE_CHECKING:
    from workbench.pipeline import EncodedPrompt

PIXELS_PER_TOKEN = 16
"""Side of the square of pixels behind one latent token (QwenImage21Pipeline)."""
_SIDE_MULTIPLE = 2 * PIXELS_PER_TOKEN
_SPARE_BYTES = 64 << 20
_WINDOW_BATCHES = 4
"""Samples are read this many batches ahead, so that those of one size find each other."""
_RAW_IMAGES = (*IMAGE_SUFFIXES, *(f"source.{suffix}" for suffix in IMAGE_SUFFIXES))


@dataclass(frozen=True)
class EncodeSummary:
    """What `encode` did. reused: the shards were there already."""

    folder: Path
    num_samples: int
    num_shards: int
    num_bytes: int
    reused: bool

    def __str__(self) -> str:
        done = "reused, made from the same shards and pipeline" if self.reused else "encoded"
        size = f"{self.num_samples:,} samples in {self.num_shards} shards, {self.num_bytes / 1e6:,.1f} MB"
        return f"{self.folder}: {size} ({done})"


@dataclass(frozen=True)
class Encoder:
    """A pipeline's text encoder and VAE: prompts as `workbench.pipeline.encode_prompts`, images (uint8, (B, H, W, 3|4))
    to latents (B, N, C) as its `encode_images`."""

    prompts: Callable[[list[str], list[list[Image.Image]] | None], Sequence[EncodedPrompt]]
    images: Callable[[Tensor], Tensor]


def encode(recipe: Recipe) -> EncodeSummary:
    """Encode the shards of `data.raw` into `data.encoded`, or reuse what the same shards and pipeline made.

    An interrupted run goes on with the first unfinished shard. Text encoder and VAE run in float32, or in bfloat16 on
    CUDA with trainer.precision=bf16-mixed; what is stored is float16.

    Raises:
        UserError: raw shards or a pipeline that cannot be used, a full disk, a folder that holds something else.
    """
    from workbench import pipeline as pipelines

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" and recipe.trainer.precision == "bf16-mixed" else torch.float32

    load = partial(_pipeline_encoder, recipe.model.folder, device, dtype)
    fingerprint = pipeline_fingerprint(pipelines.resolve(recipe.model.folder))
    summary = encode_shards(recipe.data, load, fingerprint, str(dtype))
    print(summary)
    return summary


def _pipeline_encoder(folder: str, device: str, dtype: torch.dtype) -> Encoder:
    from workbench import pipeline as pipelines

    pipeline = pipelines.load(folder, device, dtype)
    fast = pipelines.fast_vae(pipeline)
    return Encoder(
        prompts=lambda prompts, images: pipelines.encode_prompts(pipeline, prompts, images),
        images=lambda images: pipelines.encode_images(pipeline, images.to(device), fast),
    )


def pipeline_fingerprint(folder: Path) -> str:
    """sha256 over the files of a pipeline folder's text encoder, VAE, processor and tokenizer."""
    parts = ("text_encoder", "vae", "processor", "tokenizer")
    paths = sorted(path for part in parts for path in (folder / part).rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.relative_to(folder).as_posix()} {files.sha256_of_file(path)}\n".encode())
    return digest.hexdigest()


def encode_shards(data: Data, load: Callable[[], Encoder], fingerprint: str, precision: str = "") -> EncodeSummary:
    """As `encode`, with any encoder. `load` is called only if something remains to be encoded.

    Args:
        fingerprint: names the weights of the encoder; it is kept in the index.
        precision: what else the encoded values depend on.
    """
    if remote.is_remote(data.encoded) or data.encoded.startswith("pipe:"):
        raise UserError(f"encode writes to a folder, data.encoded={data.encoded} is none; set data.encoded=FOLDER")
    folder, shards = Path(data.encoded), raw_shards(data.raw)
    settings = files.settings_hash(
        [INDEX_VERSION, _identities(data.raw, shards), fingerprint, precision, data.keep_raw, data.resolution]
    )
    reused = files.claim(folder, settings, INDEX, "data.encoded", "encode")
    if not reused:
        with files.given_up_if_empty(folder):
            _encode_all(data, folder, shards, settings, fingerprint, load)
    dataset = EncodedDataset(str(folder))
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.tar"))
    return EncodeSummary(folder, len(dataset), len(shards), num_bytes, reused)


def _packed(raw: str) -> dict[str, Any]:
    """pack.json beside local raw shards, or nothing."""
    path = Path(raw) / FINISHED
    return files.read_json(path, "pack again") if not raw.startswith("pipe:") and path.is_file() else {}


def _identities(raw: str, shards: list[str]) -> list[Any]:
    """What tells the shards' contents apart: sha256 of local ones, size and date of remote ones, a pipe's command."""
    packed = {shard["name"]: (shard["bytes"], shard["sha256"]) for shard in _packed(raw).get("shards", ())}
    identities: list[Any] = []
    for shard in shards:
        path = Path(shard)
        if shard.startswith("pipe:"):
            identities.append(shard)
        elif remote.is_remote(shard):
            identities.append(remote.describe(shard))
        elif path.name in packed and packed[path.name][0] == path.stat().st_size:
            identities.append(packed[path.name][1])
        else:
            identities.append(files.sha256_of_file(path))
    return identities


def _encode_all(
    data: Data, folder: Path, shards: list[str], settings: str, fingerprint: str, load: Callable[[], Encoder]
) -> None:
    files.require_space(folder, _SPARE_BYTES, "encoding")
    encoder = load()
    empty = _array(encoder.prompts([""], None)[0].embeddings)
    constant, uncond_length = npy_bytes(empty, "the empty prompt"), len(empty)
    files.write_bytes(folder / UNCOND_T2I, constant)
    records: list[dict[str, Any]] = []
    packed = _packed(data.raw)
    with files.progress() as bar:
        task = bar.add_task(f"encoding into {folder}", total=sum(packed["counts"].values()) if packed else None)
        if data.encode_workers > 1:
            _encode_in_processes(data, folder, shards, uncond_length, load, lambda n: bar.advance(task, n))
        for number, shard in enumerate(shards):
            path = folder / f"{number:06d}.tar"
            record = _finished(path)
            if record is None:
                record = _encode_shard(data, encoder, shard, path, uncond_length, lambda n: bar.advance(task, n))
                files.require_space(folder, path.stat().st_size * (len(shards) - number - 1), f"the rest of {folder}")
            elif data.encode_workers == 1:
                bar.advance(task, len(record["samples"]))
            records.append(record)
            if not packed:  # the number of samples is unknown until all are read: go by what the shards held so far
                done = sum(len(each["samples"]) for each in records)
                bar.update(task, total=done * len(shards) // (number + 1), completed=done)
    constant_entry = {"bytes": len(constant), "sha256": hashlib.sha256(constant).hexdigest()}
    attribution = packed.get("attribution", "not stated by the raw shards")
    index = {"version": INDEX_VERSION, "settings": settings, "pipeline": fingerprint, "attribution": attribution}
    files.release(folder, INDEX, {**index, "uncond_t2i": constant_entry, **_merged(records, shards)})
    for number in range(len(shards)):
        _record_path(folder / f"{number:06d}.tar").unlink()


def _encode_in_processes(
    data: Data,
    folder: Path,
    shards: list[str],
    uncond_length: int,
    load: Callable[[], Encoder],
    advance: Callable[[int], None],
) -> None:
    """Encode the shards that are not finished, each in one of `data.encode_workers` processes with its own encoder."""
    missing = [i for i in range(len(shards)) if _finished(folder / f"{i:06d}.tar") is None]
    # Spawned, not forked: the parent may already hold a CUDA context.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(data.encode_workers, context, _start_worker, (load,)) as executor:
        paths = [folder / f"{i:06d}.tar" for i in missing]
        jobs = [
            executor.submit(_encode_in_worker, data, shards[i], path, uncond_length)
            for i, path in zip(missing, paths, strict=True)
        ]
        for job in as_completed(jobs):
            advance(job.result())


_worker_encoder: list[Encoder] = []
"""This process's own encoder, if it is a worker of `_encode_in_processes`."""


def _start_worker(load: Callable[[], Encoder]) -> None:
    torch.set_num_threads(1)
    _worker_encoder.append(load())


def _encode_in_worker(data: Data, url: str, path: Path, uncond_length: int) -> int:
    return len(_encode_shard(data, _worker_encoder[0], url, path, uncond_length, lambda _: None)["samples"])


def _merged(records: list[dict[str, Any]], shards: list[str]) -> dict[str, Any]:
    """Shards, geometries, categories and samples of the index. UserError for no samples, or a key that occurs twice."""
    geometries: dict[str, int] = {}
    first: dict[str, str] = {}
    samples = []
    for number, (record, shard) in enumerate(zip(records, shards, strict=True)):
        for sample in record["samples"]:
            if sample["key"] in first:
                raise UserError(
                    f"key {sample['key']!r} occurs in {first[sample['key']]} and in {shard}; keys must be unique"
                )
            first[sample["key"]] = shard
            geometry = geometries.setdefault(json.dumps(sample["geometry"]), len(geometries))
            members = {name: [number, *place] for name, place in sample["members"].items()}
            samples.append({**sample, "geometry": geometry, "members": members})
    if not samples:
        raise UserError(f"the raw shards hold no samples ({shards[0]}, ...); pack some first")
    return {
        "shards": [{name: record[name] for name in ("name", "bytes", "sha256")} for record in records],
        "geometries": [json.loads(geometry) for geometry in geometries],
        "categories": sorted({f"{sample['task']}/{sample['category']}" for sample in samples}),
        "samples": samples,
    }


def _record_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")


def _finished(path: Path) -> dict[str, Any] | None:
    """The record of a shard that an interrupted run finished."""
    if not path.is_file() or not _record_path(path).is_file():
        return None
    record = files.read_json(_record_path(path), f"delete {path.parent} and encode again")
    return record if record["bytes"] == path.stat().st_size else None


def _encode_shard(
    data: Data, encoder: Encoder, url: str, path: Path, uncond_length: int, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Encode one raw shard, in the order of its samples; returns and keeps its record."""
    samples = read_raw(url)
    entries: list[dict[str, Any]] = []
    with ShardWriter(path) as shard:
        while window := list(islice(samples, _WINDOW_BATCHES * data.encode_batch_size)):
            for raw, (geometry, arrays) in zip(window, _encode_window(data, encoder, url, window), strict=True):
                where = f"sample {raw.key} of {url}"
                members = {name: npy_bytes(values, f"{where}, {name}") for name, values in arrays.items()}
                kept = ("txt", *_RAW_IMAGES) if data.keep_raw else ("txt",)
                members |= {name: raw.members[name] for name in kept if name in raw.members}
                lengths = {
                    "length": len(arrays["prompt.npy"]),
                    "uncond_length": len(arrays["uncond.npy"]) if "uncond.npy" in arrays else uncond_length,
                }
                entry = {"task": raw.task, "category": raw.category, **lengths}
                plain = geometry_to_json(geometry)
                members["json"] = json.dumps({**entry, **plain}).encode()
                places = {name: shard.add(f"{raw.key}.{name}", content) for name, content in members.items()}
                entries.append({"key": raw.key, **entry, "geometry": plain, "members": places})
            advance(len(window))
    record = {"name": path.name, "bytes": shard.num_bytes, "sha256": shard.sha256, "samples": entries}
    files.write_json(_record_path(path), record)
    return record


def _encode_window(
    data: Data, encoder: Encoder, url: str, window: list[RawSample]
) -> Iterator[tuple[Geometry, dict[str, np.ndarray]]]:
    """Geometry and arrays of each sample, in order; encoded in batches of one task and one pair of image sizes."""
    alike: dict[Any, list[int]] = {}
    for i, raw in enumerate(window):
        images = [(image.size, image.mode) if image is not None else None for image in (raw.target, raw.source)]
        alike.setdefault((raw.task, *images), []).append(i)
    encoded: dict[int, tuple[Geometry, dict[str, np.ndarray]]] = {}
    for indices in alike.values():
        for start in range(0, len(indices), data.encode_batch_size):
            chosen = indices[start : start + data.encode_batch_size]
            encoded.update(zip(chosen, _encode_batch(data, encoder, url, [window[i] for i in chosen]), strict=True))
    return (encoded[i] for i in range(len(window)))


def _encode_batch(
    data: Data, encoder: Encoder, url: str, batch: list[RawSample]
) -> list[tuple[Geometry, dict[str, np.ndarray]]]:
    first = batch[0]
    height, width = _target_size(data, first, url)
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
        arrays = {"prompt.npy": _array(prompt.embeddings)}
        if unconds:
            arrays["uncond.npy"] = _array(unconds[i].embeddings)
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


def _target_size(data: Data, raw: RawSample, url: str) -> tuple[int, int]:
    """(height, width) in latent tokens of the target: of the image, else of the source, else of the meta data."""
    image = raw.target or raw.source
    stated = (raw.meta.get("height", data.resolution), raw.meta.get("width", data.resolution))
    size = (image.height, image.width) if image else stated
    for each in (raw.target, raw.source):
        if each is not None and (each.width % _SIDE_MULTIPLE or each.height % _SIDE_MULTIPLE):
            raise UserError(
                f"sample {raw.key} of {url} is {each.width} x {each.height} pixels; sides must be multiples of "
                f"{_SIDE_MULTIPLE}: let `workbench pack` resize the images (data.source=FOLDER)"
            )
    if not all(isinstance(side, int) and side > 0 and side % _SIDE_MULTIPLE == 0 for side in size):
        raise UserError(f"sample {raw.key} of {url}: height and width {size} must be multiples of {_SIDE_MULTIPLE}")
    return size[0] // PIXELS_PER_TOKEN, size[1] // PIXELS_PER_TOKEN


def _latents(encoder: Encoder, images: list[Image.Image], where: str) -> np.ndarray | None:
    """(B, N, C) float32, or None for no images."""
    if not images:
        return None
    latents = _array(encoder.images(torch.from_numpy(np.stack([np.asarray(image) for image in images]))))
    num_tokens = images[0].width * images[0].height // PIXELS_PER_TOKEN**2
    if latents.shape[1] != num_tokens:
        raise UserError(
            f"{where}: the VAE makes {latents.shape[1]} tokens of an image, not {num_tokens}; use another VAE"
        )
    return latents


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()
