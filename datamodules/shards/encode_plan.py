"""What an encoding would do, from a look at some of the raw samples and a few batches: `workbench encode --dry-run`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from datamodules.shards.buckets import Size
from datamodules.shards.encode_batch import FamilyLimits
from datamodules.shards.encode_shard import ShardEncoder, read_fitted
from datamodules.shards.left_out import Tally
from datamodules.shards.raw import RawSample
from workbench.batch import Task
from workbench.recipe.config import Data

SHARDS_SEEN, SAMPLES_SEEN = 8, 64
"""Shards that are looked into, evenly spread, and samples at the beginning of each."""
_TIMED_BATCHES = 4
_HEADERS_BYTES = 4096
"""Of a sample in a tar: a header and padding for each of its members."""


@dataclass
class Look:
    """What a look at raw samples found.

    num_shards: looked into. num_samples: looked at. is_all: whether there are no others. sizes: samples by task, size
    in pixels and sizes of their sources. tally: what would be left out. kept: some samples of every shard seen, fitted.
    read_s: seconds that reading, decoding and scaling took.
    """

    tally: Tally
    num_shards: int = 0
    num_samples: int = 0
    is_all: bool = True
    sizes: Counter[tuple[Task, Size, tuple[Size, ...]]] = field(default_factory=Counter)
    kept: list[RawSample] = field(default_factory=list)
    read_s: float = 0.0

    @property
    def read_per_s(self) -> float:
        """Samples that one process reads in a second."""
        return self.num_samples / self.read_s if self.read_s else 0.0


@dataclass(frozen=True)
class Pace:
    """Of one process. samples_per_s: encoded, reading aside. sample_bytes: of an encoded sample in a shard."""

    samples_per_s: float
    sample_bytes: float


def look_at(data: Data, shards: Sequence[str], limits: FamilyLimits) -> Look:
    """Read the first samples of some shards, evenly spread.

    Raises:
        UserError: samples that cannot be used, as `encode` would.
    """
    found = Look(Tally.of(data))
    num_seen = min(len(shards), SHARDS_SEEN)
    found.is_all = num_seen == len(shards)
    most = -(-_TIMED_BATCHES * data.encode_batch_size // num_seen)
    started = time.perf_counter()
    for i in range(num_seen):
        shard = shards[i * len(shards) // num_seen]
        samples = read_fitted(data, limits, shard, found.tally)
        for number, raw in enumerate(islice(samples, SAMPLES_SEEN)):
            sources = tuple(image.size for image in raw.sources)
            found.sizes[raw.task, (raw.meta["width"], raw.meta["height"]), sources] += 1
            found.num_samples += 1
            if number < most:
                found.kept.append(raw)
        found.is_all &= next(samples, None) is None
        found.num_shards += 1
    found.read_s = time.perf_counter() - started
    return found


def pace_of(data: Data, encoder: ShardEncoder, samples: list[RawSample]) -> Pace:
    """Encode `samples`, the second time against the clock, and keep nothing.

    Raises:
        UserError: samples that cannot be encoded.
    """
    encoder.encode_samples(data.raw, samples)
    started = time.perf_counter()
    encoded = encoder.encode_samples(data.raw, samples)
    seconds = time.perf_counter() - started
    num_bytes = sum(len(content) for each in encoded for content in each.members.values())
    if data.keep_raw:
        num_bytes += sum(len(content) for raw in samples for content in raw.members.values())
    return Pace(len(samples) / seconds, num_bytes / len(samples) + _HEADERS_BYTES)
