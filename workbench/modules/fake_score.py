"""The fake score: a denoiser that follows the student's moving distribution."""

from __future__ import annotations

from dataclasses import replace

import lightning as L
import torch
from torch import Tensor, nn

from workbench.backbones.base import Prefix, RoleDenoiser
from workbench.batch import Condition
from workbench.method import adversarial, dmd, flow
from workbench.modules.classifier import Classifier


class FakeScoreModule(L.LightningModule):
    """Trained by flow matching on student samples (DMD2 section 4.1). Returns values; the root owns everything else.

    step_embedding: (K, D), added to the embeddings of the prompt by the student step that made the sample, and zero at
    the start; None for a fake score of the mixture over steps.
    classifier: on its features, where an adversarial term is wanted.
    """

    step_embedding: nn.Parameter | None

    def __init__(self, network: RoleDenoiser, num_steps: int = 0, classifier: Classifier | None = None) -> None:
        """num_steps: K where the fake score knows the step, 0 where it does not."""
        super().__init__()
        self.network = network
        embedding = nn.Parameter(torch.zeros(num_steps, network.prompt_width)) if num_steps else None
        self.register_parameter("step_embedding", embedding)
        self.classifier = classifier

    def loss(self, condition: Condition, x0: Tensor, eps: Tensor, t: Tensor, step: int | None) -> Tensor:
        """Flow-matching loss per sample (B,) on student samples `x0` (B, N, C) noised by `eps` to `t` (B,).

        step: the student's, which made them; read where the fake score knows it.
        """
        predicted = self.network.velocity(self._prefix(condition, step), flow.interpolate(x0, eps, t), t)
        return dmd.flow_matching_loss(predicted, flow.velocity(x0, eps))

    def losses_against(
        self, data: Tensor, data_eps: Tensor, condition: Condition, x0: Tensor, eps: Tensor, t: Tensor, step: int | None
    ) -> tuple[Tensor, Tensor]:
        """`loss`, and the classifier's on the same noised samples against `data` (B, N, C), noised by `data_eps` to the
        same `t`: (B,) each. The data are the samples' own: what their prompts describe."""
        assert self.classifier is not None
        prefix = self._prefix(condition, step)
        predicted, of_samples = self.network.velocity_and_features(prefix, flow.interpolate(x0, eps, t), t)
        _, of_data = self.network.velocity_and_features(prefix, flow.interpolate(data, data_eps, t), t)
        classified = adversarial.classifier_loss(self.classifier(of_data), self.classifier(of_samples))
        return dmd.flow_matching_loss(predicted, flow.velocity(x0, eps)), classified

    def x0(self, condition: Condition, x_t: Tensor, t: Tensor, step: int | None) -> Tensor:
        """E_fake[x0 | x_t]: (B, N, C); step as in `loss`."""
        return flow.velocity_to_x0(x_t, self.network.velocity(self._prefix(condition, step), x_t, t), t)

    def x0_and_adversary(
        self, condition: Condition, x: Tensor, eps: Tensor, t: Tensor, step: int | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`x0` at x_t, the student's adversarial loss (B,) there, and its gradient with respect to the samples x
        (B, N, C), from one evaluation. No parameter gets a gradient."""
        assert self.classifier is not None
        with torch.no_grad():
            prefix = self._prefix(condition, step)
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            x_t = flow.interpolate(x, eps, t)
            v, features = self.network.velocity_and_features(prefix, x_t, t)
            losses = adversarial.student_loss(self.classifier(features))
            (gradient,) = torch.autograd.grad(losses.sum(), x)
        return flow.velocity_to_x0(x_t, v, t).detach(), losses.detach(), gradient

    def _prefix(self, condition: Condition, step: int | None) -> Prefix:
        if self.step_embedding is not None:
            assert step is not None
            condition = replace(condition, prompt=condition.prompt + self.step_embedding[step])
        return self.network.prefix(condition)
