"""`pack.json` of raw shards: what is in them, and by which size and hash they are known."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from workbench.common.outside import Count, Outside, PlainName, Sha256, read_json

FINISHED = "pack.json"


class PackedShard(Outside):
    """counts: samples by qualified category."""

    name: PlainName
    bytes: Count
    sha256: Sha256
    counts: dict[str, Count]


class Packed(Outside):
    """The content of `pack.json`."""

    attribution: str = "not stated by the raw shards"
    counts: dict[str, Count] = Field(default_factory=dict)
    shards: list[PackedShard]

    @property
    def num_samples(self) -> int:
        return sum(self.counts.values())


def read_packed(folder: Path) -> Packed | None:
    """What `pack` wrote next to the shards in `folder`; None where they are someone else's.

    Raises: UserError if the file is damaged.
    """
    path = folder / FINISHED
    return read_json(path, Packed, f"delete {folder} and pack again") if path.is_file() else None


def packed_shard(url: str) -> PackedShard | None:
    """What `pack.json` next to a local shard says of it."""
    path = Path(url)
    packed = read_packed(path.parent) if path.is_file() else None
    return next((shard for shard in packed.shards if shard.name == path.name), None) if packed else None
