"""What a stage of the zoo keeps beside its result: how far it got, under which settings, and a TensorBoard log.

A stage that is started again under the same settings goes on from there, and one that is done is left alone; under
other settings it begins anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from datamodules import files

STATE_FILE = "stage.json"
TENSORBOARD_FOLDER = "tensorboard"


def key_of(settings: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that change with any of the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


class Stage:
    """Progress of one stage in its folder: `steps` taken and `wall_s` spent in all its starts, whether it is `done`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.key = folder, key_of(settings)
        self.steps, self.wall_s, self.done = 0, 0.0, False
        self.report: dict[str, Any] = {}
        try:
            state = json.loads((folder / STATE_FILE).read_text())
        except (OSError, ValueError):
            return
        if state["key"] == self.key:
            self.steps, self.wall_s, self.done = state["steps"], state["wall_s"], state["done"]
            self.report = state["report"]

    def write(self, steps: int, wall_s: float, done: bool, report: Mapping[str, Any] | None = None) -> None:
        """Keep the progress; what it refers to must be on disk already."""
        self.steps, self.wall_s, self.done = steps, wall_s, done
        self.report = dict(report or {})
        state = {"key": self.key, "steps": steps, "wall_s": wall_s, "done": done, "report": self.report}
        files.write_bytes(self.folder / STATE_FILE, (json.dumps(state, indent=1) + "\n").encode())

    def log(self) -> SummaryWriter:
        """TensorBoard log of the stage; what an interrupted start logged beyond the kept progress is dropped."""
        return SummaryWriter(str(self.folder / TENSORBOARD_FOLDER), purge_step=self.steps + 1)
