"""The benchmarks of the world: samples of its held-out splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from datamodules.openmoji.vocabulary import CATEGORIES
from datamodules.openmoji.world import Sample, draw
from workbench.common.cores import usable_cores
from workbench.common.parent import Helpers
from workbench.common.progress import has_own_bar

if TYPE_CHECKING:
    from workbench.batch import Task

FULL_CASES: dict[Task, int] = {"t2i": 600, "edit": 250}
"""Samples a category of the full benchmarks: 3 x 600 and 6 x 250."""
SHOWN_CASES = 60
"""From so many samples on, drawing them takes seconds, and shows a bar."""
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
    with Helpers(min(usable_cores(), len(places) // PARALLEL_CASES)) as helpers:
        return list(_shown(helpers.map(draw, *columns, at_once=32), len(places)))


def _shown(samples: Iterable[Sample], count: int) -> Iterable[Sample]:
    """`samples`, and on a terminal a bar where there are many."""
    if count < SHOWN_CASES or not has_own_bar():
        return samples
    from rich.progress import track

    return track(samples, "drawing the cases", total=count, transient=True)
