"""The plain arrangement of distribution matching distillation: the slow reference.

Every network evaluation is diffusers' own forward over the full sequence, eager; nothing is kept between evaluations;
the teacher's cond and uncond passes are separate. It draws the random numbers that `Distiller` draws, so losses and
gradients of one step agree (`tests/modules/test_equivalence.py`), and `workbench.bench` measures the engine against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.backbones import lora
from workbench.backbones.base import RoleNetworks
from workbench.backbones.roles import FAKE_SCORE, STUDENT, teacher_roles
from workbench.batch import Batch, Condition, StepData
from workbench.engine.optimisation import clip_gradients, learning_rate_factor, uncached_casts
from workbench.method import dmd, flow, guidance, rng, rollout
from workbench.recipe import lambda_tables
from workbench.recipe.config import Recipe

StockVelocity = Callable[[Any, Condition, Tensor, Tensor], Tensor]
"""(transformer, condition, x_t, t) -> velocity, by the family's stock forward over the full sequence."""


class PlainNetworks:
    """Stock forwards over the weights of a denoiser's roles.

    per_length: run the samples of each text length by themselves, as stock inference would. Otherwise the padded batch
    runs at once with a key mask, as in trainers: faster, and the target's positions differ because of the padding.
    """

    def __init__(
        self, denoiser: RoleNetworks, stock_velocity: StockVelocity, *, gradient_checkpointing: bool, per_length: bool
    ) -> None:
        self.denoiser, self.stock_velocity = denoiser, stock_velocity
        self.per_length = per_length
        self._role = ""
        for network in {denoiser.network(role) for role in denoiser.network_of_role}:
            stock: Any = network.transformer
            for _, layer in lora.role_linears(stock):
                layer.register_forward_pre_hook(self._add_role)
            if gradient_checkpointing:
                stock.enable_gradient_checkpointing(self._checkpoint)

    def velocity(self, condition: Condition, x_t: Tensor, t: Tensor, role: str) -> Tensor:
        """(B, N, C), (B,) -> (B, N, C)."""
        stock: Any = self.denoiser.network(role).transformer
        self._role = role
        lengths = condition.lengths.tolist()
        if not self.per_length:
            return self.stock_velocity(stock, condition, x_t, t)
        pieces, order = [], []
        for length in sorted(set(lengths)):
            rows = [row for row, other in enumerate(lengths) if other == length]
            part = Condition(
                condition.prompt[rows, :length],
                condition.lengths[rows],
                condition.layout,
                None if condition.references is None else condition.references[rows],
            )
            pieces.append(self.stock_velocity(stock, part, x_t[rows], t[rows]))
            order += rows
        return torch.cat(pieces)[torch.tensor(order, device=x_t.device).argsort()]

    def _add_role(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, str] | None:
        """Stock code calls an adapted layer without naming a role."""
        return (inputs[0], self._role) if len(inputs) == 1 else None

    def _checkpoint(self, block: nn.Module, *inputs: object) -> Tensor:
        """Checkpointing that recomputes under the role of the forward, not of whoever ran last."""
        role = self._role

        def run(*again: object) -> Tensor:
            self._role = role
            return block(*again)

        return checkpoint(run, *inputs, use_reentrant=False)


class PlainEngine:
    """R fake-score updates and one student update per step, over full float32 weights or adapters on one device."""

    def __init__(
        self,
        denoiser: RoleNetworks,
        stock_velocity: StockVelocity,
        recipe: Recipe,
        categories: Sequence[str],
        *,
        per_length: bool = False,
    ) -> None:
        self.recipe = recipe
        checkpoints = recipe.model.gradient_checkpointing
        self.networks = PlainNetworks(
            denoiser, stock_velocity, gradient_checkpointing=checkpoints, per_length=per_length
        )
        self.teachers = teacher_roles(recipe.teachers)
        options, optim = recipe.dmd, recipe.optim
        self.times = rollout.time_grid(options.student_steps, options.student_shift, options.student_times).tolist()
        num_steps, specialists = len(self.times) - 1, list(recipe.teachers.specialists)
        tables = lambda_tables.tables(recipe.guidance, num_steps=num_steps, specialists=specialists)
        self.lambdas = guidance.lambda_table(tables, categories, num_steps=num_steps, teachers=self.teachers)
        self.parameters = {role: _own_parameters(denoiser, role) for role in (STUDENT, FAKE_SCORE)}
        self.optimizers = {
            role: torch.optim.AdamW(
                self.parameters[role], lr=lr, betas=(optim.beta1, optim.beta2), weight_decay=optim.weight_decay
            )
            for role, lr in ((STUDENT, optim.student_lr), (FAKE_SCORE, optim.fake_lr))
        }
        self.losses: list[tuple[str, str, Tensor]] = []
        """(role, task, loss per sample (B,)) of the latest step, in order."""
        self.update = 0

    def step(self, data: StepData, update: int) -> None:
        """The training step of `update`."""
        self.update, self.losses = update, []
        with uncached_casts():
            graded = self._integer("graded_step")
            for number, (batches, samples, step) in enumerate(self._fake_updates(data)):
                loss = partial(self._fake_score_loss, stream=f"fake{number}", samples=samples, step=step)
                self._optimise(FAKE_SCORE, batches, loss)
            self._optimise(STUDENT, data.student, partial(self._student_loss, step=graded))

    def _fake_updates(self, data: StepData) -> list[tuple[Sequence[Batch], str, int]]:
        """Batches, stream of the student's samples on them and step of these, of each fake-score update. A rollout
        that is reused is run again each time."""
        options = self.recipe.dmd
        if options.fake_samples == "fresh":
            return [(batches, f"fake{r}", self._integer(f"fake{r}/step")) for r, batches in enumerate(data.fake)]
        steps = rollout.spread_steps(len(self.times) - 1, options.fake_updates, self._permutation)
        batches, stream = (data.student, STUDENT) if options.fake_samples != "rollout" else (data.fake[0], "fake0")
        return [(batches, stream, step) for step in steps]

    def _optimise(self, role: str, batches: Sequence[Batch], loss_of: Callable[[Batch], Tensor]) -> None:
        optim, optimizer = self.recipe.optim, self.optimizers[role]
        peak, clip = (optim.student_lr, optim.student_clip) if role == STUDENT else (optim.fake_lr, optim.fake_clip)
        factor = learning_rate_factor(
            self.update, optim.warmup_updates, self.recipe.trainer.updates, optim.final_lr_fraction
        )
        optimizer.param_groups[0]["lr"] = peak * factor
        optimizer.zero_grad(set_to_none=True)
        for batch in batches:
            losses = loss_of(batch)
            self.losses.append((role, batch.task, losses.detach()))
            ((losses * batch.weight).sum() / self.recipe.mixture.batch_size).backward()
        norm = clip_gradients(self.parameters[role], clip)
        if torch.isfinite(norm):
            optimizer.step()

    def _fake_score_loss(self, batch: Batch, stream: str, samples: str, step: int) -> Tensor:
        with torch.no_grad():
            x0 = self._student_sample(batch, samples, step)
        eps, t = self._normal(batch, f"{stream}/eps"), self._renoise_time(batch, stream)
        predicted = self.networks.velocity(batch.condition, flow.interpolate(x0, eps, t), t, FAKE_SCORE)
        return dmd.flow_matching_loss(predicted, eps - x0)

    def _student_loss(self, batch: Batch, step: int) -> Tensor:
        x = self._student_sample(batch, STUDENT, step)
        t = self._renoise_time(batch, STUDENT)
        with torch.no_grad():
            x_t = flow.interpolate(x, self._normal(batch, "student/eps"), t)
            v_fake = self.networks.velocity(batch.condition, x_t, t, FAKE_SCORE)
            x0_fake = flow.velocity_to_x0(x_t, v_fake, t)
            direction = dmd.dmd_direction(x, x0_fake, self._x0_real(batch, x_t, t, step))
        return dmd.dmd_loss(x, direction)

    def _x0_real(self, batch: Batch, x_t: Tensor, t: Tensor, step: int) -> Tensor:
        total = torch.zeros_like(x_t)
        weights = self.lambdas[batch.category.cpu(), step].to(x_t.device)
        for column, role in enumerate(self.teachers):
            if not bool(weights[:, column].any()):
                continue
            v = self.networks.velocity(batch.condition, x_t, t, role)
            if self.recipe.teachers.cfg_scale != 1:
                assert batch.uncond is not None, "guidance needs the empty prompt"
                v_uncond = self.networks.velocity(_for_all(batch.uncond, len(x_t)), x_t, t, role)
                v = guidance.cfg(v, v_uncond, self.recipe.teachers.cfg_scale)
            total = total + flow.expand(weights[:, column], x_t) * flow.velocity_to_x0(x_t, v, t)
        return total

    def _student_sample(self, batch: Batch, stream: str, step: int) -> Tensor:
        """x0 predicted at `step`, the steps before without gradient."""
        x = self._normal(batch, f"{stream}/noise")
        for k in range(step + 1):
            t = x.new_full((len(x),), self.times[k])
            with torch.set_grad_enabled(k == step and torch.is_grad_enabled()):
                v = self.networks.velocity(batch.condition, x, t, STUDENT)
            x0 = flow.velocity_to_x0(x, v, t)
            if k == step:
                break
            if self.recipe.dmd.rollout == "euler":
                x = x + (self.times[k + 1] - self.times[k]) * v
            else:
                fresh = self._normal(batch, f"{stream}/fresh{k}")
                x = flow.interpolate(x0, fresh, x.new_full((len(x),), self.times[k + 1]))
        return x0

    def _integer(self, stream: str) -> int:
        return rng.integer(len(self.times) - 1, seed=self.recipe.seed, stream=stream, step=self.update)

    def _permutation(self, number: int) -> list[int]:
        stream = f"fake/steps{number}"
        return rng.permutation(len(self.times) - 1, seed=self.recipe.seed, stream=stream, step=self.update)

    def _normal(self, batch: Batch, stream: str) -> Tensor:
        layout = batch.condition.layout
        channels = self.networks.denoiser.num_channels
        return rng.normal(
            (layout.num_target_tokens, channels),
            batch.rows,
            seed=self.recipe.seed,
            stream=f"{stream}/{batch.task}/{layout}",
            step=self.update,
            num_rows=batch.num_samples,
        )

    def _renoise_time(self, batch: Batch, stream: str) -> Tensor:
        name, options = f"{stream}/t/{batch.task}/{batch.condition.layout}", self.recipe.dmd
        drawn = rng.uniform(
            batch.rows, seed=self.recipe.seed, stream=name, step=self.update, num_rows=batch.num_samples
        )
        return rollout.renoise_time(
            drawn, shift=options.renoise_shift, low=options.renoise_min, high=options.renoise_max
        )


def _for_all(condition: Condition, batch_size: int) -> Condition:
    """A condition with a row for every sample: a constant has one."""
    if len(condition.prompt) == batch_size:
        return condition
    prompt, lengths = condition.prompt.expand(batch_size, -1, -1), condition.lengths.expand(batch_size)
    return Condition(prompt, lengths, condition.layout)


def _own_parameters(denoiser: RoleNetworks, role: str) -> list[nn.Parameter]:
    return [
        parameter
        for name, parameter in denoiser.named_parameters()
        if parameter.requires_grad and role in name.split(".")
    ]
