"""`pack.json` of raw shards: what is in them, and by which size and hash they are known."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from pydantic import Field

from datamodules.shards import remote
from datamodules.shards.left_out import LeftOut
from workbench.common.errors import UserError
from workbench.common.outside import Count, Outside, PlainName, Sha256, parse, read_json
from workbench.recipe.config import Data
from workbench.recipe.reading import flat_values

FINISHED = "pack.json"
Made = dict[str, bool | int | float | str]
"""Dotted key of a recipe -> its value."""
_BOTH = ("resolution", "broken", "max_broken")
PACKING = ("source", "samples", "aspects", "min_side", "max_aspect", "max_buckets", "samples_per_shard", *_BOTH)
ENCODING = ("raw", "keep_raw", "encode_dtype", *_BOTH)
"""Keys of `data` that the shards depend on."""


class PackedShard(Outside):
    """counts: samples by qualified category."""

    name: PlainName
    bytes: Count
    sha256: Sha256
    counts: dict[str, Count]


class Packed(Outside):
    """The content of `pack.json`. resolution: that the pictures were brought to; None where it does not say.
    made: keys of the recipe that `pack` was given."""

    attribution: str = "not stated by the raw shards"
    resolution: Count | None = None
    made: Made = Field(default_factory=dict)
    left_out: LeftOut = Field(default_factory=LeftOut)
    counts: dict[str, Count] = Field(default_factory=dict)
    shards: list[PackedShard]

    @property
    def num_samples(self) -> int:
        return sum(self.counts.values())


def made_with(data: Data, keys: Sequence[str]) -> Made:
    """Those keys of `data`, for the commands that make the shards again."""
    return {key: value for key, value in flat_values(data, "data.").items() if key.split(".")[1] in keys}


def read_packed(folder: Path) -> Packed | None:
    """What `pack` wrote next to the shards in `folder`; None where they are someone else's.

    Raises: UserError if the file is damaged.
    """
    path = folder / FINISHED
    return read_json(path, Packed, f"delete {folder} and pack again") if path.is_file() else None


@lru_cache(maxsize=8)
def remote_packed(folder: str) -> Packed | None:
    """`pack.json` behind an http(s) address of a folder; None where there is none.

    Raises: UserError if it is damaged.
    """
    url = f"{folder}/{FINISHED}"
    try:
        content = remote.fetch_bytes(url)
    except UserError:
        return None
    return parse(content, Packed, url, "pack again there")


def packed_shard(url: str) -> PackedShard | None:
    """What `pack.json` next to a shard, on the disk or on its server, says of it."""
    folder, _, name = url.rpartition("/")
    if remote.is_remote(url):
        packed = remote_packed(folder)
    else:
        name = Path(url).name
        packed = read_packed(Path(url).parent) if Path(url).is_file() else None
    return next((shard for shard in packed.shards if shard.name == name), None) if packed else None
