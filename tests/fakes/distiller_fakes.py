"""A distiller over the closed-form denoiser, its batches, and a trainer that runs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from quiet_trainer import quiet_trainer
from torch import Tensor
from torch.utils.data import DataLoader

from workbench.backbones.base import Denoiser, Prefix
from workbench.backbones.gaussian import GaussianDenoiser
from workbench.backbones.roles import FAKE_SCORE, STUDENT, TEACHER
from workbench.batch import Batch, Condition, Layout, StepData, Task
from workbench.engine.graph_steps import StepInput
from workbench.modules.distiller import Distiller
from workbench.recipe.config import Dmd, Guidance, Mixture, Optim, Recipe, Teachers, Trainer

CATEGORIES = ("t2i/portrait", "t2i/text", "edit/text")
LAYOUT = Layout(3, 4, 4)
SPECIALIST = "teacher_text"
BATCH_SIZE = 8
NO_CLIP = 1e9


class Recording(GaussianDenoiser):
    """Notes the role of every velocity evaluation."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.evaluated: list[str] = []

    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> Tensor:
        self.evaluated.append(role)
        return super().velocity(prefix, x_t, t, role)


class Gradients(L.Callback):
    """Gradients of the student at each of its steps, before the optimiser uses them."""

    def __init__(self) -> None:
        self.of_student: list[list[Tensor]] = []
        self.of_fake_score: list[list[Tensor]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        gradients = [parameter.grad.clone() for group in optimizer.param_groups for parameter in group["params"]]
        (self.of_student if optimizer is trainer.optimizers[0] else self.of_fake_score).append(gradients)


def denoiser() -> Recording:
    generator = torch.Generator().manual_seed(0)

    def factor(scale: float) -> Tensor:
        return scale * torch.eye(2) + 0.2 * torch.randn(2, 2, generator=generator)

    start = (torch.tensor([-1.0, 0.5]), factor(1.0))
    roles = {
        STUDENT: start,
        FAKE_SCORE: start,
        TEACHER: (torch.tensor([1.0, -0.5]), factor(0.6)),
        SPECIALIST: (torch.tensor([0.0, 2.0]), factor(0.3)),
    }
    return Recording(roles, trainable=(STUDENT, FAKE_SCORE))


def make_recipe(updates: int = 1, tables: dict[str, list[list[float]]] | None = None, **sections: Any) -> Recipe:
    """Two student steps, two teachers, no clipping unless requested."""
    defaults: dict[str, Any] = {
        "teachers": Teachers(specialists={"text": "folder"}),
        "guidance": Guidance(tables=tables or {}),
        "mixture": Mixture(batch_size=BATCH_SIZE),
        "dmd": Dmd(student_steps=2),
        "optim": Optim(student_clip=NO_CLIP, fake_clip=NO_CLIP, student_lr=0.01, fake_lr=0.02, warmup_updates=0),
        "trainer": Trainer(updates=updates, accelerator="cpu", max_skipped_updates=1),
    }
    return Recipe(**{**defaults, **sections})


def batch_of(task: Task, rows: Sequence[int], num_samples: int, *, seed: int = 0, uncond: bool = False) -> Batch:
    """The given rows of a group of `num_samples` samples whose prompts follow from the seed."""
    generator = torch.Generator().manual_seed(seed + (100 if task == "edit" else 0))
    prompts = 0.3 * torch.randn(num_samples, LAYOUT.text_tokens, 2, generator=generator)
    index = torch.tensor(rows)
    condition = Condition(prompts[index], torch.full((len(rows),), LAYOUT.text_tokens), LAYOUT)
    return Batch(
        task=task,
        condition=condition,
        uncond=replace(condition, prompt=torch.zeros_like(condition.prompt)) if uncond else None,
        target=None,
        rows=index,
        weight=torch.ones(len(rows)),
        num_samples=num_samples,
        category=index % 2 if task == "t2i" else torch.full((len(rows),), 2),
        sample_ids=tuple(f"{task}-{row}" for row in rows),
    )


def step_data(step: int, *, fake_updates: int = 2, uncond: bool = False) -> StepData:
    """5 T2I samples and 3 edits a group, each task in one micro-batch."""

    def groups(stream: int) -> tuple[Batch, ...]:
        seed = 1000 * step + 10 * stream
        return (
            batch_of("t2i", range(5), 5, seed=seed, uncond=uncond),
            batch_of("edit", range(3), 3, seed=seed, uncond=uncond),
        )

    return StepData(step, groups(0), tuple(groups(1 + update) for update in range(fake_updates)))


def regroup(data: StepData, split: Any) -> StepData:
    """`data` with every batch replaced by the micro-batches that `split` makes of it."""

    def of(batches: tuple[Batch, ...]) -> tuple[Batch, ...]:
        return tuple(part for batch in batches for part in split(batch))

    return replace(data, student=of(data.student), fake=tuple(of(group) for group in data.fake))


def take(batch: Batch, index: Sequence[int], weight: Sequence[float] | None = None) -> Batch:
    rows = torch.tensor(index)
    return replace(
        batch,
        condition=replace(batch.condition, prompt=batch.condition.prompt[rows], lengths=batch.condition.lengths[rows]),
        rows=batch.rows[rows],
        weight=batch.weight[rows] if weight is None else torch.tensor(weight),
        category=batch.category[rows],
        sample_ids=tuple(batch.sample_ids[i] for i in index),
    )


def student_loss(distiller: Distiller, batch: Batch, *, step: int, state: Tensor | None = None) -> Tensor:
    """The student's loss per sample (B,) with the numbers of the distiller's present update."""
    given = StepInput(batch, distiller.draws.of(batch, STUDENT), state)
    return distiller.student_loss(given, distiller.means, step=step)


def fit(
    recipe: Recipe, data: Sequence[StepData], network: Denoiser | None = None, callbacks: Sequence[L.Callback] = ()
) -> tuple[Distiller, Gradients]:
    distiller, gradients = Distiller(network or denoiser(), recipe, CATEGORIES), Gradients()
    trainer = quiet_trainer(gradients, *callbacks)
    trainer.fit(distiller, DataLoader(data, batch_size=None, collate_fn=lambda item: item))  # type: ignore[arg-type]
    return distiller, gradients
