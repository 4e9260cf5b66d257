"""Scalars of a run: what is logged every few updates, and the file that holds it."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch

from workbench.common.jsonl import drop_lines_after
from workbench.modules.root import RootModule
from workbench.runs.loggers import disk_errors, log_scalars


class Realised(Protocol):
    """A datamodule that knows what it has handed out."""

    def realised(self, num_steps: int) -> dict[str, int]:
        """Samples of each category in the first `num_steps` steps, all ranks together."""


@dataclass(frozen=True)
class HostMoment:
    """A moment on the host's clock, asked as a `torch.cuda.Event` is."""

    at: float = field(default_factory=time.perf_counter)

    def query(self) -> bool:
        """Whether it has come."""
        return True

    def elapsed_time(self, later: HostMoment) -> float:
        """Milliseconds until a later one."""
        return 1000 * (later.at - self.at)


def moment(device: torch.device) -> Any:
    """When the device has done all that it was given so far. A host that is updates ahead of its GPU keeps nobody
    waiting, whatever it does in between."""
    if device.type != "cuda":
        return HostMoment()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class DataWait(L.Callback):
    """Share of the time that the device waits for its next batch, and the wait for its first: `throughput/...`.

    The last of the callbacks: what it clocks is from the end of an update, callbacks and all, to the next batch.
    """

    def __init__(self) -> None:
        self.first_batch_s: float | None = None
        self._started = 0.0
        self._ended: Any = None
        self._waits: deque[tuple[Any, Any]] = deque()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._started = time.perf_counter()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        if self.first_batch_s is None:
            self.first_batch_s = time.perf_counter() - self._started
        else:
            self._waits.append((self._ended, moment(module.device)))

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self._ended = moment(module.device)

    def pop(self) -> float:
        """Seconds waited since the last call, without the first batch, as far as the device has come."""
        waited_ms = 0.0
        while self._waits and self._waits[0][1].query():
            ended, began = self._waits.popleft()
            waited_ms += ended.elapsed_time(began)
        return waited_ms / 1000


class Metrics(L.Callback):
    """Scalars into the loggers and `metrics.jsonl`, against updates.

    samples_per_update: samples that one update pushes through the trained networks, all ranks together.
    ended: when the last update did, on the clock of `time.perf_counter`; None before the first one of this process.
    """

    def __init__(self, path: Path, every: int, data: Realised, samples_per_update: int, wait: DataWait) -> None:
        self.path = path
        self.wait = wait
        self.every = every
        self.data = data
        self.samples_per_update = samples_per_update
        self._logged = (0.0, 0)
        self.ended: float | None = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, RootModule)
        if trainer.is_global_zero:
            drop_lines_after(self.path, module.num_updates)
        self._logged = (time.perf_counter(), module.num_updates)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, RootModule)
        self.ended = time.perf_counter()
        if module.num_updates % self.every and module.num_updates != module.total_updates:
            return
        scalars = {
            **module.means.pop(),
            **self._mixture(self._logged[1], module.num_updates),
            **module.learning_rates(),
            **self._throughput(module.num_updates),
            **_memory(module.device),
            "skipped_steps": float(module.num_skipped),
        }
        # A step that was not taken leaves numbers that are not finite: JSON has none, and no plot needs them.
        scalars = {name: value for name, value in scalars.items() if math.isfinite(value)}
        if trainer.is_global_zero:
            log_scalars(trainer, scalars, module.num_updates)
            with disk_errors(self.path), self.path.open("a") as file:
                file.write(json.dumps({"update": module.num_updates, **scalars}) + "\n")
        self._logged = (time.perf_counter(), module.num_updates)

    def _mixture(self, since: int, until: int) -> dict[str, float]:
        before, after = self.data.realised(since), self.data.realised(until)
        drawn = {name: count - before[name] for name, count in after.items()}
        total = sum(drawn.values())
        return {f"mixture/{name}": count / total for name, count in drawn.items()}

    def _throughput(self, num_updates: int) -> dict[str, float]:
        started, since = self._logged
        wall_s, updates = time.perf_counter() - started, num_updates - since
        return {
            "throughput/samples_per_s": updates * self.samples_per_update / wall_s,
            "throughput/s_per_update": wall_s / updates,
            "throughput/data_wait_share": self.wait.pop() / wall_s,
            "throughput/first_batch_s": self.wait.first_batch_s or 0.0,
        }


def _memory(device: torch.device) -> dict[str, float]:
    """Highest memory of tensors on a GPU since the first update."""
    return {"memory/peak_gib": torch.cuda.max_memory_allocated(device) / 2**30} if device.type == "cuda" else {}
