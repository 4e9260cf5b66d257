"""The benchmarks of the world that ships, as cases: the evaluation's only use of `datamodules.openmoji`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from datamodules.openmoji import Sample, benchmark
from workbench.evaluation.cases.case import Case, slice_indices

if TYPE_CHECKING:
    from workbench.batch import Task


def world_cases(
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
    available = max(benchmark.FULL_CASES[task], per_category)
    indices = slice_indices(available, per_category, slice_seed)
    return [_case(sample) for sample in benchmark.draw_benchmark(task, split, indices, resolution, categories)]


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
    """Whether a case is one that `world_cases` draws for the split."""
    return benchmark.is_of_split(case.id, case.task, case.category, split)


def alike(cases: Sequence[Case], split: str, resolution: int, pool: int, most: int) -> dict[str, list[np.ndarray]]:
    """T2I case of the world -> up to `most` renders, (H, W, 3) uint8, of scenes of the split that share all that its
    prompt names, looked for among the first `pool` of its category."""
    described: dict[str, dict[str, str]] = {}
    for case in cases:
        wanted = benchmark.description(case.named, case.scene, case.accepted)
        described.setdefault(case.category, {})[case.id] = wanted
    return {
        name: images
        for category, of_category in described.items()
        for name, images in benchmark.alike(category, of_category, split, resolution, pool, most).items()
    }
