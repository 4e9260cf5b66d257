"""The benchmarks of the world: samples of its held-out splits, and pictures that fit a prompt as well as its target."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING, Any

from datamodules.openmoji.raster import Array
from datamodules.openmoji.vocabulary import CATEGORIES
from datamodules.openmoji.world import Sample, draw, plan
from workbench.common.cores import usable_cores

if TYPE_CHECKING:
    from workbench.batch import Task

FULL_CASES: dict[Task, int] = {"t2i": 600, "edit": 250}
"""Samples a category of the full benchmarks: 3 x 600 and 6 x 250."""
PARALLEL_CASES = 256
"""From so many samples on, worker processes draw them: below, they take longer to start."""


def draw_benchmark(
    task: Task, split: str, indices: Sequence[int], resolution: int, categories: Sequence[str] = ()
) -> list[Sample]:
    """Samples `indices` of every category of `task` in a held-out split, category by category. categories: some of
    them; all when empty."""
    chosen = [category for category in CATEGORIES[task] if not categories or category in categories]
    places = [(category, index) for category in chosen for index in indices]
    columns: list[list[Any]] = [
        [task] * len(places),
        [category for category, _ in places],
        [split] * len(places),
        [index for _, index in places],
        [0] * len(places),
        [resolution] * len(places),
    ]
    workers = min(usable_cores(), len(places) // PARALLEL_CASES)
    if workers < 2:
        return [draw(*row) for row in zip(*columns, strict=True)]
    # Spawned, not forked: this process may already hold a CUDA context and runs threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as executor:
        return list(executor.map(draw, *columns, chunksize=32))


def is_of_split(key: str, task: Task, category: str, split: str) -> bool:
    """Whether `key` is that of a sample which `draw_benchmark` draws for the split."""
    return key.startswith(f"{task}-{category}-{split}-")


def alike(
    category: str, described: Mapping[str, str], split: str, resolution: int, pool: int, most: int
) -> dict[str, list[Array]]:
    """Name -> up to `most` T2I renders, (H, W, 3) uint8, whose scenes fit the description (see `description`) of that
    name, among the first `pool` of the split's category: draws from the distribution that a prompt leaves open."""
    places: dict[str, list[int]] = {}
    for index in range(pool if described else 0):
        planned = plan("t2i", category, split, index)
        found = description(planned.named, planned.target.heads(), planned.accepted)
        places.setdefault(found, []).append(index)
    return {
        name: [draw("t2i", category, split, at, resolution=resolution).target for at in places.get(wanted, [])[:most]]
        for name, wanted in described.items()
    }


def description(named: Sequence[str], scene: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]]) -> str:
    """What a prompt names, and the values that it gives or accepts."""
    values = {name: accepted.get(name, scene.get(name)) for name in sorted(named)}
    return json.dumps({k: sorted(v) if isinstance(v, list | tuple) else v for k, v in values.items()})
