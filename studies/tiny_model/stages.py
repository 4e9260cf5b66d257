"""What a stage of the tiny model stores with its result: how far it got, under which settings, and a TensorBoard log.

A stage that is started again under the same settings goes on from there, and one that is done is left alone; under
other settings it begins anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from datamodules.openmoji import CATEGORIES
from workbench.batch import TASKS
from workbench.common import files

STATE_FILE = "stage.json"
TENSORBOARD_FOLDER = "tensorboard"


def key_of(settings: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that change with any of the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]


@cache
def world_fingerprint() -> str:
    """Changes with the world's vocabulary, its texts and what it draws."""
    from datamodules.openmoji import HEADS, draw

    parts = hashlib.sha256(json.dumps(HEADS).encode())
    for task in TASKS:
        for category in CATEGORIES[task]:
            for index in range(3):
                sample = draw(task, category, "train", index, resolution=32)
                assert sample.target is not None
                parts.update(sample.text.encode())
                parts.update(sample.target.tobytes())
    return parts.hexdigest()[:12]


class Stage:
    """Progress of one stage in its folder: `steps` taken and `wall_s` spent in all its starts, whether it is `done`.

    is_other: what the folder holds was made under other settings.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.key = folder, key_of(settings)
        self.steps, self.wall_s, self.done = 0, 0.0, False
        self.report: dict[str, Any] = {}
        self.is_other = False
        try:
            state = json.loads((folder / STATE_FILE).read_text())
        except (OSError, ValueError):
            return
        self.is_other = state["key"] != self.key
        if not self.is_other:
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
