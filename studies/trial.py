"""One trial: a recipe becomes an ordinary run folder in processes of its own, and one number.

The study's process joins no process group and holds no model, so a trial may be sharded over any number of devices.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

from datamodules.files import write_bytes
from studies.seam import TrialFailed
from workbench.config import Recipe
from workbench.recipes import to_yaml

INTERRUPTED = 130
SECONDS_TO_STOP = 60.0


def run_trial(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Distil and evaluate `recipe` into `folder` (`recipe.trainer.folder`); an interrupted run there continues.

    Returns: the run's `metrics.json`.
    Raises: TrialFailed with the last line that the failing command wrote.
    """
    resolved = folder.with_suffix(".yaml")
    write_bytes(resolved, to_yaml(recipe).encode())
    _workbench("distill", str(resolved))
    _workbench("evaluate", str(folder))
    path = folder / "metrics.json"
    if not path.is_file():
        raise TrialFailed(f"evaluation wrote no {path}")
    metrics: dict[str, Any] = json.loads(path.read_text())
    return metrics


def _workbench(*arguments: str) -> None:
    """A `workbench` command, its bars and errors shown as they come."""
    command = [sys.executable, "-m", "workbench", *arguments]
    tail: deque[str] = deque(maxlen=50)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                sys.stderr.write(line)
                tail.append(line.strip())
            code = process.wait()
        except KeyboardInterrupt:
            # The child got the same signal: let it save its state before it goes.
            try:
                process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                process.terminate()
            raise
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code != 0:
        said = [line for line in tail if line]
        told = [line for line in said if line.startswith("error:")] or said or ["nothing was written to stderr"]
        raise TrialFailed(f"workbench {arguments[0]} ended with {code}: {told[-1]}")
