"""Commands of several processes, one of which runs out of memory at its second update."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

FULL = "error: the disk is full"
LINE = "error: CUDA out of memory. Tried to allocate 418.00 MiB: see `When memory runs out` in docs/scale.md"
HOOK = """
import atexit, os, time
if "FAILING_RANK" in os.environ:
    import torch
    from workbench.common import ranks
    from workbench.modules.distiller import Distiller

    step, fails = Distiller.training_step, os.environ.get("LOCAL_RANK", "0") == os.environ["FAILING_RANK"]

    def training_step(module, batch, index):
        if index == 1 and os.environ["FAILING_RANK"] == "all":
            time.sleep(0 if ranks.rank() else 8)
            raise ranks.error_of_all("the disk is full")
        if index == 1 and fails:
            atexit.register(time.sleep, 600)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 418.00 MiB. GPU 0 has no more.")
        if index == 1 and "OTHERS_WAIT" in os.environ:
            time.sleep(600)
        return step(module, batch, index)

    Distiller.training_step = training_step
"""


def run(
    words: list[str], rank: int | Literal["all"], folder: Path, *, others_wait: bool
) -> subprocess.CompletedProcess[str]:
    """`workbench` with `words`, whose process `rank` fails, and has an end of ten minutes; or whose processes find the
    same fault, which takes the first one eight seconds to say. others_wait: as for a collective on a GPU, which tells
    nobody that a rank is gone. folder: for what makes it fail.

    Raises: subprocess.TimeoutExpired after 200 s.
    """
    (folder / "sitecustomize.py").write_text(HOOK)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "FAILING_RANK": str(rank)}
    if others_wait:
        environment["OTHERS_WAIT"] = "1"
    command = [sys.executable, "-m", "workbench", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
