"""The root module: one training step is R fake-score updates and one student update over joint task batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workbench import guidance, rollout, schedules
from workbench.backbone import QwenImage21, RoleDenoiser
from workbench.batch import Batch, StepData
from workbench.config import Recipe
from workbench.errors import UserError
from workbench.modules import diagnostics
from workbench.modules.draws import Draws
from workbench.modules.fake_score import FakeScoreModule
from workbench.modules.root import RootModule
from workbench.modules.student import StudentModule
from workbench.modules.student_loss import StudentLoss
from workbench.modules.teachers import TeacherEnsemble
from workbench.roles import FAKE_SCORE, STUDENT, teacher_roles
from workbench.sharding import shard

Loss = tuple[Batch, Callable[[], Tensor]]
"""A batch, and what computes its loss per sample (B,)."""


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
            recipe.teachers.cfg_rescale,
        )
        num_steps = len(times) - 1
        tables = schedules.tables(recipe.guidance, num_steps=num_steps, specialists=list(recipe.teachers.specialists))
        table = guidance.lambda_table(tables, self.categories, num_steps=num_steps, teachers=teachers)
        self.register_buffer("lambdas", table, persistent=False)
        self._student_loss = StudentLoss(
            recipe.dmd, self.student, self.fake_score, self.teachers, renoise_intervals(recipe)
        )
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
        self._set_learning_rates()
        graded_step = self.draws.integer(self.student.num_steps, "graded_step")
        fake_updates, states = self._rollouts(data, graded_step)
        for losses in fake_updates:
            self._update(FAKE_SCORE, losses)
        losses = [
            (batch, partial(self.student_loss, batch, step=graded_step, state=state))
            for batch, state in zip(data.student, states, strict=True)
        ]
        norm = self._update(STUDENT, losses)
        self.means.add(f"per_step/gradient_norm/all/step{graded_step}", norm)
        self.num_updates += 1

    @property
    def draws(self) -> Draws:
        """The random numbers of this training step."""
        return Draws(self.recipe.seed, self.num_updates)

    def _rollouts(self, data: StepData, graded_step: int) -> tuple[list[list[Loss]], list[Tensor | None]]:
        """The losses of every fake-score update, and the state that each student batch goes on from, where one of the
        rollouts behind them has passed it."""
        num_steps, options = self.student.num_steps, self.recipe.dmd
        none: list[Tensor | None] = [None] * len(data.student)
        if options.fake_samples == "fresh":
            drawn = [self.draws.integer(num_steps, f"fake{r}/step") for r in range(len(data.fake))]
            return [
                [(batch, partial(self.fake_score_loss, batch, stream=f"fake{r}", step=drawn[r])) for batch in batches]
                for r, batches in enumerate(data.fake)
            ], none
        steps = rollout.spread_steps(
            num_steps, options.fake_updates, lambda i: self.draws.permutation(num_steps, f"fake/steps{i}")
        )
        of_student = options.fake_samples == "student_rollout"
        batches, stream = (data.student, STUDENT) if of_student else (data.fake[0], "fake0")
        evaluations = max([*steps, graded_step - 1 if of_student else 0]) + 1
        found = [self.student.trajectory(batch, self.draws, stream, evaluations) for batch in batches]
        losses: list[list[Loss]] = [
            [
                (batch, partial(self.fake_score_loss, batch, stream=f"fake{r}", step=step, x0=one.clean[step]))
                for batch, one in zip(batches, found, strict=True)
            ]
            for r, step in enumerate(steps)
        ]
        return losses, [one.states[graded_step] for one in found] if of_student else none

    def fake_score_loss(self, batch: Batch, *, stream: str, step: int, x0: Tensor | None = None) -> Tensor:
        """Loss per sample (B,) of the fake score on samples of the student's `step`: `x0` (B, N, C), or new ones."""
        if x0 is None:
            with torch.no_grad():
                x0 = self.student.draw(batch, self.draws, stream, step)
        options = self.recipe.dmd
        uniform = self.draws.uniform(batch, f"{stream}/t")
        t = rollout.renoise_time(
            uniform, shift=options.renoise_shift, low=options.renoise_min, high=options.renoise_max
        )
        eps = self.draws.normal(batch, f"{stream}/eps", x0.shape[-1])
        return self.fake_score.loss(batch.condition, x0, eps, t)

    def student_loss(self, batch: Batch, *, step: int, state: Tensor | None = None) -> Tensor:
        """Loss per sample (B,) of the student's `step`, from its `state` (B, N, C) there where that is known."""
        weights, active = self.lambdas[batch.category, step], self.active[batch.task][step]
        terms, seen = self._student_loss(batch, self.draws, step=step, weights=weights, active=active, state=state)
        teachers = ("base", *self.recipe.teachers.specialists)
        diagnostics.record(
            self.means, batch, seen, step=step, weights=weights, categories=self.categories, teachers=teachers
        )
        for name, losses in terms.items():
            if name != STUDENT:
                self.means.add(f"loss/{name}/{batch.task}", losses, batch.weight)
        return torch.stack(list(terms.values())).sum(dim=0) if len(terms) > 1 else terms[STUDENT]

    def _update(self, role: str, losses: Sequence[Loss]) -> Tensor:
        """One optimiser step of `role` over the mean loss of the global batch; its gradient norm."""
        optim = self.recipe.optim
        clip = optim.student_clip if role == STUDENT else optim.fake_clip
        shares = [(partial(self._share, role, batch, loss), batch.sample_ids) for batch, loss in losses]
        return self.guarded_step(role, self._optimizer(role), self.parameters_of(role), clip, shares)

    def _share(self, role: str, batch: Batch, loss: Callable[[], Tensor]) -> Tensor:
        """This batch's share of the mean loss over the global batch."""
        losses = loss()
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


def renoise_intervals(recipe: Recipe) -> list[tuple[float, float]]:
    """[low, high] of the re-noising time at each student step.

    Raises:
        UserError: an interval is empty.
    """
    options, times = recipe.dmd, student_times(recipe).tolist()
    intervals = [
        rollout.renoise_interval(options.renoise_tied, times, step, options.renoise_min, options.renoise_max)
        for step in range(len(times) - 1)
    ]
    for step, (low, high) in enumerate(intervals):
        if not low < high:
            raise UserError(
                f"dmd.renoise_tied={options.renoise_tied} leaves student step {step} (t = {times[step]:g} to "
                f"{times[step + 1]:g}) no re-noising time within [{options.renoise_min}, {options.renoise_max}]: widen "
                "dmd.renoise_min and renoise_max, or lower dmd.student_shift"
            )
    return intervals
