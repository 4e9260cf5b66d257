"""Raw shards to encoded ones, through any encoder of prompts and images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.shards import remote
from datamodules.shards.arrays import npy_bytes
from datamodules.shards.counts import INDEX
from datamodules.shards.encode_jobs import (
    Job,
    Load,
    Progress,
    Work,
    encode_among_ranks,
    encode_here,
    encode_in_processes,
    left_out_of,
)
from datamodules.shards.encode_shard import finished, read_record, record_path
from datamodules.shards.encoded import EncodedDataset
from datamodules.shards.index import INDEX_VERSION, UNCOND_T2I
from datamodules.shards.left_out import LeftOut, Tally, lines
from datamodules.shards.packed import ENCODING, Packed, made_with, packed_shard, read_packed, remote_packed
from datamodules.shards.raw import raw_shards
from datamodules.shards.team import Team
from workbench.common import files
from workbench.common.errors import UserError
from workbench.recipe.config import Data

_SPARE_BYTES = 64 << 20
_RULE = ("aspects", "min_side", "max_aspect", "max_buckets")


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


@dataclass(frozen=True)
class Inputs:
    """What an encoding is made from.

    fingerprint: identifies the weights of the encoder; it is kept in the index. settings: hash of all that the encoded
    values depend on. packed: pack.json of the raw shards, None where they are someone else's.
    """

    shards: list[str]
    fingerprint: str
    settings: str
    packed: Packed | None

    @classmethod
    def of(cls, data: Data, fingerprint: str, precision: str) -> Inputs:
        """See `encode_shards`."""
        shards, packed = raw_shards(data.raw), _packed(data.raw)
        _check_resolution(data, packed)
        identities = _identities(packed, shards)
        values = [INDEX_VERSION, identities, fingerprint, precision, data.keep_raw, data.resolution]
        return cls(shards, fingerprint, files.settings_hash(values + rule_of(data)), packed)

    def jobs(self, folder: Path) -> list[Job]:
        """Every shard, done or not."""
        return [_job(folder, number, shard) for number, shard in enumerate(self.shards)]


def encode_shards(data: Data, load: Load, fingerprint: str, precision: str = "") -> EncodeSummary:
    """Encode the shards of `data.raw` into `data.encoded`, or reuse what the same shards and encoder made.

    An interrupted call goes on with the shards that are not finished, in as many processes as one likes.

    Args:
        load: called only if something remains to be encoded.
        fingerprint: identifies the weights of the encoder; it is kept in the index.
        precision: what else the encoded values depend on.

    Raises:
        UserError: raw shards that cannot be used, or were packed at another resolution, a full disk, a folder that
            holds something else.
    """
    return _lead(data, load, Inputs.of(data, fingerprint, precision), None)


def encode_shards_among_ranks(
    data: Data, load: Load, fingerprint: Callable[[], str], precision: str, team: Team
) -> EncodeSummary | None:
    """The same in each rank of a team, whose first one writes the index; the others return nothing.

    Raises:
        UserError: as `encode_shards`.
        SystemExit: another rank failed, and said why.
    """
    if not team.leads:
        _follow(data, load, team)
        return None
    try:
        return _lead(data, load, Inputs.of(data, fingerprint(), precision), team)
    except BaseException:
        team.give_up()
        raise


def _lead(data: Data, load: Load, inputs: Inputs, team: Team | None) -> EncodeSummary:
    folder = output_folder(data)
    with files.alone(folder):
        reused = files.claim(folder, inputs.settings, INDEX, "data.encoded", "encode")
        if not reused:
            # Other ranks may finish a shard when this one has given up: the claim stays.
            with files.given_up_if_empty(folder) if team is None else nullcontext():
                _encode_missing(data, folder, inputs, load, team)
                _merge(data, folder, inputs)
        elif team is not None:
            team.announce([])
        # The index holds them.
        files.remove_if_there(*folder.glob(record_path(Path("*")).name))
    dataset = EncodedDataset(str(folder))
    num_bytes = sum(path.stat().st_size for path in folder.glob("*.tar"))
    return EncodeSummary(folder, len(dataset), len(inputs.shards), num_bytes, reused, dataset.left_out)


def output_folder(data: Data) -> Path:
    """`data.encoded`, where it is a folder. Raises: UserError."""
    if remote.is_remote(data.encoded) or data.encoded.startswith("pipe:"):
        raise UserError(f"encode writes to a folder, data.encoded={data.encoded} is none; set data.encoded=FOLDER")
    return Path(data.encoded)


def rule_of(data: Data) -> list[Any]:
    """What becomes of pictures, as the hash of the settings takes it: nothing where a recipe leaves it as it is."""
    usual = Data()
    return [[key, getattr(data, key)] for key in _RULE if getattr(data, key) != getattr(usual, key)]


def _check_resolution(data: Data, packed: Packed | None) -> None:
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


def _identities(found: Packed | None, shards: list[str]) -> list[Any]:
    """What tells the shards' contents apart: sha256 of local ones, size and date of remote ones, a pipe's command."""
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


def _encode_missing(data: Data, folder: Path, inputs: Inputs, load: Load, team: Team | None) -> None:
    """Have every shard encoded that is not there yet, and the empty prompt."""
    files.require_space(folder, _SPARE_BYTES, "encoding")
    _warn_of_unknown_content(data.raw, inputs.shards)
    jobs = inputs.jobs(folder)
    records = finished_shards(jobs)
    progress = Progress(data, folder, len(jobs), inputs.packed.num_samples if inputs.packed else None)
    progress.show(sum(len(record["samples"]) for record in records if record), len(jobs) - records.count(None))
    missing = [number for number, record in enumerate(records) if record is None]
    work = Work(data, [jobs[number] for number in missing], load, partial(_keep_empty, folder), progress)
    with progress.bar:
        if team is not None:
            team.announce(missing)
            encode_among_ranks(work, team)
        elif data.encode_workers > 1:
            encode_in_processes(work)
        else:
            encode_here(work)


def _follow(data: Data, load: Load, team: Team) -> None:
    """The part of a rank that does not lead."""
    missing: list[int] | None = team.plan()
    if missing is None:
        raise SystemExit(2)
    folder, shards = output_folder(data), raw_shards(data.raw)
    jobs = [_job(folder, number, shards[number]) for number in missing]
    if jobs:
        # Its bar is never shown: the first rank's counts the samples of all.
        encode_among_ranks(Work(data, jobs, load, lambda _: None, Progress(data, folder, len(shards), None)), team)


def _job(folder: Path, number: int, shard: str) -> Job:
    return Job(shard, folder / f"{number:06d}.tar")


def finished_shards(jobs: list[Job]) -> list[dict[str, Any] | None]:
    """The record of each shard that is there, several read at once."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(finished, [job.path for job in jobs]))


def _keep_empty(folder: Path, empty: np.ndarray) -> None:
    files.write_bytes(folder / UNCOND_T2I, npy_bytes(empty, "the empty prompt"))


def _merge(data: Data, folder: Path, inputs: Inputs) -> None:
    """Write the index of shards that are all there."""
    records, tally = [], Tally.of(data)
    jobs, packed = inputs.jobs(folder), inputs.packed
    for job in jobs:
        record = read_record(job.path)
        if record is None:
            raise UserError(f"{job.path} is not to be seen here: every host must have the same folder data.encoded")
        records.append(record)
        tally.add(left_out_of(record, folder))
    constant = (folder / UNCOND_T2I).read_bytes()
    index: dict[str, Any] = {
        "version": INDEX_VERSION,
        "settings": inputs.settings,
        "pipeline": inputs.fingerprint,
        "attribution": packed.attribution if packed else "not stated by the raw shards",
        "resolution": data.resolution,
        "left_out": tally.record(),
        "made": {"pack": packed.made if packed else {}, "encode": made_with(data, ENCODING)},
        "uncond_t2i": {"bytes": len(constant), "sha256": hashlib.sha256(constant).hexdigest()},
    }
    files.release(folder, INDEX, index | _merged(records, inputs.shards))


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
