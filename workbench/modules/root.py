"""What every trained root module shares: an own counter of updates, guarded optimiser steps, named parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from workbench.errors import UserError
from workbench.metrics import Means
from workbench.optimisation import clip_gradients, learning_rate_factor


class RootModule(L.LightningModule, ABC):
    """Manual optimisation over the mean loss of a global batch.

    num_updates is the only progress that stopping, saving and logging look at. total_updates: where the run ends.
    """

    def __init__(self, *, total_updates: int, max_skipped: int) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.total_updates = total_updates
        self.max_skipped = max_skipped
        self.num_updates = 0
        self.num_skipped = 0
        self.means = Means()

    @abstractmethod
    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters that training changes, by a name that a checkpoint keeps."""

    @abstractmethod
    def averaged_parameters(self) -> dict[str, nn.Parameter]:
        """Those whose moving average is what the run delivers."""

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch.to(device)

    @abstractmethod
    def learning_rates(self) -> dict[str, float]:
        """Present rates by the name they are logged under."""

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
        optimizer.zero_grad(set_to_none=True)
        for loss, _ in losses:
            # Gradients are averaged over ranks, the loss is a sum over them.
            self.manual_backward(loss() * self.trainer.world_size)
        norm = clip_gradients(parameters, clip)
        self.means.add(f"gradient_norm/{name}", norm)
        if torch.isfinite(norm):
            optimizer.step()
            return norm
        self.num_skipped += 1
        samples = ", ".join([sample for _, samples in losses for sample in samples][:4])
        line = (
            f"non-finite gradient of the {name} at update {self.num_updates} (samples {samples}, ...): step not taken"
        )
        self.trainer.print(line)
        if self.num_skipped > self.max_skipped:
            raise UserError(
                f"{line}; {self.num_skipped} such steps are too many: lower the learning rate, and continue from the "
                "last checkpoint with the same command"
            )
        return norm

    def set_learning_rate(self, optimizer: Any, peaks: Sequence[float], warmup: int, final: float) -> None:
        """Rates of this update for each parameter group of `optimizer`."""
        factor = learning_rate_factor(self.num_updates, warmup, self.total_updates, final)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(peak * factor)
            else:
                group["lr"] = peak * factor
