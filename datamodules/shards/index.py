"""`index.json` of encoded shards: read, checked and fetched, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.openmoji.vocabulary import CATEGORIES
from datamodules.shards import remote
from datamodules.shards.counts import INDEX
from workbench.common import files
from workbench.common.errors import UserError

INDEX_VERSION = 1
UNCOND_T2I = "uncond_t2i.npy"


@dataclass(frozen=True)
class SampleTable:
    """One entry a sample: its key, index of its category and of its geometry, valid text lengths in tokens."""

    keys: tuple[str, ...]
    category: np.ndarray
    geometry: np.ndarray
    length: np.ndarray
    uncond_length: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True)
class Index:
    """The content of `index.json`.

    shards: name, bytes and sha256 of every shard, and of the T2I constant last. geometries: as JSON holds them; what
    `samples.geometry` counts into. categories: qualified names. members: of each sample, name -> shard, byte offset and
    bytes.
    """

    folder: Path
    pipeline: str
    attribution: str
    shards: list[tuple[str, int, str]]
    geometries: list[dict[str, Any]]
    categories: tuple[str, ...]
    samples: SampleTable
    members: list[dict[str, tuple[int, int, int]]]


def sort_categories(names: set[str]) -> tuple[str, ...]:
    """Qualified names (`task/category`): those of the world in its own order, then the others by name."""
    known = [f"{task}/{name}" for task, of_task in CATEGORIES.items() for name in of_task]
    return tuple(name for name in known if name in names) + tuple(sorted(names - set(known)))


def read_index(address: str) -> Index:
    """The index of the shards in a folder or behind an http(s) address.

    Raises: UserError if it is missing, damaged or of another version.
    """
    advice = "run `workbench encode`, or change data.encoded"
    if remote.is_remote(address):
        folder = remote.cache_folder(address)
        files.write_bytes(folder / INDEX, remote.fetch_bytes(f"{address.rstrip('/')}/{INDEX}"))
    else:
        folder = Path(address)
        if not (folder / INDEX).is_file():
            raise UserError(f"no encoded shards at {address}: {INDEX} is missing; {advice}")
    content = files.read_json(folder / INDEX, advice)
    if content.get("version") != INDEX_VERSION:
        raise UserError(f"{folder / INDEX} has version {content.get('version')}, not {INDEX_VERSION}; encode again")
    try:
        return _parsed(folder, content)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise damaged(folder, error) from error


def damaged(folder: Path, error: Exception) -> UserError:
    """The error of an index that does not hold what it should."""
    return UserError(f"{folder / INDEX} is damaged ({type(error).__name__}: {error}); encode again")


def _parsed(folder: Path, content: dict[str, Any]) -> Index:
    constant, samples = content["uncond_t2i"], content["samples"]
    shards = [(str(s["name"]), int(s["bytes"]), str(s["sha256"])) for s in content["shards"]]
    shards.append((UNCOND_T2I, int(constant["bytes"]), str(constant["sha256"])))
    if any(Path(name).name != name or name.startswith(".") for name, _, _ in shards):
        raise ValueError("a shard's name is not a plain file name")
    qualified = [f"{sample['task']}/{sample['category']}" for sample in samples]
    categories = sort_categories(set(qualified))
    number = {name: i for i, name in enumerate(categories)}
    table = SampleTable(
        keys=tuple(str(sample["key"]) for sample in samples),
        category=np.array([number[name] for name in qualified], dtype=np.int64),
        geometry=np.array([sample["geometry"] for sample in samples], dtype=np.int64),
        length=np.array([sample["length"] for sample in samples], dtype=np.int64),
        uncond_length=np.array([sample["uncond_length"] for sample in samples], dtype=np.int64),
    )
    members = [{name: (int(s), int(o), int(n)) for name, (s, o, n) in x["members"].items()} for x in samples]
    geometries = list(content["geometries"])
    if not len(table) or table.geometry.max() >= len(geometries):
        raise ValueError("no samples, or a sample of unknown geometry")
    for key, of_sample in zip(table.keys, members, strict=True):
        for shard, offset, size in of_sample.values():
            if offset < 0 or size < 0 or offset + size > shards[shard][1]:
                raise ValueError(f"sample {key} lies outside its shard")
    return Index(
        folder, str(content["pipeline"]), str(content["attribution"]), shards, geometries, categories, table, members
    )


def fetch_shards(address: str, index: Index) -> list[Path]:
    """Paths of all shards (and of the T2I constant last), each there with its full size; remote ones are cached first.

    Raises: UserError naming the shard that is missing or truncated.
    """
    if remote.is_remote(address):
        return remote.cache_files(address, index.shards, index.folder)
    for name, num_bytes, _ in index.shards:
        path = index.folder / name
        if not path.is_file():
            raise UserError(f"shard {path} is missing; encode again")
        if (found := path.stat().st_size) != num_bytes:
            state = "truncated" if found < num_bytes else "not the one of the index"
            raise UserError(f"shard {path} is {state}: {found} bytes of {num_bytes}; encode again")
    return [index.folder / name for name, _, _ in index.shards]
