"""The datamodule of a distillation run: encoded shards and the mixture plan in, one `StepData` an update out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from lightning import LightningDataModule
from torch import Tensor

from datamodules.mixture import STUDENT, MixturePlan, fake_stream, micro_batches
from datamodules.shards.encoded import EncodedDataset
from workbench.batch import Batch, Condition, Layout, StepData
from workbench.common import ranks
from workbench.common.errors import UserError
from workbench.recipe.config import Mixture

Step = TypeVar("Step", covariant=True)
AHEAD = 2
"""Steps that are prepared while one is used."""


def collate(
    dataset: EncodedDataset,
    indices: np.ndarray,
    rows: np.ndarray,
    weight: np.ndarray,
    num_samples: int,
    guided: bool = True,
    targets: bool = True,
) -> Batch:
    """One Batch of samples that share a geometry.

    Args:
        indices: (B,) samples of `dataset`. rows, weight, num_samples: as `Batch` holds them.
        guided, targets: whether the batch carries its uncond twin, and target latents (where every sample has some).
    """
    geometry = int(dataset.samples.geometry[indices[0]])
    layout, uncond_layout = dataset.layouts(geometry)
    samples, chosen = dataset.samples, indices.tolist()
    with dataset.opened() as opened:

        def read(name: str, num_rows: int, lengths: np.ndarray | None = None) -> Tensor:
            of_each = [num_rows] * len(chosen) if lengths is None else lengths.tolist()
            return torch.from_numpy(dataset.read_rows(chosen, name, num_rows, of_each, opened)).float()

        def condition(name: str, layout: Layout, lengths: np.ndarray) -> Condition:
            prompt = read(name, layout.text_tokens, lengths)
            return Condition(prompt, torch.from_numpy(lengths), layout, references)

        num_references = sum(reference.num_tokens for reference in layout.references)
        references = read("source_latent.npy", num_references) if num_references else None
        prompt = condition("prompt.npy", layout, samples.length[indices])
        targets = targets and all(map(dataset.has_target, chosen))
        target = read("latent.npy", layout.num_target_tokens) if targets else None
        is_constant = guided and not any(dataset.has(i, "uncond.npy") for i in chosen)
        if is_constant:
            uncond: Condition | None = _constant(dataset.uncond_t2i, uncond_layout, references)
        else:
            uncond = condition("uncond.npy", uncond_layout, samples.uncond_length[indices]) if guided else None
    return Batch(
        task=dataset.geometries[geometry].task,
        condition=prompt,
        uncond=uncond,
        target=target,
        rows=torch.from_numpy(rows.astype(np.int64)),
        weight=torch.from_numpy(weight.astype(np.float32)),
        num_samples=num_samples,
        category=torch.from_numpy(samples.category[indices]),
        sample_ids=tuple(samples.keys[i] for i in chosen),
        uncond_is_constant=is_constant,
    )


def _constant(prompt: np.ndarray, layout: Layout, references: Tensor | None) -> Condition:
    """Condition of one prompt (L, D), right-padded with zeros to the layout's text length."""
    padded = np.zeros((1, layout.text_tokens, prompt.shape[1]), dtype=np.float32)
    padded[0, : len(prompt)] = prompt
    return Condition(torch.from_numpy(padded), torch.tensor([len(prompt)]), layout, references)


def batches_for(
    dataset: EncodedDataset, indices: Sequence[int], guided: bool = True, most: int | None = None
) -> tuple[Batch, ...]:
    """Batches of chosen samples, one a geometry in order of first appearance, or several of at most `most` samples;
    `rows` are positions in `indices`.

    So `batch.rows` scatters what is computed for a batch back into the order asked for.
    """
    chosen = np.asarray(indices, dtype=np.int64)
    geometry = dataset.samples.geometry[chosen]
    batches = []
    for value in dict.fromkeys(geometry.tolist()):
        of_geometry = np.flatnonzero(geometry == value)
        for part in micro_batches(len(of_geometry), most or len(of_geometry)):
            rows = of_geometry[part]
            batches.append(collate(dataset, chosen[rows], rows, np.ones(len(rows)), len(rows), guided))
    return tuple(batches)


@dataclass(frozen=True)
class _Steps:
    """Step data from `start` to before `end`, in order, as one rank takes them. The next ones are prepared, and pinned
    for a GPU, in a thread: a device that works on a step leaves the interpreter idle, and worker processes take seconds
    to start."""

    data: DistillationData
    start: int
    end: int
    rank: int
    world: int

    def __iter__(self) -> Iterator[StepData]:
        thread = ThreadPoolExecutor(1, "step data", *_on_the_gpu_of_this_thread())
        ahead: deque[Future[StepData]] = deque()
        try:
            for step in range(self.start, self.end):
                ahead.append(thread.submit(self._prepared, step))
                if len(ahead) > AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)

    def _prepared(self, step: int) -> StepData:
        found = self.data.step_data(step, self.rank, self.world)
        return found.pin_memory() if torch.cuda.is_initialized() else found


def _on_the_gpu_of_this_thread() -> tuple[Callable[[int], None], tuple[int]] | tuple[()]:
    """How another thread gets the same current GPU, where there is one: pinning on another makes a context there."""
    return (torch.cuda.set_device, (torch.cuda.current_device(),)) if torch.cuda.is_initialized() else ()


class StepLoader(Generic[Step]):
    """So many steps. Not a DataLoader, so that Lightning does not split the steps over the ranks: each rank takes every
    step and its own rows of it."""

    def __init__(self, steps: Iterable[Step], num_steps: int) -> None:
        self.steps, self.num_steps = steps, num_steps

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return self.num_steps


class DistillationData(LightningDataModule):
    """Step data of a run, from any step on.

    Args:
        fake_updates: R, groups of conditions for the fake score in each step, drawn apart from the student's.
        num_steps: student updates of the whole run.
        guided: whether the student's batches carry uncond twins; the fake score's carry none.
        fake_targets: whether the fake score's batches carry targets, as the student's do.

    Attributes:
        start_step: first step of `train_dataloader`; a resumed run sets it before the fit.
    """

    def __init__(
        self,
        dataset: EncodedDataset,
        mixture: Mixture,
        *,
        fake_updates: int,
        num_steps: int,
        seed: int,
        guided: bool = True,
        fake_targets: bool = False,
    ) -> None:
        super().__init__()
        samples = dataset.samples
        self.dataset = dataset
        self.plan = MixturePlan(samples.category, samples.geometry, dataset.categories, mixture, seed)
        self.num_steps = num_steps
        self.start_step = 0
        self.fake_updates = fake_updates
        self.guided = guided
        self.fake_targets = fake_targets

    @property
    def categories(self) -> tuple[str, ...]:
        """Qualified names that `Batch.category` counts into."""
        return self.dataset.categories

    def train_dataloader(self) -> StepLoader[StepData]:
        """The remaining steps in order, this rank's rows of each."""
        if self.start_step > self.num_steps:
            raise UserError(
                f"the run is at step {self.start_step} already, trainer.updates is {self.num_steps}; set it above that"
            )
        steps = _Steps(self, self.start_step, self.num_steps, ranks.rank(), ranks.world_size())
        return StepLoader(steps, self.num_steps - self.start_step)

    def step_data(self, step: int, rank: int = 0, world: int = 1) -> StepData:
        """All that update `step` consumes on one rank."""
        return StepData(
            step=step,
            student=self._batches(step, STUDENT, rank, world, self.guided),
            fake=tuple(self._batches(step, fake_stream(r), rank, world, False) for r in range(self.fake_updates)),
        )

    def _batches(self, step: int, stream: str, rank: int, world: int, guided: bool) -> tuple[Batch, ...]:
        targets = stream == STUDENT or self.fake_targets
        batches = []
        for group in self.plan.global_batch(step, stream):
            rows, weight = group.of_rank(rank, world)
            for part in micro_batches(len(rows), self.plan.micro_batch_size):
                indices = group.samples[rows[part]]
                num_samples = len(group.samples)
                batches.append(collate(self.dataset, indices, rows[part], weight[part], num_samples, guided, targets))
        return tuple(batches)

    def of_each_shape(self, world: int = 1) -> list[tuple[Batch, Batch]]:
        """A batch of every shape that a rank sees, as the student's updates have it and as the fake score's have it."""
        return [
            (
                self._sample_batch(samples, self.guided, True),
                self._sample_batch(samples, False, self.fake_targets),
            )
            for samples in self.plan.shapes(self.num_steps, world).values()
        ]

    def _sample_batch(self, samples: np.ndarray, guided: bool, targets: bool) -> Batch:
        rows = np.arange(len(samples))
        return collate(self.dataset, samples, rows, np.ones(len(rows)), len(rows), guided, targets)

    def batches_for(self, indices: Sequence[int], guided: bool = True) -> tuple[Batch, ...]:
        """As the function of this name, over this datamodule's samples, in batches no larger than in training."""
        return batches_for(self.dataset, indices, guided, self.plan.micro_batch_size)

    def realised(self, num_steps: int) -> dict[str, int]:
        """Samples of each category in the student's batches of the first `num_steps` steps, all ranks together."""
        return self.plan.realised(num_steps)

    def passes(self, num_steps: int) -> dict[str, float]:
        """Passes over each prompt of a category after `num_steps` steps, student and fake-score batches together."""
        return self.plan.passes(num_steps, 1 + self.fake_updates)
