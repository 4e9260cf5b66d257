"""The datamodule of pretraining: encoded shards that kept their captions in, one `CaptionStep` an update out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules import files
from datamodules.distillation import StepLoader
from datamodules.encoded import TEXT_TOKENS_MULTIPLE, EncodedDataset
from datamodules.mixture import STUDENT, MixturePlan, micro_batches
from workbench import rng
from workbench.batch import CaptionBatch, CaptionStep, Layout
from workbench.config import Mixture
from workbench.errors import UserError

Tokenize = Callable[[str, int], list[int]]
"""(text, number of image slots) -> token ids of the whole prompt."""


READING_THREADS = 8


@dataclass(frozen=True)
class _Held:
    """float16 latents (N, C), of edits also (R, C), and the source image (H, W, 3) uint8."""

    latent: np.ndarray
    source_latent: np.ndarray | None
    image: np.ndarray | None


class PretrainingData(LightningDataModule):
    """Step data of a pretraining run, from any step on.

    Args:
        tokenize: prompt to ids. num_system_tokens: how many of them the transformer never sees.
        prompt_drop: share of the samples whose prompt is replaced by the empty one.

    Raises:
        UserError: a sample that pretraining would draw has no target image or no caption.
    """

    def __init__(
        self,
        dataset: EncodedDataset,
        mixture: Mixture,
        *,
        tokenize: Tokenize,
        num_system_tokens: int,
        prompt_drop: float,
        num_steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        for i in range(len(dataset)):
            if not dataset.has_target(i):
                raise UserError(f"sample {dataset.samples.keys[i]} has no target image, and pretraining needs one")
        samples = dataset.samples
        self.dataset = dataset
        self.plan = MixturePlan(samples.category, samples.geometry, dataset.categories, mixture, seed)
        self.num_system_tokens = num_system_tokens
        self.prompt_drop = prompt_drop
        self.num_steps = num_steps
        self.seed = seed
        self.start_step = 0
        slots = [sum(item.num_slots for item in geometry.references) for geometry in dataset.geometries]
        self._dropped = [tokenize("", num) for num in slots]
        self._ids = [tokenize(dataset.read_text(i), slots[samples.geometry[i]]) for i in range(len(dataset))]
        self._padded = [self._padded_length(geometry) for geometry in range(len(slots))]
        self._held = self._read_all()

    @property
    def categories(self) -> tuple[str, ...]:
        """Qualified names of the samples' categories."""
        return self.dataset.categories

    def realised(self, num_steps: int) -> dict[str, int]:
        """Samples of each category in the first `num_steps` steps."""
        return self.plan.realised(num_steps)

    def train_dataloader(self) -> StepLoader:
        """The remaining steps in order."""
        remaining = self.num_steps - self.start_step
        # No worker processes: everything is in memory, and a step is gathered while the device still runs the last one.
        loader: DataLoader[CaptionStep] = DataLoader(_Steps(self, self.start_step), batch_size=None)
        return StepLoader(loader, remaining)  # type: ignore[arg-type]

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
                dropped = (drop[part] < self.prompt_drop).tolist()
                batches.append(self._collate(group.samples[rows[part]], rows[part], dropped, len(rows)))
        return CaptionStep(step, tuple(batches))

    def batches_for(self, indices: Sequence[int], dropped: bool = False) -> tuple[CaptionBatch, ...]:
        """Batches of chosen samples, one a geometry; `rows` are positions in `indices`. dropped: empty prompts."""
        chosen = np.asarray(indices, dtype=np.int64)
        geometry = self.dataset.samples.geometry[chosen]
        batches = []
        for value in dict.fromkeys(geometry.tolist()):
            rows = np.flatnonzero(geometry == value)
            batches.append(self._collate(chosen[rows], rows, [dropped] * len(rows), len(rows)))
        return tuple(batches)

    def _collate(self, indices: np.ndarray, rows: np.ndarray, dropped: list[bool], num_samples: int) -> CaptionBatch:
        dataset = self.dataset
        geometry = int(dataset.samples.geometry[indices[0]])
        shape = dataset.geometries[geometry]
        ids = [
            self._dropped[geometry] if drop else self._ids[i] for i, drop in zip(indices.tolist(), dropped, strict=True)
        ]
        token_ids = torch.zeros(len(ids), self._padded[geometry], dtype=torch.int64)
        for row, of_sample in zip(token_ids, ids, strict=True):
            row[: len(of_sample)] = torch.tensor(of_sample)
        held = [self._held[i] for i in indices.tolist()]
        images, references = None, None
        if shape.references:
            images = torch.from_numpy(np.stack([item.image for item in held if item.image is not None]))
            sources = [item.source_latent for item in held if item.source_latent is not None]
            references = torch.from_numpy(np.stack(sources)).float()
        return CaptionBatch(
            task=shape.task,
            token_ids=token_ids,
            images=images,
            lengths=torch.tensor([len(of_sample) - self.num_system_tokens for of_sample in ids]),
            layout=Layout(self._padded[geometry] - self.num_system_tokens, shape.height, shape.width, shape.references),
            references=references,
            target=torch.from_numpy(np.stack([item.latent for item in held])).float(),
            rows=torch.from_numpy(rows),
            weight=torch.ones(len(rows)),
            num_samples=num_samples,
            sample_ids=tuple(dataset.samples.keys[i] for i in indices.tolist()),
        )

    def _read_all(self) -> list[_Held]:
        """Every sample, decoded once and kept in memory: some 70 KB an edit of 128 x 128, 8 KB otherwise."""
        with ThreadPoolExecutor(READING_THREADS) as executor, files.progress() as bar:
            reads = executor.map(self._read, range(len(self.dataset)))
            return list(bar.track(reads, total=len(self.dataset), description="reading the encoded shards"))

    def _read(self, i: int) -> _Held:
        sample, source = self.dataset.read(i, uncond=False), self.dataset.read_source(i)
        assert sample.latent is not None
        return _Held(sample.latent, sample.source_latent, None if source is None else np.asarray(source))

    def _padded_length(self, geometry: int) -> int:
        mine = np.flatnonzero(self.dataset.samples.geometry == geometry)
        longest = max((len(self._ids[i]) for i in mine.tolist()), default=0)
        longest = max(longest, len(self._dropped[geometry])) - self.num_system_tokens
        return self.num_system_tokens - (-longest // TEXT_TOKENS_MULTIPLE) * TEXT_TOKENS_MULTIPLE


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
