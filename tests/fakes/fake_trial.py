"""A fast fake trial, which imports next to nothing: the fork server of every worker reads this file first."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workbench.recipe.config import Recipe


def execute(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """A trial of `seconds` (a file of the study folder, 0.5 without it), in steps that each leave a line in the run
    folder: what an earlier attempt has done is not done again, and a line of somebody else between two is an error."""
    told = folder.parent
    folder.mkdir(exist_ok=True)
    steps, log = 5, folder / "steps.jsonl"
    done = len(log.read_text().splitlines()) if log.exists() else 0
    seconds = float((told / "seconds").read_text()) if (told / "seconds").exists() else 0.5
    for step in range(done, steps):
        time.sleep(seconds / steps)
        _misbehave(told, recipe, step)
        score = 3 + 0.1 * recipe.dmd.student_shift + 0.01 * recipe.seed
        with (folder / "milestones.jsonl").open("a") as file:
            file.write(json.dumps({"update": step, "score": score}) + "\n")
        with log.open("a") as file:
            file.write(json.dumps({"step": step, "process": os.getpid()}) + "\n")
    steps_done = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps_done == list(range(steps)), f"two processes wrote {folder}: {steps_done}"
    student = {"nfe": 4, "n": 3, "t2i_bench": {"mean": {"mean": score_of(recipe)}}}
    return {"split": "search", "models": {"student": student}, "cost": {"distill": seconds / 2, "evaluate": 0.0}}


def score_of(recipe: Recipe) -> float:
    return 3 + 0.1 * recipe.dmd.student_shift + 0.01 * recipe.seed


def _misbehave(told: Path, recipe: Recipe, step: int) -> None:
    """Fails at step 2 as the file `faults` of the study folder asks: it maps seeds to kinds of failure."""
    faults = json.loads((told / "faults").read_text()) if (told / "faults").exists() else {}
    if step != 2:
        return
    match faults.get(str(recipe.seed)):
        case None:
            pass
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "diverged":
            raise ArithmeticError("the loss\nis not finite")
        case "exit":
            os._exit(7)
        case other:
            raise AssertionError(other)
