"""Images of the world as one uint8 array, drawn by worker processes: what the autoencoder trains on."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import track

from datamodules.openmoji import CATEGORIES
from workbench.batch import TASKS, Task
from workbench.common.parent import spawned_pool

_ROWS_PER_TASK = 256


class Source(NamedTuple):
    """One kind of image: the target or, for edits, the image before the edit."""

    task: Task
    category: str
    before: bool


def sources(text_repeats: int = 2) -> tuple[Source, ...]:
    """Every kind of image once, those with letters `text_repeats` times: letters are what an autoencoder smears."""
    kinds = [
        Source(task, category, before)
        for task in TASKS
        for category in CATEGORIES[task]
        for before in ((False,) if task == "t2i" else (False, True))
    ]
    return tuple(kind for kind in kinds for _ in range(text_repeats if kind.category == "text" else 1))


def render(folder: Path, name: str, count: int, split: str, resolution: int, workers: int, seed: int = 0) -> np.ndarray:
    """`count` images, the kinds of `sources` in turn: (count, resolution, resolution, 3) uint8, backed by a file.

    workers: processes that draw; 0 draws in this one.
    """
    path = folder / f"{name}.npy"
    shape = (count, resolution, resolution, 3)
    np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape).flush()
    starts = range(0, count, _ROWS_PER_TASK)
    spans = [(start, min(start + _ROWS_PER_TASK, count)) for start in starts]
    jobs = [(path, start, stop, split, resolution, seed) for start, stop in spans]
    for _ in track(_run(jobs, workers), total=len(jobs), description=f"drawing {name} images"):
        pass
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _run(jobs: list[tuple[Path, int, int, str, int, int]], workers: int) -> Iterator[None]:
    if workers == 0:
        for job in jobs:
            _draw_rows(*job)
            yield
        return
    with spawned_pool(workers) as executor:
        futures: list[Future[None]] = [executor.submit(_draw_rows, *job) for job in jobs]
        yield from (future.result() for future in as_completed(futures))


def _draw_rows(path: Path, start: int, stop: int, split: str, resolution: int, seed: int) -> None:
    from datamodules.openmoji import draw

    kinds = sources()
    rows = np.load(path, mmap_mode="r+", allow_pickle=False)
    for row in range(start, stop):
        kind = kinds[row % len(kinds)]
        sample = draw(kind.task, kind.category, split, row // len(kinds), seed=seed, resolution=resolution)
        rows[row] = sample.source if kind.before else sample.target
