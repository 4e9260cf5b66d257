"""The two benchmarks as lists of cases: fixed slices of the OpenMoji splits (a user's own cases are in `case_file`)."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.batch import Task
from workbench.recipe.config import CATEGORIES

if TYPE_CHECKING:
    from datamodules.openmoji import Sample

BENCHES: dict[Task, str] = {"t2i": "t2i_bench", "edit": "editing_bench"}
"""Task -> name of its benchmark."""
FULL_CASES: dict[Task, int] = {"t2i": 600, "edit": 250}
"""Cases a category of the full benchmarks: 3 x 600 and 6 x 250."""
PARALLEL_CASES = 256
"""From so many cases on, worker processes draw them: below, they take longer to start."""


@dataclass(frozen=True, eq=False)
class Case:
    """One prompt to answer. source, target: (H, W, 3) uint8 or None. seed: of its noise; its id when absent."""

    id: str
    task: Task
    category: str
    prompt: str
    source: np.ndarray | None = None
    target: np.ndarray | None = None
    scene: dict[str, Any] = field(default_factory=dict)
    source_scene: dict[str, Any] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    accepted: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    exact: bool = True
    seed: int | None = None

    @property
    def bench(self) -> str:
        """Name of the benchmark the case belongs to."""
        return BENCHES[self.task]

    def noise_seed(self, seed: int | str) -> int:
        """Seed of this case's noise under evaluation seed `seed`: whatever model answers and whichever cases stand
        beside it, the noise is the same."""
        own = self.id if self.seed is None else self.seed
        return int.from_bytes(hashlib.sha256(f"{seed}/{own}".encode()).digest()[:6], "little")


def openmoji_cases(
    task: Task,
    split: str,
    per_category: int,
    resolution: int = 128,
    categories: Sequence[str] = (),
    slice_seed: int = 0,
) -> list[Case]:
    """`per_category` cases of every category of `task` in a held-out split, category by category. A smaller slice is a
    prefix of a larger one. categories: some of them, all when empty. slice_seed: which of the full benchmark's cases;
    0 takes the first ones."""
    from datamodules.openmoji import draw

    chosen = [category for category in CATEGORIES[task] if not categories or category in categories]
    indices = slice_indices(max(FULL_CASES[task], per_category), per_category, slice_seed)
    cells = [(category, index) for category in chosen for index in indices]
    columns: list[list[Any]] = [
        [task] * len(cells),
        [category for category, _ in cells],
        [split] * len(cells),
        [index for _, index in cells],
        [0] * len(cells),
        [resolution] * len(cells),
    ]
    workers = min(usable_cores(), len(cells) // PARALLEL_CASES)
    if workers < 2:
        return [_case(draw(*row)) for row in zip(*columns, strict=True)]
    # Spawned, not forked: this process may already hold a CUDA context and runs threads.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as executor:
        return [_case(sample) for sample in executor.map(draw, *columns, chunksize=32)]


def slice_indices(available: int, count: int, seed: int) -> list[int]:
    """`count` of `available` cases, or all: the first ones under seed 0, else those that a seeded shuffle has first."""
    order = np.random.default_rng(seed).permutation(available) if seed else np.arange(available)
    return [int(index) for index in order[:count]]


def _case(sample: Sample) -> Case:
    return Case(
        id=sample.key,
        task=sample.task,
        category=sample.category,
        prompt=sample.text,
        source=sample.source,
        target=sample.target,
        scene=sample.scene,
        source_scene=sample.source_scene or {},
        named=tuple(sample.named),
        kept=tuple(sample.kept),
        accepted=dict(sample.accepted),
        exact=sample.exact,
    )


def is_of_world(case: Case, split: str) -> bool:
    """Whether a case is one that `openmoji_cases` draws for the split."""
    return case.id.startswith(f"{case.task}-{case.category}-{split}-")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def openmoji_alike(
    cases: Sequence[Case], split: str, resolution: int, pool: int, most: int
) -> dict[str, list[np.ndarray]]:
    """T2I case -> up to `most` renders, (H, W, 3) uint8, of scenes of the split that share all that its prompt names,
    looked for among the first `pool` of its category: draws from the distribution that the prompt leaves open."""
    from datamodules.openmoji import draw, plan

    found: dict[str, list[np.ndarray]] = {}
    for category in CATEGORIES["t2i"]:
        wanted = {
            case.id: _described(case.named, case.scene, case.accepted) for case in cases if case.category == category
        }
        places: dict[str, list[int]] = {}
        for index in range(pool if wanted else 0):
            planned = plan("t2i", category, split, index)
            places.setdefault(_described(planned.named, planned.target.heads(), planned.accepted), []).append(index)
        for case, description in wanted.items():
            chosen = places.get(description, [])[:most]
            found[case] = [draw("t2i", category, split, at, resolution=resolution).target for at in chosen]
    return found


def _described(named: Sequence[str], scene: Mapping[str, Any], accepted: Mapping[str, Sequence[Any]]) -> str:
    """What a prompt names and the values it gives or accepts."""
    values = {name: accepted.get(name, scene.get(name)) for name in sorted(named)}
    return json.dumps({k: sorted(v) if isinstance(v, list | tuple) else v for k, v in values.items()})
