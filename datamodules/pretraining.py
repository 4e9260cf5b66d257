"""The datamodule of pretraining: images with captions in, one `CaptionStep` an update out.

Where the samples come from is a `Source`: encoded shards that kept their captions, or the world, drawn as it is needed
(`studies/tiny_model/world_source.py`). Everything is in memory, on the device it will be read on, and a step is
gathered there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.distillation import StepLoader
from datamodules.mixture import STUDENT, MixturePlan, micro_batches
from datamodules.shards.encoded import TEXT_TOKENS_MULTIPLE, EncodedDataset, Geometry
from workbench.batch import CaptionBatch, CaptionStep, Layout
from workbench.common import files
from workbench.common.errors import UserError
from workbench.method import rng
from workbench.recipe.config import Mixture

Tokenize = Callable[[str, int], list[int]]
"""(text, number of image slots) -> token ids of the whole prompt."""

READING_THREADS = 8


@dataclass(frozen=True)
class Held:
    """n samples of one geometry, in order.

    token_ids: (n + 1, S) int64, right-padded; the last row is the empty prompt. lengths: (n + 1,) valid ones.
    latents: (n, N, C) float16. references: (n, R, C) float16 and images: (n, H, W, 3) uint8 of edits.
    """

    token_ids: Tensor
    lengths: Tensor
    latents: Tensor
    references: Tensor | None
    images: Tensor | None


class Source(Protocol):
    """Samples that a mixture can be planned over.

    category, geometry: (S,) index of each sample into `categories` (qualified names) and `geometries`.
    """

    categories: tuple[str, ...]
    geometries: tuple[Geometry, ...]
    category: np.ndarray
    geometry: np.ndarray

    def held(self, geometry: int, step: int) -> Held:
        """The samples of a geometry as update `step` sees them."""

    def key(self, index: int, step: int) -> str:
        """Name of a sample as update `step` sees it."""

    def text(self, index: int) -> str:
        """Caption or instruction of a sample as update 0 sees it."""


class PretrainingData(LightningDataModule):
    """Step data of a pretraining run, from any step on.

    Args:
        num_system_tokens: leading tokens of every prompt that the transformer never sees.
        prompt_drop: share of the samples whose prompt is replaced by the empty one.
    """

    def __init__(
        self, source: Source, mixture: Mixture, *, num_system_tokens: int, prompt_drop: float, num_steps: int, seed: int
    ) -> None:
        super().__init__()
        self.source = source
        self.plan = MixturePlan(source.category, source.geometry, source.categories, mixture, seed)
        self.num_system_tokens = num_system_tokens
        self.prompt_drop = prompt_drop
        self.num_steps = num_steps
        self.seed = seed
        self.start_step = 0
        self._place = places(source.geometry, len(source.geometries))

    @property
    def categories(self) -> tuple[str, ...]:
        """Qualified names of the samples' categories."""
        return self.source.categories

    def realised(self, num_steps: int) -> dict[str, int]:
        """Samples of each category in the first `num_steps` steps."""
        return self.plan.realised(num_steps)

    def train_dataloader(self) -> StepLoader[CaptionStep]:
        """The remaining steps in order."""
        remaining = self.num_steps - self.start_step
        # No worker processes: everything is in memory, and a step is gathered while the device still runs the last one.
        loader: DataLoader[CaptionStep] = DataLoader(_Steps(self, self.start_step), batch_size=None)
        return StepLoader(loader, remaining)

    def step_data(self, step: int) -> CaptionStep:
        """All that update `step` consumes."""
        batches = []
        for group in self.plan.global_batch(step, STUDENT):
            rows, _ = group.of_rank(0, 1)
            drop = rng.uniform(
                torch.from_numpy(rows),
                seed=self.seed,
                stream=f"prompt_drop/{group.task}/{group.geometry}",
                step=step,
                num_rows=len(rows),
            )
            for part in micro_batches(len(rows), self.plan.micro_batch_size):
                dropped = drop[part] < self.prompt_drop
                batches.append(self._collate(group.samples[rows[part]], rows[part], dropped, len(rows), step))
        return CaptionStep(step, tuple(batches))

    def batches_for(self, indices: Sequence[int], dropped: bool = False) -> tuple[CaptionBatch, ...]:
        """Batches of chosen samples as update 0 sees them, one a geometry; `rows` are positions in `indices`.

        dropped: with empty prompts.
        """
        chosen = np.asarray(indices, dtype=np.int64)
        geometry = self.source.geometry[chosen]
        batches = []
        for value in dict.fromkeys(geometry.tolist()):
            rows = np.flatnonzero(geometry == value)
            drop = torch.full((len(rows),), dropped)
            batches.append(self._collate(chosen[rows], rows, drop, len(rows), step=0))
        return tuple(batches)

    def _collate(
        self, indices: np.ndarray, rows: np.ndarray, dropped: Tensor, num_samples: int, step: int
    ) -> CaptionBatch:
        geometry = int(self.source.geometry[indices[0]])
        shape, held = self.source.geometries[geometry], self.source.held(geometry, step)
        device = held.latents.device
        at = torch.from_numpy(self._place[indices])
        prompt = torch.where(dropped, len(held.latents), at).to(device, non_blocking=True)
        at = at.to(device, non_blocking=True)
        text_tokens = held.token_ids.shape[1] - self.num_system_tokens
        return CaptionBatch(
            task=shape.task,
            token_ids=held.token_ids[prompt],
            images=None if held.images is None else held.images[at],
            lengths=held.lengths[prompt] - self.num_system_tokens,
            layout=Layout(text_tokens, shape.height, shape.width, shape.references),
            references=None if held.references is None else held.references[at].float(),
            target=held.latents[at].float(),
            rows=torch.from_numpy(rows).to(device, non_blocking=True),
            weight=torch.ones(len(rows), device=device),
            num_samples=num_samples,
            sample_ids=tuple(self.source.key(i, step) for i in indices.tolist()),
        )


class ShardSource:
    """Encoded shards that kept their images in (`data.keep_raw`), decoded once: some 70 KB an edit of 128 x 128.

    Raises:
        UserError: a sample has no target image, no caption, or several sources.
    """

    def __init__(self, dataset: EncodedDataset, tokenize: Tokenize) -> None:
        for i in range(len(dataset)):
            if not dataset.has_target(i):
                raise UserError(f"sample {dataset.samples.keys[i]} has no target image, and pretraining needs one")
        self._dataset = dataset
        self.categories, self.geometries = dataset.categories, tuple(dataset.geometries)
        self.category, self.geometry = dataset.samples.category, dataset.samples.geometry
        texts = [dataset.read_text(i) for i in range(len(dataset))]
        arrays = self._read_all()
        self._held = []
        for geometry, shape in enumerate(self.geometries):
            mine = np.flatnonzero(self.geometry == geometry).tolist()
            ids = padded_ids([texts[i] for i in mine], shape, tokenize)
            latents, references, images = (_stack([arrays[i][part] for i in mine]) for part in range(3))
            assert latents is not None
            self._held.append(Held(*ids, latents, references, images))

    def held(self, geometry: int, step: int) -> Held:
        """See `Source`."""
        return self._held[geometry]

    def key(self, index: int, step: int) -> str:
        """See `Source`."""
        return self._dataset.samples.keys[index]

    def text(self, index: int) -> str:
        """See `Source`."""
        return self._dataset.read_text(index)

    def _read_all(self) -> list[tuple[np.ndarray | None, ...]]:
        with ThreadPoolExecutor(READING_THREADS) as executor, files.progress() as bar:
            reads = executor.map(self._read, range(len(self._dataset)))
            return list(bar.track(reads, total=len(self._dataset), description="reading the encoded shards"))

    def _read(self, i: int) -> tuple[np.ndarray | None, ...]:
        sample, sources = self._dataset.read(i, uncond=False), self._dataset.read_sources(i)
        if len(sources) > 1:
            raise UserError(f"sample {self.key(i, 0)} has {len(sources)} source images, and pretraining takes one")
        return sample.latent, sample.source_latent, np.asarray(sources[0]) if sources else None


def places(geometry: np.ndarray, num_geometries: int) -> np.ndarray:
    """(S,) position of each sample among those of its geometry."""
    place = np.zeros(len(geometry), dtype=np.int64)
    for value in range(num_geometries):
        mine = geometry == value
        place[mine] = np.arange(mine.sum())
    return place


def padded_ids(texts: Sequence[str], shape: Geometry, tokenize: Tokenize) -> tuple[Tensor, Tensor]:
    """Token ids of prompts and of the empty one after them, (n + 1, S) right-padded, and valid lengths (n + 1,)."""
    slots = sum(reference.num_slots for reference in shape.references)
    ids = [torch.tensor(tokenize(text, slots)) for text in (*texts, "")]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    extra = -padded.shape[1] % TEXT_TOKENS_MULTIPLE
    return torch.nn.functional.pad(padded, (0, extra)), torch.tensor([len(row) for row in ids])


def _stack(arrays: Sequence[np.ndarray | None]) -> Tensor | None:
    there = [array for array in arrays if array is not None]
    return torch.from_numpy(np.stack(there)) if there else None


class _Steps(Dataset[CaptionStep]):
    """Map-style: item i is the data of step `start + i`."""

    def __init__(self, data: PretrainingData, start: int) -> None:
        self.data, self.start = data, start

    def __len__(self) -> int:
        return max(0, self.data.num_steps - self.start)

    def __getitem__(self, i: int) -> CaptionStep:
        if i >= len(self):
            raise IndexError(i)
        return self.data.step_data(self.start + i)
