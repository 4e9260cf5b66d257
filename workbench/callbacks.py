"""What happens around a student update: averaging, logging, checkpoints, pictures. Order matters: see `callbacks`."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from workbench import checkpoint
from workbench.modules.root import RootModule
from workbench.optimisation import MovingAverage

Grid = Callable[[RootModule], np.ndarray]
"""Draws the fixed prompts with the student's current weights: uint8 (H, W, 3). Every rank calls it."""

Score = Callable[[RootModule], dict[str, float]]
"""Scores of the student's current weights by name. Every rank calls it."""


class Averaging(L.Callback):
    """Moving average of the student, taken after every update."""

    average: MovingAverage

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, RootModule)
        self.average = MovingAverage(module.averaged_parameters(), self.decay)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, RootModule)
        self.average.update(module.num_updates)


class Checkpointing(L.Callback):
    """Saves every `every` updates and at the end; loads the checkpoint that the run continues from."""

    def __init__(self, folder: Path, every: int, averaging: Averaging) -> None:
        self.folder = folder
        self.every = every
        self.averaging = averaging

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, RootModule)
        for optimizer in trainer.optimizers:
            checkpoint.prime(optimizer)
        found = checkpoint.newest(self.folder)
        if found is not None:
            path, progress = found
            checkpoint.load(path, self._state(trainer, module))
            module.num_updates, module.num_skipped = progress.num_updates, progress.num_skipped

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, RootModule)
        if module.num_updates % self.every == 0 or module.num_updates == module.total_updates:
            progress = checkpoint.Progress(module.num_updates, module.num_skipped)
            checkpoint.save(self.folder, self._state(trainer, module), progress)

    def _state(self, trainer: L.Trainer, module: RootModule) -> dict[str, Any]:
        average = self.averaging.average.average
        return checkpoint.training_state(module.trained_parameters(), average, trainer.optimizers)


class Realised(Protocol):
    """A datamodule that knows what it has handed out."""

    def realised(self, num_steps: int) -> dict[str, int]:
        """Samples of each category in the first `num_steps` steps, all ranks together."""


class Metrics(L.Callback):
    """Scalars into TensorBoard and `metrics.jsonl`, against updates.

    samples_per_update: samples that one update pushes through the trained networks, all ranks together.
    """

    def __init__(self, path: Path, every: int, data: Realised, samples_per_update: int) -> None:
        self.path = path
        self.every = every
        self.data = data
        self.samples_per_update = samples_per_update
        self._logged = (0.0, 0)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, RootModule)
        if trainer.is_global_zero:
            drop_lines_after(self.path, module.num_updates)
        self._logged = (time.perf_counter(), module.num_updates)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, RootModule)
        if module.num_updates % self.every and module.num_updates != module.total_updates:
            return
        scalars = {
            **module.means.pop(),
            **self._mixture(self._logged[1], module.num_updates),
            **module.learning_rates(),
            **self._throughput(module.num_updates),
            "skipped_steps": float(module.num_skipped),
        }
        # A step that was not taken leaves numbers that are not finite: JSON has none, and no plot needs them.
        scalars = {name: value for name, value in scalars.items() if math.isfinite(value)}
        if trainer.is_global_zero:
            assert isinstance(trainer.logger, TensorBoardLogger)
            trainer.logger.log_metrics(scalars, step=module.num_updates)
            with self.path.open("a") as file:
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
        }


class SampleGrid(L.Callback):
    """The fixed prompts with the averaged student, at every milestone, as PNG and in TensorBoard."""

    def __init__(self, folder: Path, every: int, averaging: Averaging, grid: Grid) -> None:
        self.folder = folder
        self.every = every
        self.averaging = averaging
        self.grid = grid

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, RootModule)
        if module.num_updates == 0:
            self._draw(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, RootModule)
        if module.num_updates % self.every == 0 or module.num_updates == module.total_updates:
            self._draw(trainer, module)

    def _draw(self, trainer: L.Trainer, module: RootModule) -> None:
        self.averaging.average.swap()
        picture = self.grid(module)
        self.averaging.average.swap()
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"update-{module.num_updates:06d}.png"
            temporary = path.with_suffix(".partial")
            Image.fromarray(picture).save(temporary, format="PNG")
            os.replace(temporary, path)
            assert isinstance(trainer.logger, TensorBoardLogger)
            trainer.logger.experiment.add_image("samples", picture, module.num_updates, dataformats="HWC")


class MilestoneScores(L.Callback):
    """The averaged student's benchmark scores at every milestone, into TensorBoard and `milestones.jsonl`."""

    def __init__(self, path: Path, every: int, averaging: Averaging, score: Score) -> None:
        self.path = path
        self.every = every
        self.averaging = averaging
        self.score = score

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, RootModule)
        if trainer.is_global_zero:
            drop_lines_after(self.path, module.num_updates)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, RootModule)
        if module.num_updates % self.every and module.num_updates != module.total_updates:
            return
        self.averaging.average.swap()
        scores = self.score(module)
        self.averaging.average.swap()
        if trainer.is_global_zero:
            assert isinstance(trainer.logger, TensorBoardLogger)
            named = {f"milestone/{name}": value for name, value in scores.items()}
            trainer.logger.log_metrics(named, step=module.num_updates)
            with self.path.open("a") as file:
                file.write(json.dumps({"update": module.num_updates, **scores}) + "\n")


def drop_lines_after(path: Path, update: int) -> None:
    """Forget logged lines beyond the checkpoint that the run continues from, and a last line cut short by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["update"] <= update:
                kept.append(line)
        except (ValueError, KeyError):
            continue
    temporary = path.with_suffix(".partial")
    temporary.write_text("".join(f"{line}\n" for line in kept))
    os.replace(temporary, path)
