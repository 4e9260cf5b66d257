"""Learning-rate schedule, gradient clipping and the moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from workbench.common import ranks


def learning_rate_factor(update: int, warmup: int, total: int, final: float) -> float:
    """Factor on the peak rate at `update`: linear warm-up, then a cosine from 1 to `final` at `total`."""
    if update < warmup:
        return (update + 1) / warmup
    return cosine((update - warmup) / max(1, total - warmup), final)


def cosine(progress: float, final: float) -> float:
    """Half a cosine from 1 at progress 0 to `final` at progress 1, where it stays."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale gradients in place to a total norm of at most `max_norm`; returns the norm before, () on every rank."""
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    norm = total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Norm of all `gradients` together, () on every rank, however they are sharded."""
    norm = get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def averaged(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Means over the ranks of gradients that each has whole (collective). Shards are means already."""
    if not ranks.is_distributed() or any(isinstance(one, DTensor) for one in gradients):
        return list(gradients)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    flat /= ranks.world_size()
    parts = flat.split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]


@contextmanager
def uncached_casts() -> Iterator[None]:
    """Autocast keeps its low-precision copies of weights until its block ends, and never sees that an optimiser has
    stepped meanwhile: within this, every use casts anew. Without autocast nothing is touched, since compiled code holds
    for one setting alone."""
    if not any(map(torch.is_autocast_enabled, ("cpu", "cuda"))):
        yield
        return
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class ChainedOptimizer:
    """Optimizers of disjoint parameters that step as one."""

    def __init__(self, optimizers: Sequence[Any]) -> None:
        self.optimizers = tuple(optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups of all of them, in order."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=set_to_none)

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


class MovingAverage:
    """Exponential moving average of named parameters, sharded as they are.

    The effective decay min(decay, (1 + n) / (10 + n)) lets a short run forget its initial weights. At a decay of 0 the
    average is the parameters themselves: it takes no memory, and no place in a checkpoint.

    held: averaged weights by the names of the parameters; empty at a decay of 0.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self._update = torch.optim.swa_utils.get_ema_multi_avg_fn
        self.decay = decay
        self.parameters = dict(parameters)
        copied = self.parameters if decay else {}
        self.held = {name: parameter.detach().clone() for name, parameter in copied.items()}

    @property
    def average(self) -> dict[str, Tensor]:
        """Averaged weights by the names of the parameters, whose own tensors they are at a decay of 0."""
        return self.held or {name: parameter.detach() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, num_updates: int) -> None:
        """Take in the parameters after their `num_updates`-th update."""
        if not self.held:
            return
        decay = min(self.decay, (1 + num_updates) / (10 + num_updates))
        current = [self.parameters[name].detach() for name in self.held]
        self._update(decay)(list(self.held.values()), current, num_updates)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange average and parameters; twice is no change."""
        for name, average in self.held.items():
            current = self.parameters[name].detach().clone()
            self.parameters[name].copy_(average)
            average.copy_(current)
