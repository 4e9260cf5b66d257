"""Raw shards to encoded ones, through any encoder of prompts and images."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from datamodules.shards import remote
from datamodules.shards.counts import INDEX
from datamodules.shards.encode_shard import Encoder, array, encode_shard, finished, record_path
from datamodules.shards.encoded import EncodedDataset, npy_bytes
from datamodules.shards.index import INDEX_VERSION, UNCOND_T2I
from datamodules.shards.left_out import LeftOut, Tally, lines
from datamodules.shards.packed import ENCODING, Packed, made_with, packed_shard, read_packed, remote_packed
from datamodules.shards.raw import raw_shards
from workbench.common import files
from workbench.common.errors import UserError
from workbench.common.outside import parse
from workbench.recipe.config import Data

_SPARE_BYTES = 64 << 20
_RULE = ("aspects", "min_side", "max_aspect")


@dataclass(frozen=True)
class EncodeSummary:
    """What `encode_shards` did. reused: the shards were there already."""

    folder: Path
    num_samples: int
    num_shards: int
    num_bytes: int
    reused: bool
    left_out: LeftOut

    def __str__(self) -> str:
        done = "reused, made from the same shards and pipeline" if self.reused else "encoded"
        size = f"{self.num_samples:,} samples in {self.num_shards} shards, {self.num_bytes / 1e6:,.1f} MB"
        return "\n".join([f"{self.folder}: {size} ({done})", *lines(self.left_out, INDEX)])


def encode_shards(data: Data, load: Callable[[], Encoder], fingerprint: str, precision: str = "") -> EncodeSummary:
    """Encode the shards of `data.raw` into `data.encoded`, or reuse what the same shards and encoder made.

    An interrupted call goes on with the first unfinished shard.

    Args:
        load: called only if something remains to be encoded.
        fingerprint: identifies the weights of the encoder; it is kept in the index.
        precision: what else the encoded values depend on.

    Raises:
        UserError: raw shards that cannot be used, or were packed at another resolution, a full disk, a folder that
            holds something else.
    """
    if remote.is_remote(data.encoded) or data.encoded.startswith("pipe:"):
        raise UserError(f"encode writes to a folder, data.encoded={data.encoded} is none; set data.encoded=FOLDER")
    folder, shards = Path(data.encoded), raw_shards(data.raw)
    _check_resolution(data)
    values = [INDEX_VERSION, _identities(data.raw, shards), fingerprint, precision, data.keep_raw, data.resolution]
    settings = files.settings_hash(values + rule_of(data))
    with files.alone(folder):
        reused = files.claim(folder, settings, INDEX, "data.encoded", "encode")
        if not reused:
            with files.given_up_if_empty(folder):
                _encode_all(data, folder, shards, settings, fingerprint, load)
    dataset = EncodedDataset(str(folder))
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.tar"))
    return EncodeSummary(folder, len(dataset), len(shards), num_bytes, reused, dataset.left_out)


def rule_of(data: Data) -> list[Any]:
    """What becomes of pictures, as the hash of the settings takes it: nothing where a recipe leaves it as it is."""
    usual = Data()
    return [[key, getattr(data, key)] for key in _RULE if getattr(data, key) != getattr(usual, key)]


def _check_resolution(data: Data) -> None:
    packed = _packed(data.raw)
    if packed is not None and packed.resolution not in (None, data.resolution):
        raise UserError(
            f"{data.raw} was packed at data.resolution={packed.resolution}, and this is {data.resolution}: set "
            f"data.resolution={packed.resolution}, or pack again into another data.raw"
        )


def _packed(raw: str) -> Packed | None:
    """pack.json of the folder of raw shards, or nothing."""
    if raw.startswith("pipe:"):
        return None
    return remote_packed(raw.rstrip("/")) if remote.is_remote(raw) else read_packed(Path(raw))


def _warn_of_unknown_content(raw: str, shards: list[str]) -> None:
    """Once: what is damaged on the way to here shows only where a header, a picture or a text breaks."""
    unknown = [
        shard for shard in shards if shard.startswith("pipe:") or (remote.is_remote(shard) and not packed_shard(shard))
    ]
    if unknown:
        print(
            f"warning: no sha256 is known of {len(unknown):,} of the {len(shards):,} shards of data.raw={raw} (no "
            f"pack.json next to {unknown[0]}): damage on the way may go unseen"
        )


def _identities(raw: str, shards: list[str]) -> list[Any]:
    """What tells the shards' contents apart: sha256 of local ones, size and date of remote ones, a pipe's command."""
    found = _packed(raw)
    packed = {shard.name: (shard.bytes, shard.sha256) for shard in found.shards} if found else {}
    identities: list[Any] = []
    for shard in shards:
        path = Path(shard)
        if shard.startswith("pipe:"):
            identities.append(shard)
        elif remote.is_remote(shard):
            known = packed_shard(shard)
            identities.append(known.sha256 if known else remote.describe(shard))
        elif path.name in packed and packed[path.name][0] == path.stat().st_size:
            identities.append(packed[path.name][1])
        else:
            identities.append(files.sha256_of_file(path))
    return identities


def _encode_all(
    data: Data, folder: Path, shards: list[str], settings: str, fingerprint: str, load: Callable[[], Encoder]
) -> None:
    files.require_space(folder, _SPARE_BYTES, "encoding")
    _warn_of_unknown_content(data.raw, shards)
    encoder = load()
    empty = array(encoder.prompts([""], None)[0].embeddings)
    constant, uncond_length = npy_bytes(empty, "the empty prompt"), len(empty)
    files.write_bytes(folder / UNCOND_T2I, constant)
    records: list[dict[str, Any]] = []
    tally = Tally.of(data)
    packed = _packed(data.raw)
    with files.progress() as bar:
        task = bar.add_task(f"encoding into {folder}", total=packed.num_samples if packed else None)
        if data.encode_workers > 1:
            _encode_in_processes(data, folder, shards, uncond_length, load, lambda n: bar.advance(task, n))
        for number, shard in enumerate(shards):
            path = folder / f"{number:06d}.tar"
            record = finished(path)
            if record is None:
                record = encode_shard(data, encoder, shard, path, uncond_length, lambda n: bar.advance(task, n))
                files.require_space(folder, path.stat().st_size * (len(shards) - number - 1), f"the rest of {folder}")
            elif data.encode_workers == 1:
                bar.advance(task, len(record["samples"]))
            records.append(record)
            left_out = parse(json.dumps(record.get("left_out", {})), LeftOut, str(record_path(path)), "encode again")
            for line in left_out.broken:
                print(f"left out: {line}")
            tally.add(left_out)
            if not packed:  # the number of samples is unknown until all are read: go by what the shards held so far
                done = sum(len(each["samples"]) for each in records)
                bar.update(task, total=done * len(shards) // (number + 1), completed=done)
    constant_entry = {"bytes": len(constant), "sha256": hashlib.sha256(constant).hexdigest()}
    attribution = packed.attribution if packed else "not stated by the raw shards"
    index = {"version": INDEX_VERSION, "settings": settings, "pipeline": fingerprint, "attribution": attribution}
    index |= {"resolution": data.resolution, "left_out": tally.record()}
    index["made"] = {"pack": packed.made if packed else {}, "encode": made_with(data, ENCODING)}
    files.release(folder, INDEX, {**index, "uncond_t2i": constant_entry, **_merged(records, shards)})
    for number in range(len(shards)):
        record_path(folder / f"{number:06d}.tar").unlink()


def _encode_in_processes(
    data: Data,
    folder: Path,
    shards: list[str],
    uncond_length: int,
    load: Callable[[], Encoder],
    advance: Callable[[int], None],
) -> None:
    """Encode the shards that are not finished, each in one of `data.encode_workers` processes with its own encoder."""
    missing = [i for i in range(len(shards)) if finished(folder / f"{i:06d}.tar") is None]
    # Spawned, not forked: the parent may already hold a CUDA context.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(data.encode_workers, context, _start_worker, (load,)) as executor:
        paths = [folder / f"{i:06d}.tar" for i in missing]
        jobs = [
            executor.submit(_encode_in_worker, data, shards[i], path, uncond_length)
            for i, path in zip(missing, paths, strict=True)
        ]
        try:
            for job in as_completed(jobs):
                advance(job.result())
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


_worker_encoder: list[Encoder] = []
"""This process's own encoder, if it is a worker of `_encode_in_processes`."""


def _start_worker(load: Callable[[], Encoder]) -> None:
    torch.set_num_threads(1)
    _worker_encoder.append(load())


def _encode_in_worker(data: Data, url: str, path: Path, uncond_length: int) -> int:
    return len(encode_shard(data, _worker_encoder[0], url, path, uncond_length, lambda _: None)["samples"])


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
