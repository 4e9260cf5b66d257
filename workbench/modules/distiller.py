"""The root module: one training step is R fake-score updates and one student update over batches of both tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workbench.backbones import placement
from workbench.backbones.base import Denoiser, RoleDenoiser
from workbench.backbones.roles import FAKE_SCORE, STUDENT, teacher_roles, trained_parameters
from workbench.batch import Batch, StepData
from workbench.common.errors import UserError
from workbench.engine import lanes
from workbench.engine.draws import Draws
from workbench.engine.graph_steps import GraphRunner, GraphStep, StepInput, run_eagerly
from workbench.engine.means import Means
from workbench.engine.moments import AdamW8bit
from workbench.engine.optimisation import uncached_casts
from workbench.engine.task_gradients import TaskGradients
from workbench.method import guidance, rng, rollout
from workbench.modules import diagnostics
from workbench.modules.classifier import Classifier
from workbench.modules.fake_score import FakeScoreModule
from workbench.modules.root import RootModule
from workbench.modules.student import StudentModule
from workbench.modules.student_loss import StudentLoss, target_of
from workbench.modules.teachers import TeacherEnsemble
from workbench.recipe import lambda_tables
from workbench.recipe.config import Recipe
from workbench.recipe.student_times import augmentation_intervals, renoise_intervals, student_sampling

Loss = tuple[Batch, Callable[[], Tensor]]
"""A batch, and what computes its loss per sample (B,)."""
States = tuple[Tensor, ...]
"""State (B, N, C) of each batch."""
MAX_GRAPHED_PARAMETERS = 300_000_000
"""Parameters, all roles together, up to which `trainer.cuda_graphs=auto` uses graphs: larger networks are not
launch-bound, and a graph keeps its memory."""


class Distiller(RootModule):
    """Distribution matching distillation with step-wise multi-teacher guidance (arXiv 2606.03746).

    num_updates counts student updates.
    categories: qualified names that `Batch.category` indexes.
    active: task -> student step -> which teachers run.
    """

    lambdas: Tensor

    def __init__(self, denoiser: Denoiser, recipe: Recipe, categories: Sequence[str]) -> None:
        super().__init__(total_updates=recipe.trainer.updates, max_skipped=recipe.trainer.max_skipped_updates)
        self.recipe = recipe
        self.categories = tuple(categories)
        self.denoiser = denoiser
        teachers = teacher_roles(recipe.teachers)
        times = student_sampling(recipe.dmd).grid()
        self.student = StudentModule(RoleDenoiser(denoiser, STUDENT), times, recipe.dmd.rollout)
        known_steps = len(times) - 1 if recipe.dmd.fake_per_step else 0
        self.fake_score = FakeScoreModule(RoleDenoiser(denoiser, FAKE_SCORE), known_steps, self._classifier())
        self.teachers = TeacherEnsemble(
            [RoleDenoiser(denoiser, role) for role in teachers],
            recipe.teachers.cfg_scale,
            recipe.teachers.cfg_rescale,
        )
        num_steps = len(times) - 1
        tables = lambda_tables.tables(
            recipe.guidance, num_steps=num_steps, specialists=list(recipe.teachers.specialists)
        )
        table = guidance.lambda_table(tables, self.categories, num_steps=num_steps, teachers=teachers)
        self.register_buffer("lambdas", table, persistent=False)
        self.objective = StudentLoss(
            recipe.dmd,
            self.student,
            self.fake_score,
            self.teachers,
            renoise_intervals(recipe.dmd),
            augmentation_intervals(recipe.dmd) if recipe.dmd.decoupled else [],
        )
        planned = [recipe.mixture.has_weight(name) for name in self.categories]
        self.active = guidance.active_teachers(table, self.categories, planned)
        self._graph_runner: GraphRunner | None = None

    def configure_model(self) -> None:
        if self.device_mesh is None:
            placement.fill(self.denoiser, self.trainer.strategy.root_device)
        else:
            placement.shard(self.denoiser, self.device_mesh, self.recipe.trainer.precision)
            if self.fake_score.classifier is not None:
                placement.shard_whole(self.fake_score.classifier, self.device_mesh)

    def _classifier(self) -> Classifier | None:
        if not self.recipe.dmd.adversarial_weight:
            return None
        if not self.denoiser.num_features:
            raise UserError(
                "dmd.adversarial_weight reads features of the network, and this family has none: leave it out"
            )
        return Classifier(self.denoiser.num_features, rng.generator(self.recipe.seed, "classifier", 0))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        optim = self.recipe.optim
        options: dict[str, Any] = {"betas": (optim.beta1, optim.beta2), "weight_decay": optim.weight_decay}
        rates = ((STUDENT, optim.student_lr), (FAKE_SCORE, optim.fake_lr))
        if optim.moments == "8bit":
            return [AdamW8bit(self.parameters_of(role), lr=self._rate(lr), **options) for role, lr in rates]
        # The fused implementation is not tested with sharded weights.
        options["fused"] = self.device_mesh is None
        options["capturable"] = self.guards_on_device
        return [torch.optim.AdamW(self.parameters_of(role), lr=self._rate(lr), **options) for role, lr in rates]

    def _rate(self, lr: float) -> float | Tensor:
        """The rate, on the device where a CUDA graph reads it."""
        return torch.tensor(lr, device=self.device) if self.guards_on_device else lr

    def parameters_of(self, role: str) -> list[nn.Parameter]:
        """Trainable parameters of `role` alone."""
        return list(self._trained(role).values())

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return self._trained(STUDENT) | self._trained(FAKE_SCORE)

    def _trained(self, role: str) -> dict[str, nn.Parameter]:
        own = self.fake_score.named_parameters("fake_score") if role == FAKE_SCORE else ()
        return trained_parameters(self.denoiser, role) | dict(own)

    def averaged_parameters(self) -> dict[str, nn.Parameter]:
        return trained_parameters(self.denoiser, STUDENT)

    def learning_rates(self) -> dict[str, float]:
        groups = {role: self._optimizer(role).param_groups[0] for role in (STUDENT, FAKE_SCORE)}
        return {f"learning_rate/{role}": float(group["lr"]) for role, group in groups.items()}

    def on_train_start(self) -> None:
        options, single = self.recipe.trainer, self.device.type == "cuda" and self.trainer.world_size == 1
        small = sum(parameter.numel() for parameter in self.parameters()) <= MAX_GRAPHED_PARAMETERS
        wanted = options.cuda_graphs == "on" or (options.cuda_graphs == "auto" and small)
        self._graph_runner = GraphRunner() if single and wanted else None
        self.teachers.skips_unweighted = self._graph_runner is None and self.device_mesh is None

    def training_step(self, data: StepData, _: int) -> None:
        with uncached_casts():
            self._set_learning_rates()
            graded_step = self.draws.integer(self.student.num_steps, "graded_step")
            fake_steps, states = self.fake_score_steps(data, graded_step)
            for fake_step in fake_steps:
                self._run_update(FAKE_SCORE, fake_step)
            self._run_update(STUDENT, self._student_step(data, graded_step, states))
            self.num_updates += 1

    @property
    def draws(self) -> Draws:
        """Random numbers of this training step."""
        return Draws(self.recipe.seed, self.num_updates)

    def fake_steps(self, count: int) -> list[int]:
        """The student step behind the samples of each of `count` fake-score updates."""
        num_steps = self.student.num_steps
        if self.recipe.dmd.fake_samples == "fresh":
            return [self.draws.integer(num_steps, f"fake{r}/step") for r in range(count)]
        return rollout.spread_steps(num_steps, count, lambda i: self.draws.permutation(num_steps, f"fake/steps{i}"))

    def fake_score_steps(self, data: StepData, graded_step: int) -> tuple[list[GraphStep], States]:
        """The fake-score updates, and the state from which each student batch continues, if their rollout has computed
        it."""
        options = self.recipe.dmd
        steps = self.fake_steps(len(data.fake) if options.fake_samples == "fresh" else options.fake_updates)
        if options.fake_samples == "fresh":
            return [
                GraphStep((FAKE_SCORE, step), f"fake{r}", batches, partial(self._fake_score_update, step=step))
                for r, (batches, step) in enumerate(zip(data.fake, steps, strict=True))
            ], ()
        of_student = options.fake_samples == "student_rollout"
        batches, stream = (data.student, STUDENT) if of_student else (data.fake[0], "fake0")
        count = max([*steps, graded_step - 1 if of_student else 0]) + 1
        rollouts = GraphStep(("rollout", count), stream, batches, partial(self._trajectories, num_evaluations=count))
        found = self._run(rollouts)
        states, clean = found[: len(batches)], found[len(batches) :]
        return [
            self._update_from_rollout(step, f"fake{r}", batches, tuple(of_batch[step] for of_batch in clean))
            for r, step in enumerate(steps)
        ], tuple(of_batch[graded_step] for of_batch in states) if of_student else ()

    def _update_from_rollout(self, step: int, stream: str, batches: tuple[Batch, ...], samples: States) -> GraphStep:
        """One graph serves the samples of all steps, unless the fake score tells them apart."""
        known = step if self.recipe.dmd.fake_per_step else None
        update = partial(self._fake_score_update, step=known)
        return GraphStep((FAKE_SCORE, "from rollout", known), stream, batches, update, samples)

    def _trajectories(self, inputs: Sequence[StepInput], _: Means, *, num_evaluations: int) -> list[Tensor]:
        """States (n + 1, B, N, C) of each batch, then clean predictions (n, B, N, C) of each."""
        found = lanes.beside(
            [partial(self.student.trajectory, one.batch, one.numbers, num_evaluations) for one in inputs]
        )
        return [torch.stack(one.states) for one in found] + [torch.stack(one.clean) for one in found]

    def _fake_score_update(self, inputs: Sequence[StepInput], means: Means, *, step: int | None) -> list[Tensor]:
        losses = [(one.batch, partial(self.fake_score_loss, one, means, step=step)) for one in inputs]
        return [self._update(FAKE_SCORE, losses, means)]

    def fake_score_loss(self, given: StepInput, means: Means, *, step: int | None) -> Tensor:
        """Loss per sample (B,) of the fake score, and of its classifier if it has one, on samples from a rollout or on
        new ones of the student's `step`."""
        x0, options, batch, numbers = given.from_rollout, self.recipe.dmd, given.batch, given.numbers
        if x0 is None:
            assert step is not None
            with torch.no_grad():
                x0 = self.student.draw(batch, numbers, step)
        t = rollout.renoise_time(
            numbers.uniform("t"), shift=options.renoise_shift, low=options.renoise_min, high=options.renoise_max
        )
        samples = (batch.condition, x0, numbers.normal("eps", x0.shape[-1]), t, step)
        if not options.adversarial_weight:
            return self.fake_score.loss(*samples)
        data, data_eps = target_of(batch, "adversarial_weight"), numbers.normal("data/eps", x0.shape[-1])
        matching, classified = self.fake_score.losses_against(data, data_eps, *samples)
        means.add(f"loss/classifier/{batch.task}", classified, batch.weight)
        return matching + options.classifier_weight * classified

    def _student_step(self, data: StepData, step: int, states: States) -> GraphStep:
        """The student's update, which looks at the gradients of the tasks every so often."""
        every, tasks = self.recipe.trainer.task_gradients_every, {batch.task for batch in data.student}
        by_task = every > 0 and (self.num_updates + 1) % every == 0 and len(tasks) > 1
        key = (STUDENT, step, "by task") if by_task else (STUDENT, step)
        update = partial(self._student_update, step=step, by_task=by_task)
        return GraphStep(key, STUDENT, data.student, update, states)

    def _student_update(
        self, inputs: Sequence[StepInput], means: Means, *, step: int, by_task: bool = False
    ) -> list[Tensor]:
        losses = [(one.batch, partial(self.student_loss, one, means, step=step)) for one in inputs]
        tasks = [one.batch.task for one in inputs]
        gradients = TaskGradients(self.parameters_of(STUDENT), tasks) if by_task else None
        norm = self._update(STUDENT, losses, means, gradients)
        means.add(f"per_step/gradient_norm/all/step{step}", norm)
        if gradients is not None:
            for task, of_task in gradients.norms.items():
                means.add(f"task_gradients/norm/{task}", of_task)
                means.add(f"per_step/gradient_norm/{task}/step{step}", of_task)
            means.add("task_gradients/cosine", gradients.cosine(norm))
        return [norm]

    def student_loss(self, given: StepInput, means: Means, *, step: int) -> Tensor:
        """Loss per sample (B,) of the student's `step`, from the state there if a rollout has computed it."""
        batch = given.batch
        weights, active = self.lambdas[batch.category, step], self.active[batch.task][step]
        terms, seen = self.objective(
            batch, given.numbers, step=step, weights=weights, active=active, state=given.from_rollout
        )
        if seen is not None:
            teachers = ("base", *self.recipe.teachers.specialists)
            diagnostics.record(
                means, batch, seen, step=step, weights=weights, categories=self.categories, teachers=teachers
            )
        for name, losses in terms.items():
            if name != STUDENT:
                means.add(f"loss/{name}/{batch.task}", losses, batch.weight)
        return torch.stack(list(terms.values())).sum(dim=0) if len(terms) > 1 else next(iter(terms.values()))

    def _run(self, step: GraphStep) -> Sequence[Tensor]:
        run = self._graph_runner or run_eagerly
        return run(step, self.draws, self.means)

    def _run_update(self, role: str, update: GraphStep) -> None:
        """Run an update of `role` and report a gradient that is not finite."""
        (norm,) = self._run(update)
        self.skips.note(torch.isfinite(norm), role, self.num_updates, update.sample_ids)

    def _update(self, role: str, losses: Sequence[Loss], means: Means, by_task: TaskGradients | None = None) -> Tensor:
        """One optimiser step of `role` over the mean loss of the global batch; its gradient norm."""
        optim = self.recipe.optim
        clip = optim.student_clip if role == STUDENT else optim.fake_clip
        shares = [partial(self._share, role, i, *loss, means) for i, loss in enumerate(losses)]
        norm = self.take_step(self._optimizer(role), self.parameters_of(role), clip, shares, by_task)
        means.add(f"gradient_norm/{role}", norm)
        return norm

    def _share(self, role: str, number: int, batch: Batch, loss: Callable[[], Tensor], means: Means) -> Tensor:
        """The share of the mean loss over the global batch that the batch of this number has."""
        with means.lane(number):
            losses = loss()
            means.add(f"loss/{role}/{batch.task}", losses, batch.weight)
        return (losses * batch.weight).sum() / self.recipe.mixture.batch_size

    def _optimizer(self, role: str) -> Any:
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        return optimizers[(STUDENT, FAKE_SCORE).index(role)]

    def _set_learning_rates(self) -> None:
        optim = self.recipe.optim
        for role, lr in ((STUDENT, optim.student_lr), (FAKE_SCORE, optim.fake_lr)):
            self.set_learning_rate(self._optimizer(role), [lr], optim.warmup_updates, optim.final_lr_fraction)
