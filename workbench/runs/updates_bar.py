"""The bar of a run: updates done and to do, seconds an update, time left."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from workbench.modules.root import RootModule


class UpdatesBar(L.Callback):
    """Shown where there is a terminal, by the first rank. The pace counts from where the run goes on."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("updates"),
        )
        pace = (TimeElapsedColumn(), TextColumn("{task.fields[pace]}"))
        self._progress = Progress(*columns, *pace, transient=False, disable=not sys.stdout.isatty())
        self._began, self._first = 0.0, 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, RootModule)
        if not trainer.is_global_zero or self._progress.tasks:
            return
        self._began, self._first = time.monotonic(), module.num_updates
        self._progress.add_task("training", total=module.total_updates, completed=module.num_updates, pace="")
        self._progress.start()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        assert isinstance(module, RootModule)
        for task in self._progress.task_ids:
            done = module.num_updates - self._first
            pace = pace_of(done, module.total_updates - module.num_updates, time.monotonic() - self._began)
            self._progress.update(task, completed=module.num_updates, pace=pace)

    def teardown(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        self._progress.stop()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self._progress.stop()


def pace_of(done: int, to_do: int, elapsed_s: float) -> str:
    """`1.20 s an update, 0:12:30 left`; many updates a second are given as such."""
    if not done:
        return ""
    each_s = elapsed_s / done
    left_s = round(to_do * each_s)
    pace = f"{each_s:.2f} s an update" if each_s >= 0.1 else f"{1 / each_s:.0f} updates a second"
    return f"{pace}, {left_s // 3600}:{left_s // 60 % 60:02d}:{left_s % 60:02d} left"
