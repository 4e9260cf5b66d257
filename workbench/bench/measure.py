"""Timing of the engine and of the plain arrangement, in turns, inside one ordinary fit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from workbench.backbones.base import Prefix, RoleNetworks
from workbench.backbones.placement import trainer_precision
from workbench.backbones.roles import FAKE_SCORE, STUDENT
from workbench.batch import Condition, StepData
from workbench.bench.data import CATEGORIES
from workbench.bench.plain import PlainEngine
from workbench.common.clock import Clock
from workbench.modules.distiller import Distiller
from workbench.recipe.config import Recipe

PLAIN_WARMUP = 1


@dataclass
class Timings:
    """Wall seconds of every measured iteration, and the highest memory in bytes (CUDA; 0 elsewhere)."""

    wall_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def median_s(self) -> float:
        return statistics.median(self.wall_s)

    @property
    def spread_s(self) -> float:
        """Half the distance between the quartiles."""
        if len(self.wall_s) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.wall_s, n=4, method="inclusive")
        return (high - low) / 2


def synchronise(device: torch.device) -> None:
    """Wait for the device, so that the host can measure its time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def clocked(timings: Timings, device: torch.device, keep: bool) -> Iterator[None]:
    """Add time and peak memory of the body to `timings`, if `keep`."""
    synchronise(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    started = time.perf_counter()
    yield
    synchronise(device)
    if keep:
        timings.wall_s.append(time.perf_counter() - started)
        if device.type == "cuda":
            timings.peak_bytes = max(timings.peak_bytes, torch.cuda.max_memory_allocated(device))


class _InTurns(L.Callback):
    """Times each training step of the engine, then runs and times the plain arrangement on the same data. The plain
    arrangement records no graphs: it warms up on the last of the iterations that are not kept."""

    def __init__(self, plain: PlainEngine | None, warmup: int) -> None:
        self.plain, self.warmup = plain, warmup
        self.ours, self.theirs = Timings(), Timings()
        self._open: Any = None

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: StepData, index: int) -> None:
        self._open = clocked(self.ours, module.device, index >= self.warmup)
        self._open.__enter__()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: StepData, index: int
    ) -> None:
        self._open.__exit__(None, None, None)
        if self.plain is not None and index >= self.warmup - PLAIN_WARMUP:
            # Each pays for its own gradients alone.
            module.zero_grad(set_to_none=True)
            with (
                clocked(self.theirs, module.device, index >= self.warmup),
                trainer.precision_plugin.train_step_context(),
            ):
                self.plain.step(batch, index)
            module.zero_grad(set_to_none=True)


def alternate(
    module: Distiller, plain: PlainEngine | None, data: Sequence[StepData], *, warmup: int
) -> tuple[Timings, Timings]:
    """Timings of the engine and of `plain` over `data`, one step each in turns; the first `warmup` are not kept."""
    turns = _InTurns(plain, warmup)
    _fit(module, data, [turns])
    return turns.ours, turns.theirs


def phases(denoiser: RoleNetworks, recipe: Recipe, data: Sequence[StepData], *, warmup: int) -> dict[str, float]:
    """Mean seconds an iteration of each phase of the engine, run eagerly with a clock around every part."""
    recipe = replace(recipe, trainer=replace(recipe.trainer, cuda_graphs="off"))
    clock = Clock()
    timed = _TimedDistiller(_TimedDenoiser(denoiser, clock), recipe, CATEGORIES)
    timed.clock = clock
    callback = _Phases(clock, warmup)
    _fit(timed, data, [callback])
    kept = len(data) - warmup
    parts = {name: seconds / kept for name, seconds in clock.wall_s.items()}
    parts["draws, losses, clipping, the rest"] = sum(callback.total.wall_s) / kept - sum(parts.values())
    return parts


class _TimedDenoiser(RoleNetworks):
    """The same networks with a clock around each evaluation."""

    def __init__(self, denoiser: RoleNetworks, clock: Clock) -> None:
        super().__init__(denoiser.by_name, denoiser.network_of_role)
        self.clock = clock

    def prefixes(self, cond: Condition, uncond: Condition | None, role: str) -> tuple[Prefix, Prefix | None]:
        with self.clock.phase(_phase(role)):
            return super().prefixes(cond, uncond, role)

    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> Tensor:
        with self.clock.phase(_phase(role)):
            return super().velocity(prefix, x_t, t, role)


class _TimedDistiller(Distiller):
    """The engine with a clock around backward and optimiser."""

    clock: Clock
    _stepping = ""

    def _update(self, role: str, *arguments: Any) -> Tensor:
        self._stepping = role
        return super()._update(role, *arguments)

    def manual_backward(self, loss: Tensor, *arguments: Any, **options: Any) -> None:
        phase = "student graded: backward" if self._stepping == STUDENT else "fake score: backward"
        with self.clock.phase(phase):
            super().manual_backward(loss, *arguments, **options)


class _Phases(L.Callback):
    def __init__(self, clock: Clock, warmup: int) -> None:
        self.clock, self.warmup = clock, warmup
        self.total = Timings()
        self._open: Any = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            step = optimizer.step

            def timed(*arguments: Any, step: Any = step, **options: Any) -> Any:
                with self.clock.phase("optimiser"):
                    return step(*arguments, **options)

            optimizer.step = timed  # type: ignore[method-assign]

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: StepData, index: int) -> None:
        if index == self.warmup:
            self.clock.restart()
        self._open = clocked(self.total, module.device, index >= self.warmup)
        self._open.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self._open.__exit__(None, None, None)


def _phase(role: str) -> str:
    graded = torch.is_grad_enabled()
    if role == STUDENT:
        return "student graded: forward" if graded else "student rollout"
    if role == FAKE_SCORE:
        return "fake score: forward" if graded else "fake score for the direction"
    return "teacher"


def _fit(module: Distiller, data: Sequence[StepData], callbacks: list[L.Callback]) -> None:
    recipe = module.recipe.trainer
    # A trainer moves its module off the device at the end; the same weights are measured again.
    module.cpu = lambda: module  # type: ignore[method-assign]
    trainer = L.Trainer(
        accelerator=recipe.accelerator,
        devices=1,
        precision=trainer_precision(module.recipe),
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=callbacks,
    )
    trainer.fit(module, DataLoader(data, batch_size=None, collate_fn=_same))  # type: ignore[arg-type]


def _same(item: StepData) -> StepData:
    return item
