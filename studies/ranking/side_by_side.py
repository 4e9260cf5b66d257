"""Processes that draw the pictures of a ranking side by side, each on one GPU (`studies.ranking.worker`)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from workbench.common.errors import UserError
from workbench.common.progress import advance

LOOK_S = 1.0


def helpers(path: Path, overrides: Sequence[str], devices: Sequence[str], left: Callable[[], int]) -> None:
    """Draw with one process a device until all have ended; the job advances by what is no longer `left`.

    Raises:
        UserError: a process failed; the others go on first.
    """
    module = [sys.executable, "-m", "studies.ranking.worker"]
    started = [
        subprocess.Popen([*module, str(number), str(path), *overrides], env=_environment(device))
        for number, device in enumerate(devices)
    ]
    now = left()
    try:
        while any(process.poll() is None for process in started):
            time.sleep(LOOK_S)
            before, now = now, left()
            advance(before - now)
    finally:
        for process in started:
            process.terminate()
    if failed := [device for device, process in zip(devices, started, strict=True) if process.wait()]:
        raise UserError(f"drawing on device {', '.join(failed)} failed (see above): the same command goes on")


def _environment(device: str) -> Mapping[str, str]:
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "" if device == "cpu" else device}
