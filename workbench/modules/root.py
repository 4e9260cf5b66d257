"""Common base of the trained root modules: a counter of updates, guarded optimiser steps, named parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from workbench.engine import lanes
from workbench.engine.means import Means
from workbench.engine.nonfinite import Skips
from workbench.engine.optimisation import averaged, clip_gradients, learning_rate_factor
from workbench.engine.task_gradients import TaskGradients


class RootModule(L.LightningModule, ABC):
    """Manual optimisation over the mean loss of a global batch.

    num_updates is the only measure of progress: stopping, saving and logging read it. The run ends at total_updates.
    """

    def __init__(self, *, total_updates: int, max_skipped: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.total_updates = total_updates
        self.num_updates = 0
        self.skips = Skips(max_skipped, lambda line: self.trainer.print(line))
        self.means = Means()

    @property
    def num_skipped(self) -> int:
        """Optimiser steps not taken so far; asking waits for the device."""
        return self.skips.count()

    @property
    def guards_on_device(self) -> bool:
        """Whether the device itself skips a step that is not finite, without a synchronisation with the host."""
        return self.device.type == "cuda" and self.device_mesh is None

    @abstractmethod
    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters that training changes, by a name that a checkpoint keeps."""

    @abstractmethod
    def averaged_parameters(self) -> dict[str, nn.Parameter]:
        """Those whose moving average is what the run delivers."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device, non_blocking=True)

    @abstractmethod
    def learning_rates(self) -> dict[str, float]:
        """Present rates by the names that they are logged under."""

    def guarded_step(
        self,
        name: str,
        optimizer: Any,
        parameters: Sequence[nn.Parameter],
        clip: float,
        losses: Sequence[tuple[Callable[[], Tensor], tuple[str, ...]]],
    ) -> Tensor:
        """One step over the sum of `losses`, each this rank's share, with the samples behind it by name; returns the
        norm of the gradient before clipping, ().

        A step whose gradient is not finite is not taken, the samples are named, and too many end the run.

        Raises:
            UserError: more than `max_skipped` such steps.
        """
        norm = self.take_step(optimizer, parameters, clip, [loss for loss, _ in losses])
        self.means.add(f"gradient_norm/{name}", norm)
        samples = [sample for _, samples in losses for sample in samples]
        self.skips.note(torch.isfinite(norm), name, self.num_updates, samples)
        return norm

    def take_step(
        self,
        optimizer: Any,
        parameters: Sequence[nn.Parameter],
        clip: float,
        losses: Sequence[Callable[[], Tensor]],
        by_task: TaskGradients | None = None,
    ) -> Tensor:
        """One step over the sum of `losses`, unless its gradient is not finite; the norm before clipping, ().

        by_task: looks at the gradient as it accumulates.
        """
        optimizer.zero_grad(set_to_none=True)
        if lanes.fit(losses) and by_task is None:
            self._backward_beside(parameters, *losses)
        else:
            for i, loss in enumerate(losses):
                # Gradients are averaged over ranks, the loss is a sum over them.
                self.manual_backward(loss() * self.trainer.world_size)
                if by_task is not None:
                    by_task.after(i)
        self._average_gradients(parameters)
        norm = clip_gradients(parameters, clip)
        if self.guards_on_device:
            # A fused AdamW, as one of 8-bit moments, leaves weights, moments and its count as they are where this is 1.
            optimizer.optimizer.found_inf = (~torch.isfinite(norm)).float()
            optimizer.optimizer.step()
        elif torch.isfinite(norm):
            optimizer.step()
        # The other role has its gradients next.
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _backward_beside(
        self, parameters: Sequence[nn.Parameter], first: Callable[[], Tensor], second: Callable[[], Tensor]
    ) -> None:
        """The gradients of one backward pass after the other, to the bit, from two beside each other."""
        parts: list[Callable[[], Any]] = [
            lambda: self.manual_backward(first()),
            lambda: torch.autograd.grad(second(), parameters, allow_unused=True),
        ]
        _, others = lanes.beside(parts)
        for parameter, other in zip(parameters, others, strict=True):
            if other is not None:
                parameter.grad = other if parameter.grad is None else parameter.grad.add_(other)

    def _average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Over ranks that hold the weights whole; sharded ones do so in their backward passes."""
        there = [parameter for parameter in parameters if parameter.grad is not None]
        means = averaged([parameter.grad for parameter in there if parameter.grad is not None])
        for parameter, mean in zip(there, means, strict=True):
            parameter.grad = mean

    def set_learning_rate(self, optimizer: Any, peaks: Sequence[float], warmup: int, final: float) -> None:
        """Rates of this update for each parameter group of `optimizer`."""
        factor = learning_rate_factor(self.num_updates, warmup, self.total_updates, final)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(peak * factor)
            else:
                group["lr"] = peak * factor
