"""The benchmarks of the world that ships, as cases: the evaluation's only use of `datamodules.openmoji`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

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
    return [case_of(sample) for sample in benchmark.draw_benchmark(task, split, indices, resolution, categories)]


def case_of(sample: Sample) -> Case:
    """What a sample asks for, and what is right."""
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
        text=str(sample.scene["word"]) if "word" in sample.named else "",
        order=_left_to_right(sample),
        difficulty=sample.difficulty,
    )


def _left_to_right(sample: Sample) -> tuple[str, ...]:
    """The objects that a caption names, in its order, which is theirs from left to right; those that it calls by their
    group are left out."""
    if sample.task != "t2i" or "objects" not in sample.named:
        return ()
    found = {name: re.search(rf"\b{name}\b", sample.text) for name in sample.scene["objects"]}
    starts = {name: match.start() for name, match in found.items() if match}
    return tuple(sorted(starts, key=lambda name: starts[name]))
