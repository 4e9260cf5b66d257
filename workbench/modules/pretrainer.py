"""Flow matching of a teacher, its text encoder trained along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from workbench.backbones.base import RoleNetworks
from workbench.backbones.family import TrainableText
from workbench.backbones.roles import TEACHER
from workbench.batch import CaptionBatch, CaptionStep, Condition, Layout, tensors_of
from workbench.engine.graphs import GraphedStep
from workbench.engine.muon import BatchedMuon
from workbench.engine.optimisation import ChainedOptimizer, clip_gradients
from workbench.method import dmd, flow, rng
from workbench.modules.root import RootModule
from workbench.recipe.config import Recipe


class Pretrainer(RootModule):
    """Regression of v = eps - x0 at shifted times (Lipman et al. 2023, arXiv 2210.02747) over both tasks."""

    def __init__(self, denoiser: RoleNetworks, text: TrainableText, recipe: Recipe) -> None:
        super().__init__(total_updates=recipe.pretrain.steps, max_skipped=recipe.trainer.max_skipped_updates)
        self.recipe = recipe
        # A low-rank adapter comes with its base frozen, see `roles.add_adapter`.
        self.denoiser = denoiser if recipe.pretrain.lora_rank else denoiser.requires_grad_(True)
        text.set_trainable(recipe.pretrain.text_encoder_lr > 0)
        self.text, self.text_encoder = text, text.encoder
        self._graphed: dict[tuple[Layout, ...], GraphedStep] = {}
        self._matrices, self._rest = self._groups()
        if recipe.pretrain.compile:
            self.denoiser.compile_blocks()
            text.compile_layers()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        options, on_cuda = self.recipe.pretrain, self.device.type == "cuda"

        def of(groups: Sequence[_Group]) -> list[dict[str, Any]]:
            """A graph reads its rates from the device."""
            return [
                {
                    "params": list(group.parameters.values()),
                    "lr": torch.tensor(group.lr, device=self.device) if on_cuda else group.lr,
                }
                for group in groups
            ]

        adamw = torch.optim.AdamW(
            of(self._rest), betas=(0.9, options.beta2), weight_decay=0.0, fused=on_cuda, capturable=on_cuda
        )
        return [adamw, BatchedMuon(of(self._matrices))] if self._matrices else [adamw]

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return {name: parameter for group in self._in_order() for name, parameter in group.parameters.items()}

    def averaged_parameters(self) -> dict[str, nn.Parameter]:
        return self.trained_parameters()

    def learning_rates(self) -> dict[str, float]:
        groups = zip(self._in_order(), self._optimizer.param_groups, strict=True)
        return {f"learning_rate/{group.name}": float(held["lr"]) for group, held in groups}

    def training_step(self, data: CaptionStep, _: int) -> None:
        options = self.recipe.pretrain
        peaks = [group.lr for group in self._in_order()]
        self.set_learning_rate(self._optimizer, peaks, options.warmup_steps, options.final_lr_fraction)
        draws = [self._draw(batch) for batch in data.batches]
        if self.device.type == "cuda":
            self._replay(data, draws)
        else:
            losses = [
                (partial(self._share, batch, *draw), batch.sample_ids)
                for batch, draw in zip(data.batches, draws, strict=True)
            ]
            parameters = list(self.trained_parameters().values())
            self.guarded_step(TEACHER, self._optimizer, parameters, options.clip, losses)
        self.num_updates += 1

    @property
    def _optimizer(self) -> ChainedOptimizer:
        """All optimizers as one, in the order of `_in_order`."""
        optimizers = self.optimizers()
        return ChainedOptimizer(optimizers if isinstance(optimizers, list) else [optimizers])

    def _replay(self, data: CaptionStep, draws: list[tuple[Tensor, Tensor]]) -> None:
        """The step as a CUDA graph; one whose gradient is not finite is skipped on the device and reported later."""
        fields = [tensors_of(batch) for batch in data.batches]

        def step(inputs: Sequence[Tensor]) -> Sequence[Tensor]:
            given = iter(inputs)
            batches = [
                replace(batch, **{name: next(given) for name in names})  # type: ignore[arg-type]
                for batch, names in zip(data.batches, fields, strict=True)
            ]
            losses = [self.loss(batch, next(given), next(given)) for batch in batches]
            norm = self._captured_update(batches, losses)
            return [*(loss.detach() for loss in losses), norm]

        layouts = tuple(batch.layout for batch in data.batches)
        if layouts not in self._graphed:
            self._graphed[layouts] = GraphedStep(step)
        inputs = [tensor for batch in fields for tensor in batch.values()] + [part for draw in draws for part in draw]
        *losses, norm = self._graphed[layouts](inputs)
        for batch, of_batch in zip(data.batches, losses, strict=True):
            self.means.add(f"loss/{TEACHER}/{batch.task}", of_batch, batch.weight)
        self.means.add(f"gradient_norm/{TEACHER}", norm)
        finite = torch.isfinite(norm)
        self.means.add("skipped_share", (~finite).float())
        self.skips.note(
            finite, TEACHER, self.num_updates, [name for batch in data.batches for name in batch.sample_ids]
        )

    def _captured_update(self, batches: Sequence[CaptionBatch], losses: Sequence[Tensor]) -> Tensor:
        """Backward, clipping and the optimizers' step; returns the gradient norm, ()."""
        parameters = list(self.trained_parameters().values())
        self._optimizer.zero_grad()
        shares = [(loss * batch.weight).sum() for loss, batch in zip(losses, batches, strict=True)]
        (torch.stack(shares).sum() / self.recipe.mixture.batch_size).backward()
        norm = clip_gradients(parameters, self.recipe.pretrain.clip)
        for optimizer in self._optimizer.optimizers:
            optimizer.optimizer.found_inf = (~torch.isfinite(norm)).float()
            optimizer.optimizer.step()
        return norm

    def _share(self, batch: CaptionBatch, t: Tensor, eps: Tensor) -> Tensor:
        losses = self.loss(batch, t, eps)
        self.means.add(f"loss/{TEACHER}/{batch.task}", losses, batch.weight)
        return (losses * batch.weight).sum() / self.recipe.mixture.batch_size

    def _draw(self, batch: CaptionBatch) -> tuple[Tensor, Tensor]:
        """Times (B,) and noise (B, N, C)."""
        draw = {"seed": self.recipe.seed, "step": self.num_updates, "num_rows": batch.num_samples}
        name = f"{batch.task}/{batch.layout}"
        uniform = rng.uniform(batch.rows, stream=f"pretrain/t/{name}", **draw)
        eps = rng.normal(tuple(batch.target.shape[1:]), batch.rows, stream=f"pretrain/eps/{name}", **draw)
        return flow.shift(uniform, self.recipe.pretrain.time_shift), eps

    def loss(self, batch: CaptionBatch, t: Tensor, eps: Tensor) -> Tensor:
        """Flow-matching loss per sample (B,) at times t (B,) and noise eps (B, N, C)."""
        prefix = self.denoiser.prefix(self.condition(batch), TEACHER)
        predicted = self.denoiser.velocity(prefix, flow.interpolate(batch.target, eps, t), t, TEACHER)
        return dmd.flow_matching_loss(predicted, flow.velocity(batch.target, eps))

    def condition(self, batch: CaptionBatch) -> Condition:
        """The prompt embeddings of a batch, with gradient."""
        prompt = self.text.embed(batch.token_ids, batch.images, batch.layout)
        return Condition(prompt, batch.lengths, batch.layout, batch.references)

    def _in_order(self) -> list[_Group]:
        """Groups as the optimizers hold them: AdamW's, then Muon's."""
        return self._rest + self._matrices

    def _groups(self) -> tuple[list[_Group], list[_Group]]:
        """Muon's and AdamW's trainable parameters by learning rate, tied ones once."""
        options = self.recipe.pretrain
        modules = (
            ("transformer", "denoiser", self.denoiser, options.lr),
            ("text_encoder", "text_encoder", self.text_encoder, options.text_encoder_lr),
        )
        matrices, rest = [], []
        for name, prefix, module, lr in modules:
            if lr <= 0:
                continue
            trained = {f"{prefix}.{key}": p for key, p in module.named_parameters() if p.requires_grad}
            chosen = {key: p for key, p in trained.items() if options.optimizer == "muon" and is_hidden_matrix(key, p)}
            rest.append(_Group(name, {key: p for key, p in trained.items() if key not in chosen}, lr))
            if chosen:
                matrices.append(_Group(f"{name}/matrices", chosen, lr))
        return matrices, rest


@dataclass(frozen=True)
class _Group:
    """Parameters by name that share a learning rate."""

    name: str
    parameters: dict[str, nn.Parameter]
    lr: float


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon is meant for it: a weight matrix inside a block, no embedding, input or output layer."""
    return parameter.ndim == 2 and not {"blocks", "layers"}.isdisjoint(name.split("."))
