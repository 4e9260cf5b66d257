"""Flow matching of a teacher, its text encoder trained along."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from transformers import Qwen3VLForConditionalGeneration

from workbench import dmd, flow, rng, text_encoder
from workbench.backbone import QwenImage21
from workbench.batch import CaptionBatch, CaptionStep, Condition
from workbench.config import Recipe
from workbench.modules.root import RootModule
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
        self.denoiser = denoiser.requires_grad_(True)
        self.text_encoder = encoder.requires_grad_(recipe.pretrain.text_encoder_lr > 0)
        self.text_encoder.lm_head.requires_grad_(False)
        self.text_encoder.model.language_model.embed_tokens.requires_grad_(recipe.pretrain.text_encoder_lr > 0)
        self.text_encoder.model.language_model.norm.requires_grad_(False)
        self.num_system_tokens = num_system_tokens

    def configure_optimizers(self) -> torch.optim.Optimizer:
        options = self.recipe.pretrain
        groups = [{"params": list(module.values()), "lr": lr} for module, lr in self._groups()]
        return torch.optim.AdamW(groups, betas=(0.9, options.beta2), weight_decay=0.0, fused=self.device.type == "cuda")

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        return {name: parameter for group, _ in self._groups() for name, parameter in group.items()}

    def averaged_parameters(self) -> dict[str, nn.Parameter]:
        return self.trained_parameters()

    def learning_rates(self) -> dict[str, float]:
        return {f"learning_rate/{i}": group["lr"] for i, group in enumerate(self.optimizers().param_groups)}  # type: ignore[union-attr]

    def training_step(self, data: CaptionStep, _: int) -> None:
        options = self.recipe.pretrain
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        self.set_learning_rate(
            optimizer, [lr for _, lr in self._groups()], options.warmup_steps, options.final_lr_fraction
        )
        losses = [(partial(self._share, batch), batch.sample_ids) for batch in data.batches]
        self.guarded_step(TEACHER, optimizer, list(self.trained_parameters().values()), options.clip, losses)
        self.num_updates += 1

    def _share(self, batch: CaptionBatch) -> Tensor:
        losses = self.loss(batch)
        self.means.add(f"loss/{TEACHER}/{batch.task}", losses, batch.weight)
        return (losses * batch.weight).sum() / self.recipe.mixture.batch_size

    def loss(self, batch: CaptionBatch) -> Tensor:
        """Flow-matching loss per sample (B,)."""
        draw = {"seed": self.recipe.seed, "step": self.num_updates, "num_rows": batch.num_samples}
        name = f"{batch.task}/{batch.layout}"
        uniform = rng.uniform(batch.rows, stream=f"pretrain/t/{name}", **draw)
        t = flow.shift(uniform, self.recipe.pretrain.time_shift)
        eps = rng.normal(tuple(batch.target.shape[1:]), batch.rows, stream=f"pretrain/eps/{name}", **draw)
        condition = self.condition(batch)
        prefix = self.denoiser.prefix(condition, TEACHER)
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
