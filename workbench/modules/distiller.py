"""The root module: one training step is R fake-score updates and one student update over joint task batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workbench import dmd, flow, guidance, rng, rollout, schedules
from workbench.backbone import QwenImage21, RoleDenoiser
from workbench.batch import Batch, StepData
from workbench.config import Recipe
from workbench.modules.fake_score import FakeScoreModule
from workbench.modules.root import RootModule
from workbench.modules.student import StudentModule
from workbench.modules.teachers import TeacherEnsemble
from workbench.roles import FAKE_SCORE, STUDENT, teacher_roles
from workbench.sharding import shard

LossOfBatch = Callable[[Batch], Tensor]


class Distiller(RootModule):
    """Distribution matching distillation with step-wise multi-teacher guidance (arXiv 2606.03746).

    num_updates counts student updates.
    categories: qualified names that `Batch.category` indexes.
    active: task -> student step -> which teachers run.
    """

    lambdas: Tensor

    def __init__(self, denoiser: QwenImage21 | nn.Module, recipe: Recipe, categories: Sequence[str]) -> None:
        super().__init__(total_updates=recipe.trainer.updates, max_skipped=recipe.trainer.max_skipped_updates)
        self.recipe = recipe
        self.categories = tuple(categories)
        self.denoiser = denoiser
        teachers = teacher_roles(recipe.teachers)
        times = student_times(recipe)
        self.student = StudentModule(RoleDenoiser(denoiser, STUDENT), times, recipe.dmd.rollout)  # type: ignore[arg-type]
        self.fake_score = FakeScoreModule(RoleDenoiser(denoiser, FAKE_SCORE))  # type: ignore[arg-type]
        self.teachers = TeacherEnsemble(
            [RoleDenoiser(denoiser, role) for role in teachers],  # type: ignore[arg-type]
            recipe.teachers.cfg_scale,
        )
        num_steps = len(times) - 1
        tables = schedules.tables(recipe.guidance, num_steps=num_steps, specialists=list(recipe.teachers.specialists))
        table = guidance.lambda_table(tables, self.categories, num_steps=num_steps, teachers=teachers)
        self.register_buffer("lambdas", table, persistent=False)
        planned = [recipe.mixture.has_weight(name) for name in self.categories]
        self.active = guidance.active_teachers(table, self.categories, planned)

    def configure_model(self) -> None:
        if self.device_mesh is not None and isinstance(self.denoiser, QwenImage21):
            shard(self.denoiser, self.device_mesh, self.recipe.trainer.precision)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        optim = self.recipe.optim
        options: dict[str, Any] = {"betas": (optim.beta1, optim.beta2), "weight_decay": optim.weight_decay}
        return [
            torch.optim.AdamW(self.parameters_of(STUDENT), lr=optim.student_lr, **options),
            torch.optim.AdamW(self.parameters_of(FAKE_SCORE), lr=optim.fake_lr, **options),
        ]

    def parameters_of(self, role: str) -> list[nn.Parameter]:
        """Trainable parameters that only `role` owns."""
        return [parameter for _, parameter in self.named_parameters_of(role)]

    def named_parameters_of(self, role: str) -> list[tuple[str, nn.Parameter]]:
        """As `parameters_of`, with names relative to the denoiser."""
        named = self.denoiser.named_parameters()
        return [(name, parameter) for name, parameter in named if parameter.requires_grad and role in name.split(".")]

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters_of(STUDENT) + self.named_parameters_of(FAKE_SCORE))

    def averaged_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters_of(STUDENT))

    def learning_rates(self) -> dict[str, float]:
        return {f"learning_rate/{role}": self._optimizer(role).param_groups[0]["lr"] for role in (STUDENT, FAKE_SCORE)}

    def training_step(self, data: StepData, _: int) -> None:
        graded_step = rng.integer(
            self.student.num_steps, seed=self.recipe.seed, stream="graded_step", step=self.num_updates
        )
        self._set_learning_rates()
        for update, batches in enumerate(data.fake):
            stream = f"fake{update}"
            step = rng.integer(
                self.student.num_steps, seed=self.recipe.seed, stream=f"{stream}/step", step=self.num_updates
            )
            self._update(FAKE_SCORE, batches, partial(self.fake_score_loss, stream=stream, step=step))
        self._update(STUDENT, data.student, partial(self.student_loss, step=graded_step))
        self.num_updates += 1

    def fake_score_loss(self, batch: Batch, *, stream: str, step: int) -> Tensor:
        """Loss per sample (B,) of the fake score on samples of the student's `step`."""
        with torch.no_grad():
            x0 = self._student_sample(batch, stream, step)
        eps = self._normal(batch, x0, f"{stream}/eps")
        return self.fake_score.loss(batch.condition, x0, eps, self._renoise_time(batch, stream))

    def student_loss(self, batch: Batch, *, step: int) -> Tensor:
        """DMD loss per sample (B,) of the student's `step`."""
        x = self._student_sample(batch, STUDENT, step)
        t = self._renoise_time(batch, STUDENT)
        with torch.no_grad():
            x_t = flow.interpolate(x, self._normal(batch, x, "student/eps"), t)
            x0_fake = self.fake_score.x0(batch.condition, x_t, t)
            weights = self.lambdas[batch.category, step]
            active = self.active[batch.task][step]
            x0_real = self.teachers.x0(batch.condition, batch.uncond, x_t, t, weights, active)
            direction = dmd.dmd_direction(x, x0_fake, x0_real)
        self.means.add(f"x0_gap/{batch.task}", (x0_fake - x0_real).abs().flatten(1).mean(1), batch.weight)
        return dmd.dmd_loss(x, direction)

    def _student_sample(self, batch: Batch, stream: str, step: int) -> Tensor:
        shape = (batch.condition.layout.num_target_tokens, self._num_channels)
        like = batch.condition.prompt
        noise = self._normal(batch, like, f"{stream}/noise", shape)
        fresh = None
        if self.recipe.dmd.rollout == "renoise":
            fresh = [self._normal(batch, like, f"{stream}/fresh{k}", shape) for k in range(step)]
        return self.student.graded_sample(batch.condition, noise, step, fresh)

    @property
    def _num_channels(self) -> int:
        return int(self.denoiser.num_channels)  # type: ignore[arg-type]

    def _normal(self, batch: Batch, like: Tensor, stream: str, shape: tuple[int, ...] | None = None) -> Tensor:
        return rng.normal(
            shape or tuple(like.shape[1:]),
            batch.rows,
            seed=self.recipe.seed,
            stream=f"{stream}/{batch.task}/{batch.condition.layout}",
            step=self.num_updates,
            num_rows=batch.num_samples,
        ).to(like.dtype)

    def _renoise_time(self, batch: Batch, stream: str) -> Tensor:
        uniform = rng.uniform(
            batch.rows,
            seed=self.recipe.seed,
            stream=f"{stream}/t/{batch.task}/{batch.condition.layout}",
            step=self.num_updates,
            num_rows=batch.num_samples,
        )
        options = self.recipe.dmd
        return rollout.renoise_time(
            uniform, shift=options.renoise_shift, low=options.renoise_min, high=options.renoise_max
        )

    def _update(self, role: str, batches: Iterable[Batch], loss_of_batch: LossOfBatch) -> None:
        """One optimiser step of `role` over the mean loss of the global batch."""
        optim = self.recipe.optim
        clip = optim.student_clip if role == STUDENT else optim.fake_clip
        losses = [(partial(self._share, role, batch, loss_of_batch), batch.sample_ids) for batch in batches]
        self.guarded_step(role, self._optimizer(role), self.parameters_of(role), clip, losses)

    def _share(self, role: str, batch: Batch, loss_of_batch: LossOfBatch) -> Tensor:
        """This batch's share of the mean loss over the global batch."""
        losses = loss_of_batch(batch)
        self.means.add(f"loss/{role}/{batch.task}", losses, batch.weight)
        return (losses * batch.weight).sum() / self.recipe.mixture.batch_size

    def _optimizer(self, role: str) -> Any:
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        return optimizers[(STUDENT, FAKE_SCORE).index(role)]

    def _set_learning_rates(self) -> None:
        optim = self.recipe.optim
        for role, lr in ((STUDENT, optim.student_lr), (FAKE_SCORE, optim.fake_lr)):
            self.set_learning_rate(self._optimizer(role), [lr], optim.warmup_updates, optim.final_lr_fraction)


def student_times(recipe: Recipe) -> Tensor:
    """The student's grid, (K + 1,)."""
    if recipe.dmd.student_times:
        return rollout.explicit_grid(recipe.dmd.student_times)
    return rollout.time_grid(recipe.dmd.student_steps, recipe.dmd.student_shift)
