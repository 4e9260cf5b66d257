"""`index.json` of encoded shards: read, checked and fetched, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from datamodules.openmoji.vocabulary import CATEGORIES
from datamodules.shards import remote
from datamodules.shards.counts import INDEX
from datamodules.shards.left_out import LeftOut
from datamodules.shards.packed import Made
from workbench.common import files
from workbench.common.errors import UserError
from workbench.common.outside import Count, Outside, PlainName, Sha256, parse, read_bytes

INDEX_VERSION = 1
UNCOND_T2I = "uncond_t2i.npy"
Tokens = Annotated[int, Field(ge=0, le=1 << 20)]
"""A length, or a side in latent tokens."""
_Slots = Annotated[list[Tokens], Field(min_length=3, max_length=4)]


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
    `samples.geometry` counts into. categories: qualified names. members: of each sample, name -> shard, byte offset,
    bytes and, where the index has it, CRC-32. resolution: `data.resolution` of the encoding, None in older indexes.
    made: command -> keys of the recipe that it was given, where they are known.
    """

    folder: Path
    pipeline: str
    attribution: str
    shards: list[tuple[str, int, str]]
    geometries: list[dict[str, Any]]
    categories: tuple[str, ...]
    samples: SampleTable
    members: list[dict[str, tuple[int, ...]]]
    resolution: int | None
    left_out: LeftOut
    made: dict[str, Made]

    @property
    def content(self) -> str:
        """Hash of what training reads: the arrays of every sample in their order, however they are cut into shards
        and whatever else the shards keep."""
        arrays: list[Any] = [
            sorted((name, *place[2:]) for name, place in of.items() if name.endswith(".npy")) for of in self.members
        ]
        if any(len(place) < 3 for of in arrays for place in of):
            # Written before every member had its CRC-32.
            arrays = [[shard[2] for shard in self.shards[:-1]]]
        table = self.samples
        columns = [column.tolist() for column in (table.category, table.geometry, table.length, table.uncond_length)]
        return files.settings_hash([table.keys, self.categories, self.geometries, columns, arrays, self.shards[-1][2]])


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
    content, where = read_bytes(folder / INDEX, advice), str(folder / INDEX)
    version = parse(content, _Version, where, advice).version
    if version != INDEX_VERSION:
        raise UserError(f"{folder / INDEX} has version {version}, not {INDEX_VERSION}; encode again")
    try:
        return _parsed(folder, parse(content, _Index, where, "encode again"))
    except ValueError as error:
        raise damaged(folder, error) from error


def damaged(folder: Path, error: Exception) -> UserError:
    """The error of an index that does not hold what it should."""
    return UserError(f"{folder / INDEX} is damaged ({type(error).__name__}: {error}); encode again")


class _Version(Outside):
    version: int


class _File(Outside):
    name: PlainName = UNCOND_T2I
    bytes: Count
    sha256: Sha256


class _Sample(Outside):
    """members: name -> shard, offset, bytes and, since they are counted, CRC-32."""

    key: str
    task: Literal["t2i", "edit"]
    category: str
    geometry: Count
    length: Tokens
    uncond_length: Tokens
    members: dict[str, Annotated[list[Count], Field(min_length=3, max_length=4)]]


class _Geometry(Outside):
    task: Literal["t2i", "edit"]
    height: Tokens
    width: Tokens
    references: list[_Slots]
    uncond_references: list[_Slots]


class _Index(Outside):
    pipeline: str
    attribution: str
    resolution: Annotated[int, Field(gt=0, le=1 << 20)] | None = None
    left_out: LeftOut = Field(default_factory=LeftOut)
    made: dict[str, Made] = Field(default_factory=dict)
    uncond_t2i: _File
    shards: list[_File]
    geometries: list[_Geometry]
    samples: Annotated[list[_Sample], Field(min_length=1)]


def _parsed(folder: Path, content: _Index) -> Index:
    samples = content.samples
    shards = [(file.name, file.bytes, file.sha256) for file in (*content.shards, content.uncond_t2i)]
    qualified = [f"{sample.task}/{sample.category}" for sample in samples]
    categories = sort_categories(set(qualified))
    number = {name: i for i, name in enumerate(categories)}
    table = SampleTable(
        keys=tuple(sample.key for sample in samples),
        category=np.array([number[name] for name in qualified], dtype=np.int64),
        geometry=np.array([sample.geometry for sample in samples], dtype=np.int64),
        length=np.array([sample.length for sample in samples], dtype=np.int64),
        uncond_length=np.array([sample.uncond_length for sample in samples], dtype=np.int64),
    )
    for i, sample in enumerate(samples):
        if sample.geometry >= len(content.geometries) or content.geometries[sample.geometry].task != sample.task:
            raise ValueError(f"samples[{i}] is of no geometry of its task")
        if "prompt.npy" not in sample.members:
            raise ValueError(f"samples[{i}] has no prompt.npy")
        for shard, offset, size, *_ in sample.members.values():
            if shard >= len(content.shards) or offset + size > shards[shard][1]:
                raise ValueError(f"samples[{i}] lies outside its shard")
    return Index(
        folder,
        content.pipeline,
        content.attribution,
        shards,
        [geometry.model_dump() for geometry in content.geometries],
        categories,
        table,
        [{name: tuple(place) for name, place in sample.members.items()} for sample in samples],
        content.resolution,
        content.left_out,
        content.made,
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
