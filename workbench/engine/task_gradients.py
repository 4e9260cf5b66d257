"""How much of a gradient each task contributes: samples in the ratio 5:5 need not have gradients in that ratio."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from workbench.engine.optimisation import averaged, total_norm


class TaskGradients:
    """Norm of each task's share of a gradient that is accumulated over batches, one task's after another's.

    The share is the accumulated gradient after the task's last batch less that before its first: what all ranks and
    micro-batches add up to, in the shards that the parameters are in. It reads gradients and changes none; meanwhile it
    holds one copy of them.

    tasks: of each batch, in the order of their backward passes.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], tasks: Sequence[str]) -> None:
        names = list(dict.fromkeys(tasks))
        assert [*tasks] == sorted(tasks, key=names.index), f"batches of one task come one after another, got {tasks}"
        self.norms: dict[str, Tensor] = {}
        self._parameters = parameters
        self._last = {i: task for i, task in enumerate(tasks) if task not in tasks[i + 1 :]}
        self._before: list[Tensor] | None = None

    @torch.no_grad()
    def after(self, batch: int) -> None:
        """Call after the backward pass of each batch, counted from 0."""
        if batch not in self._last:
            return
        now = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        # The copy is read once, so the difference takes its place; its sign is lost in the norm.
        share = now if self._before is None else [a.sub_(b) for a, b in zip(self._before, now, strict=True)]
        self.norms[self._last[batch]] = total_norm(averaged(share))
        self._before = [gradient.clone() for gradient in now] if batch < max(self._last) else None

    def cosine(self, norm: Tensor) -> Tensor:
        """Cosine of the angle between the gradients of two tasks, (), from the norm of their sum."""
        first, second = self.norms.values()
        return (norm.square() - first.square() - second.square()) / (2 * first * second)
