"""Flow matching of a teacher, its text encoder trained along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from workbench import dmd, flow, rng, text_encoder
from workbench.backbone import QwenImage21
from workbench.batch import CaptionBatch, CaptionStep, Condition, tensors_of
from workbench.config import Recipe
from workbench.graphs import GraphedStep
from workbench.modules.root import RootModule
from workbench.optimisation import clip_gradients
from workbench.roles import TEACHER


class Pretrainer(RootModule):
    """Regression of v = eps - x0 at shifted times (Lipman et al. 2023, arXiv 2210.02747) over both tasks.

    num_system_tokens: leading prompt tokens that the transformer never sees.
    """

    def __init__(
        self,
        denoiser: QwenImage21,
        encoder: Qwen3VLForConditionalGeneration,
        recipe: Recipe,
        num_system_tokens: int,
    ) -> None:
        super().__init__(total_updates=recipe.pretrain.steps, max_skipped=recipe.trainer.max_skipped_updates)
        self.recipe = recipe
        # A low-rank adapter comes with its base frozen, see `roles.add_adapter`.
        self.denoiser = denoiser if recipe.pretrain.lora_rank else denoiser.requires_grad_(True)
        self.text_encoder = encoder.requires_grad_(recipe.pretrain.text_encoder_lr > 0)
        self.text_encoder.lm_head.requires_grad_(False)
        self.text_encoder.model.language_model.embed_tokens.requires_grad_(recipe.pretrain.text_encoder_lr > 0)
        self.text_encoder.model.language_model.norm.requires_grad_(False)
        self.num_system_tokens = num_system_tokens
        self._graphed: GraphedStep | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        options, on_cuda = self.recipe.pretrain, self.device.type == "cuda"
        groups = [
            {"params": list(module.values()), "lr": torch.tensor(lr, device=self.device) if on_cuda else lr}
            for module, lr in self._groups()
        ]
        return torch.optim.AdamW(
            groups, betas=(0.9, options.beta2), weight_decay=0.0, fused=on_cuda, capturable=on_cuda
        )

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return {name: parameter for group, _ in self._groups() for name, parameter in group.items()}

    def averaged_parameters(self) -> dict[str, nn.Parameter]:
        return self.trained_parameters()

    def learning_rates(self) -> dict[str, float]:
        return {
            f"learning_rate/{name}": float(group["lr"])
            for name, group in zip(("transformer", "text_encoder"), self._optimizer.param_groups, strict=False)
        }

    def training_step(self, data: CaptionStep, _: int) -> None:
        options = self.recipe.pretrain
        self.set_learning_rate(
            self._optimizer, [lr for _, lr in self._groups()], options.warmup_steps, options.final_lr_fraction
        )
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
    def _optimizer(self) -> Any:
        return self.optimizers()

    def _replay(self, data: CaptionStep, draws: list[tuple[Tensor, Tensor]]) -> None:
        """The step as a CUDA graph; one whose gradient is not finite is skipped on the device, without asking back."""
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

        if self._graphed is None:
            self._graphed = GraphedStep(step)
        inputs = [tensor for batch in fields for tensor in batch.values()] + [part for draw in draws for part in draw]
        *losses, norm = self._graphed(inputs)
        for batch, of_batch in zip(data.batches, losses, strict=True):
            self.means.add(f"loss/{TEACHER}/{batch.task}", of_batch, batch.weight)
        self.means.add(f"gradient_norm/{TEACHER}", norm)
        self.means.add("skipped_share", (~torch.isfinite(norm)).float())

    def _captured_update(self, batches: Sequence[CaptionBatch], losses: Sequence[Tensor]) -> Tensor:
        """Backward, clipping and the optimiser's step; returns the gradient norm, ()."""
        parameters = list(self.trained_parameters().values())
        optimizer = self._optimizer.optimizer
        optimizer.zero_grad(set_to_none=True)
        shares = [(loss * batch.weight).sum() for loss, batch in zip(losses, batches, strict=True)]
        (torch.stack(shares).sum() / self.recipe.mixture.batch_size).backward()
        norm = clip_gradients(parameters, self.recipe.pretrain.clip)
        optimizer.found_inf = (~torch.isfinite(norm)).float()
        optimizer.step()
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
        slots = None
        if batch.layout.references:
            (reference,) = batch.layout.references
            start = reference.slot + self.num_system_tokens
            slots = text_encoder.ImageSlots(start, reference.height // 2, reference.width // 2)
        hidden = text_encoder.embed(self.text_encoder, batch.token_ids, batch.images, slots)
        return Condition(hidden[:, self.num_system_tokens :], batch.lengths, batch.layout, batch.references)

    def _groups(self) -> list[tuple[dict[str, nn.Parameter], float]]:
        """Trainable parameters by learning rate, tied ones once."""
        options = self.recipe.pretrain
        modules = (
            ("denoiser", self.denoiser, options.lr),
            ("text_encoder", self.text_encoder, options.text_encoder_lr),
        )
        return [
            ({f"{name}.{key}": p for key, p in module.named_parameters() if p.requires_grad}, lr)
            for name, module, lr in modules
            if lr > 0
        ]
