"""The student's loss: distribution matching at one graded step, and the terms that a recipe may add to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.backbones.base import Prefix
from workbench.batch import Batch
from workbench.common.errors import UserError
from workbench.engine.draws import Numbers
from workbench.method import adversarial, dmd, flow, rollout
from workbench.modules.fake_score import FakeScoreModule
from workbench.modules.student import StudentModule
from workbench.modules.teachers import TeacherEnsemble, TeacherPrefixes, mixed
from workbench.recipe.config import Dmd


@dataclass(frozen=True)
class Comparison:
    """Sample and predictions of one student update, all (B, N, C) without gradient: the student's sample, the fake
    score's and the mixed teachers' predictions at x_t, and those of each teacher that ran, by column."""

    x: Tensor
    x0_fake: Tensor
    x0_real: Tensor
    x0_of_teachers: dict[int, Tensor]


@dataclass(frozen=True)
class _Noised:
    """x_t (B, N, C) and t (B,) of a student's sample, and the fake score's prediction there. adversary: loss (B,) and
    gradient (B, N, C) of the adversarial term at the same x_t."""

    x_t: Tensor
    t: Tensor
    x0_fake: Tensor
    adversary: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class StudentLoss:
    """Loss per sample of the student's graded step. Its networks are the modules of the distiller.

    intervals: [low, high] of the re-noising time at each student step.
    augmentation_intervals: likewise of the noise level of the guidance term, which `decoupled` alone reads.
    """

    options: Dmd
    student: StudentModule
    fake_score: FakeScoreModule
    teachers: TeacherEnsemble
    intervals: list[tuple[float, float]]
    augmentation_intervals: list[tuple[float, float]]

    def __call__(
        self,
        batch: Batch,
        numbers: Numbers,
        *,
        step: int,
        weights: Tensor,
        active: Sequence[bool],
        state: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Comparison | None]:
        """Terms by name, each (B,) and already weighted, whose sum is the loss; `student` is DMD itself. The
        comparison is None where the first step is trained without DMD.

        weights: lambda of each sample at this step, (B, M + 1). active: which teachers have weight.
        state: x_{t_k} of the student where a rollout has computed it, (B, N, C).
        """
        prefix = self.student.network.prefix(batch.condition)
        x = self.student.draw(batch, numbers, step, state=state, prefix=prefix)
        matches = step > 0 or self.options.first_step == "added"
        # Before the teachers' prefixes, so that the fake score's is gone by then.
        by_fake = self._by_fake_score(batch, numbers, x.detach(), step) if matches else None
        of_teachers = self.teachers.prefixes(batch, active, weights)
        terms, seen = {}, None
        if by_fake is not None:
            direction, seen = self._direction(numbers, x.detach(), by_fake, step, weights, of_teachers)
            terms["student"] = dmd.dmd_loss(x, direction)
            if by_fake.adversary is not None:
                losses, gradient = by_fake.adversary
                weight = self.options.adversarial_weight
                terms["adversarial"] = weight * adversarial.with_gradient(losses, x, gradient)
        if self.options.first_step_weight and step == 0:
            terms["first_step"] = self.options.first_step_weight * self._first_step(numbers, x, weights, of_teachers)
        if self.options.data_weight:
            terms["data"] = self.options.data_weight * self._data(batch, numbers, step, prefix)
        return terms, seen

    @torch.no_grad()
    def _by_fake_score(self, batch: Batch, numbers: Numbers, x: Tensor, step: int) -> _Noised:
        """The student's sample noised again, as the fake score sees it."""
        options, adversary = self.options, None
        low, high = self.intervals[step]
        t = rollout.renoise_time(numbers.uniform("t"), shift=options.renoise_shift, low=low, high=high)
        eps = self._normal(numbers, "eps")
        x_t = flow.interpolate(x, eps, t)
        if options.adversarial_weight:
            x0_fake, losses, gradient = self.fake_score.x0_and_adversary(batch.condition, x, eps, t, step)
            adversary = losses, gradient
        else:
            x0_fake = self.fake_score.x0(batch.condition, x_t, t, step)
        return _Noised(x_t, t, x0_fake, adversary)

    @torch.no_grad()
    def _direction(
        self, numbers: Numbers, x: Tensor, noised: _Noised, step: int, weights: Tensor, of_teachers: TeacherPrefixes
    ) -> tuple[Tensor, Comparison]:
        options, teachers = self.options, self.teachers
        each = teachers.predictions(of_teachers, noised.x_t, noised.t, guided=not options.decoupled)
        seen = Comparison(x, noised.x0_fake, mixed(each, weights), each)
        direction = dmd.dmd_direction(x, noised.x0_fake, seen.x0_real)
        if options.decoupled:
            direction = direction + self._augmentation(numbers, x, step, weights, of_teachers)
        return direction, seen

    def _augmentation(
        self, numbers: Numbers, x: Tensor, step: int, weights: Tensor, of_teachers: TeacherPrefixes
    ) -> Tensor:
        """The guidance term at a noise level below the student's, because coarser structure is fixed in its state."""
        options = self.options
        low, high = self.augmentation_intervals[step]
        uniform = numbers.uniform("augmentation/t")
        t = rollout.renoise_time(uniform, shift=options.renoise_shift, low=low, high=high)
        x_t = flow.interpolate(x, self._normal(numbers, "augmentation/eps"), t)
        pair = self.teachers.cond_and_uncond(of_teachers, x_t, t, weights)
        return dmd.augmentation_direction(x, *pair, self.teachers.cfg_scale)

    def _first_step(self, numbers: Numbers, x: Tensor, weights: Tensor, of_teachers: TeacherPrefixes) -> Tensor:
        noise, t_next = self._normal(numbers, "noise"), self.student.times[1]
        share = torch.linspace(0, 1, self.options.first_step_teacher_steps + 1, device=x.device)
        state = self.teachers.sample(of_teachers, noise, 1 - share * (1 - t_next), weights)
        return dmd.first_step_loss(x, noise, state, t_next)

    def _data(self, batch: Batch, numbers: Numbers, step: int, prefix: Prefix) -> Tensor:
        target = target_of(batch, "data_weight")
        eps, t = self._normal(numbers, "data/eps"), self.student.times[step].expand(len(batch.rows))
        x_t = flow.interpolate(target, eps, t)
        predicted = self.student.network.velocity(prefix, x_t, t)
        return dmd.flow_matching_loss(predicted, flow.velocity(target, eps))

    def _normal(self, numbers: Numbers, name: str) -> Tensor:
        return numbers.normal(name, self.student.network.num_channels)


def target_of(batch: Batch, option: str) -> Tensor:
    """Target latents (B, N, C) of a batch.

    Raises:
        UserError: a sample has none, but the recipe's dmd.`option` needs it.
    """
    if batch.target is None:
        raise UserError(
            f"dmd.{option} needs a target of every sample, but not all of {', '.join(batch.sample_ids[:4])}, "
            "... have one: leave it out, or encode data with pictures"
        )
    return batch.target
