"""One trial: a recipe becomes an ordinary run folder in a process of its own, and one set of metrics.

The study's processes join no process group and hold no model, so a trial may be sharded over any number of devices;
such a one distils through the `workbench` command, which its launcher starts again for every rank.
"""

from __future__ import annotations

import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import Any

from studies.study import TrialFailed
from workbench.common.jsonl import read_scalars
from workbench.evaluation.places import first_files
from workbench.evaluation.trained_student import outdated
from workbench.recipe.config import Recipe
from workbench.recipe.reading import recipe_hash

BUSY = "another process still writes its run folder"
INTERRUPTED = 130
SECONDS_TO_STOP = 60.0
LIBRARIES = ("workbench.runs.runner", "workbench.runs.inference")
"""What every trial imports, seconds of it: read once a worker, before it takes its first trial."""


def lock_of(folder: Path) -> Path:
    """Lock file of the only process that writes run folder `folder`; next to it, since a run folder begins empty."""
    return folder.with_suffix(".lock")


def run_trial(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Distil and evaluate `recipe` into `folder` (`recipe.trainer.folder`); an interrupted run there continues.

    The teacher's answers are given once a study and kept in `teacher/` next to the runs.

    Returns: the run's `metrics.json`, and under `cost` the seconds that distillation and evaluation themselves took.
    Raises: UserError or TrialFailed, what ended it; KeyboardInterrupt where it was interrupted.
    """
    finished = _finished(recipe, folder)
    if finished is not None:
        return {**finished, "cost": {"distill": 0.0, "evaluate": 0.0}}
    from workbench.evaluation.answer_cache import Store
    from workbench.runs import checkpoint
    from workbench.runs.inference import evaluate_run

    found = checkpoint.newest(folder / "checkpoints")
    if recipe.trainer.strategy == "fsdp" or recipe.trainer.devices * recipe.trainer.num_nodes > 1:
        workbench("distill", str(folder.with_suffix(".yaml")))
    else:
        from workbench.runs import machine
        from workbench.runs.runner import distill

        # Of the trial before, if it failed; then of this one.
        machine.release_memory()
        distill(recipe)
        machine.release_memory()
    seconds = seconds_of_updates(folder, found[1].num_updates if found else 0)
    metrics = evaluate_run(folder, [], shared=Store(folder.parent / "teacher"))
    assert metrics is not None
    spent = {phase: of["wall"] for phase, of in metrics.seconds.items()}
    return {**metrics.as_dict(), "cost": {"distill": seconds, "evaluate": spent["total"] - spent.get("loading", 0.0)}}


def _finished(recipe: Recipe, folder: Path) -> dict[str, Any] | None:
    """The metrics of a run that was evaluated before its worker could say so."""
    metrics = first_files(folder).read()
    if metrics is None or metrics.recipe != recipe_hash(recipe) or outdated(folder, metrics):
        return None
    return metrics.as_dict()


def seconds_of_updates(folder: Path, done: int) -> float:
    """Seconds of training that a run logged beyond update `done`, pictures and checkpoints between updates included."""
    total, before = 0.0, done
    for update, row in read_scalars(folder / "metrics.jsonl"):
        if update > done:
            total += (update - before) * row.get("throughput/s_per_update", 0.0)
            before = update
    return total


def workbench(*arguments: str) -> None:
    """A `workbench` command, its bars and errors shown as they come.

    Raises: TrialFailed with its first error, or its last line; KeyboardInterrupt where it was interrupted.
    """
    command = [sys.executable, "-m", "workbench", *arguments]
    tail: deque[str] = deque(maxlen=50)
    # What is open and inheritable is the lock on the run folder: this command holds it too.
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace", close_fds=False) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                sys.stderr.write(line)
                tail.append(line.strip())
            code = process.wait()
        except KeyboardInterrupt:
            # The command got the same signal: let it save its state before it goes.
            try:
                process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                process.terminate()
            raise
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code != 0:
        lines = [line for line in tail if line] or ["nothing was written to stderr"]
        # Of several processes the one that failed says why, and then the others that it is gone.
        said = next((line for line in lines if line.startswith("error:")), lines[-1])
        raise TrialFailed(f"workbench {arguments[0]} ended with {code}: {said}")
