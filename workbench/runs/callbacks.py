"""What happens around a student update: averaging, logging, checkpoints, pictures. Order matters: see `callbacks`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from PIL import Image

from workbench.common.console import say
from workbench.common.files import whole_file
from workbench.common.jsonl import MILESTONE_CASES, drop_lines_after, read_scalars
from workbench.engine.optimisation import MovingAverage
from workbench.modules.root import RootModule
from workbench.runs import checkpoint, continuing
from workbench.runs.collapse import PATIENCE, CollapseMonitor
from workbench.runs.loggers import disk_errors, log_picture, log_scalars

Grid = Callable[[RootModule], np.ndarray]
"""Draws the fixed prompts with the student's current weights: uint8 (H, W, 3). Every rank calls it."""


@dataclass(frozen=True)
class Scored:
    """Scores of a student: means by name, and of every case, by benchmark, category and case."""

    means: dict[str, float]
    cases: dict[str, dict[str, dict[str, float]]]


Scores = Callable[[RootModule], Scored]
"""Scores of the student's current weights. Every rank calls it."""


class StartsAt(Protocol):
    """A datamodule that begins at a step."""

    start_step: int


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

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averaged weights in the student's place. Shapes that training has not compiled run uncompiled: a
        compilation takes longer than the few evaluations of a milestone."""
        self.average.swap()
        with torch.compiler.set_stance("eager_on_recompile"):
            yield
        self.average.swap()


class Resuming(L.Callback):
    """Loads the newest whole checkpoint, and tells data and log where the run goes on.

    num_done: updates of that checkpoint. loggers: makes those of a run that goes on after so many updates. start: what
    a run without a checkpoint starts from, at update 0.
    """

    num_done = 0

    def __init__(
        self,
        folder: Path,
        averaging: Averaging,
        data: StartsAt,
        loggers: Callable[[int], list[Logger]],
        start: continuing.Start | None = None,
    ) -> None:
        self.folder, self.averaging, self.data, self.loggers = folder, averaging, data, loggers
        self.start = start
        self._found: tuple[Path, checkpoint.Progress] | None = None

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """All ranks are there, and no data have been asked for."""
        assert isinstance(module, RootModule)
        self._found = checkpoint.newest_whole(self.folder)
        self.num_done = self._found[1].num_updates if self._found is not None else 0
        if self.num_done:
            say(f"continuing {self.folder.parent} at update {self.num_done} of {module.total_updates}")
        self.data.start_step = self.num_done
        trainer.loggers = self.loggers(self.num_done)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, RootModule)
        for optimizer in trainer.optimizers:
            checkpoint.prime(optimizer)
        if self._found is not None:
            path, progress = self._found
            checkpoint.load(path, _state(trainer, module, self.averaging))
            module.num_updates = progress.num_updates
            module.skips.restart(progress.num_skipped)
        elif self.start is not None:
            student = list(module.averaged_parameters())
            continuing.load_start(self.start, _state(trainer, module, self.averaging), student)


class Checkpointing(L.Callback):
    """Saves every `every` updates and at the end. It comes behind what writes of an update: a run that is killed in
    between does the update again, and writes of it again."""

    def __init__(self, folder: Path, every: int, averaging: Averaging) -> None:
        self.folder = folder
        self.every = every
        self.averaging = averaging

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, RootModule)
        if module.num_updates % self.every == 0 or module.num_updates == module.total_updates:
            progress = checkpoint.Progress(module.num_updates, module.num_skipped)
            checkpoint.save(self.folder, _state(trainer, module, self.averaging), progress)


def _state(trainer: L.Trainer, module: RootModule, averaging: Averaging) -> dict[str, Any]:
    return checkpoint.training_state(module.trained_parameters(), averaging.average.held, trainer.optimizers)


class Milestones(L.Callback):
    """Records the distance of the averaged student at every milestone, raises an alarm when it has grown for long, and
    keeps the weights of the best.

    path: a line a milestone. folder: of the checkpoints, None to keep no best. scores: recorded with the distance; that
    of every case in a file next to `path`, `milestone_cases.jsonl`, likewise a line a milestone.
    """

    def __init__(
        self,
        path: Path,
        folder: Path | None,
        every: int,
        averaging: Averaging,
        distance: Callable[[RootModule], float],
        scores: Scores | None = None,
    ) -> None:
        self.path, self.folder, self.every = path, folder, every
        self.cases = path.with_name(MILESTONE_CASES)
        self.averaging, self.distance, self.scores = averaging, distance, scores
        self.monitor = CollapseMonitor()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, RootModule)
        self.monitor = CollapseMonitor.of(
            (update, row) for update, row in read_scalars(self.path) if update <= module.num_updates
        )
        if trainer.is_global_zero:
            drop_lines_after(self.path, module.num_updates)
            # Those of a milestone are written before its line: killed in between, it is scored again.
            drop_lines_after(self.cases, max(self.monitor.distances, default=0))
        if module.num_updates and module.num_updates not in self.monitor.distances:
            # Killed after the checkpoint and before the milestone.
            self._record(trainer, module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, RootModule)
        self._record(trainer, module)

    def _record(self, trainer: L.Trainer, module: RootModule) -> None:
        update = module.num_updates
        if update % self.every and update != module.total_updates:
            return
        with self.averaging.in_place():
            distance = self.distance(module)
            scores = self.scores(module) if self.scores is not None else Scored({}, {})
        self.monitor.add(update, distance)
        if self.folder is not None and self.monitor.best() == update:
            checkpoint.save_best(self.folder, self.averaging.average.average, update)
        collapsed, best = self.monitor.has_collapsed(), self.monitor.best()
        if trainer.is_global_zero:
            scalars = {"distance": distance, "alarm": float(collapsed), **scores.means}
            scalars = {name: value for name, value in scalars.items() if math.isfinite(value)}
            named = {f"milestone/{name}": value for name, value in scalars.items()}
            log_scalars(trainer, named, update, "milestones")
            if scores.cases:
                _append(self.cases, {"update": update, **scores.cases})
            # Last: what is listed here is not scored again.
            _append(self.path, {"update": update, **scalars})
        if collapsed and best is not None:
            trainer.print(
                f"alarm at update {update}: the student has been clearly worse for {PATIENCE} milestones than at "
                f"update {best} (distance {distance:.3f} against {self.monitor.distances[best]:.3f})"
            )


def _append(path: Path, row: dict[str, Any]) -> None:
    with disk_errors(path), path.open("a") as file:
        file.write(json.dumps(row) + "\n")


class SampleGrid(L.Callback):
    """The fixed prompts with the averaged student, at every milestone, as PNG and in the loggers."""

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
        with self.averaging.in_place():
            picture = self.grid(module)
        if trainer.is_global_zero:
            with whole_file(self.folder / f"update-{module.num_updates:06d}.png") as file:
                Image.fromarray(picture).save(file, format="PNG")
            log_picture(trainer, "samples", picture, module.num_updates)
