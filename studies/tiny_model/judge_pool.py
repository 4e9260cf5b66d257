"""The images that the local judge trains on: rendered by worker processes without end, kept on the device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from studies.tiny_model import judge_data

Rendered = tuple[np.ndarray, np.ndarray]


class Pool:
    """At most `size` rendered images, replaced while training goes on, so that few are seen often.

    first: images to wait for at the start. workers: processes of `executor`.
    """

    def __init__(
        self, executor: ProcessPoolExecutor, workers: int, device: torch.device, *, size: int, first: int,
        resolution: int, seed: int,
    ) -> None:  # fmt: skip
        self.chunk = min(256, size)
        size -= size % self.chunk
        self.images = torch.empty((size, resolution, resolution, 3), dtype=torch.uint8, device=device)
        self.labels = torch.empty((size, judge_data.NUM_COLUMNS), dtype=torch.int16, device=device)
        self.jobs: Iterator[Future[Rendered]] = (
            executor.submit(judge_data.render, "train", start, self.chunk, resolution, seed)
            for start in itertools.count(0, self.chunk)
        )
        self.pending = [next(self.jobs) for _ in range(2 * workers)]
        self.written = 0
        for _ in track(range(0, min(size, first), self.chunk), description="rendering the first images"):
            self._take()

    def _take(self) -> None:
        images, labels = self.pending.pop(0).result()
        self.pending.append(next(self.jobs))
        start = self.written % len(self.images)
        self.images[start : start + self.chunk] = torch.from_numpy(images).to(self.images.device)
        self.labels[start : start + self.chunk] = torch.from_numpy(labels).to(self.labels.device)
        self.written += self.chunk

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) in [0, 1] and their label columns (B, columns)."""
        if self.pending[0].done():
            self._take()
        there = min(self.written, len(self.images))
        rows = torch.randint(there, (batch_size,), generator=generator, device=self.images.device)
        return self.images[rows].permute(0, 3, 1, 2).float() / 255, self.labels[rows].long()
