"""How a command finds its run folder: new, to be continued, finished, or started from another run's checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from workbench.common import ranks
from workbench.common.console import say
from workbench.common.ending import FULL_ERRNOS
from workbench.common.errors import UserError
from workbench.common.files import sha256_of_file
from workbench.recipe.config import Optim, Recipe
from workbench.runs import checkpoint
from workbench.runs.inputs import hashes_of
from workbench.runs.run_folder import Beginning, RunFolder


@dataclass(frozen=True)
class Start:
    """The checkpoint that a new run starts from, and the run that it is of."""

    run: str
    path: Path
    num_updates: int


def distillation(folder: RunFolder, recipe: Recipe, data: str) -> tuple[Beginning, Start | None]:
    """What `recipe` begins or continues in `folder`, and what a new run starts from. data: hash of the encoded data.

    Raises:
        UserError: as `num_done`, or `trainer.start` names nothing that this recipe can start from.
    """
    inputs = hashes_of(recipe, data, "distill")
    start = None
    if recipe.trainer.start and not folder.checkpoint_updates():
        start = _start_of(folder, recipe, inputs.get("model.folder"))
        inputs["trainer.start"] = sha256_of_file(start.path / checkpoint.PROGRESS)[:16]
    beginning = Beginning(recipe, "distill", inputs)
    num_done(folder, beginning)
    return beginning, start


def num_done(folder: RunFolder, beginning: Beginning) -> int:
    """Updates of the run in `folder` that the command goes on from; writes nothing.

    Raises:
        UserError: as `RunFolder.check`, or the run has gone further than the command asks for.
    """
    folder.check(beginning)
    found = checkpoint.newest(folder.checkpoints)
    done = found[1].num_updates if found is not None else 0
    if done > beginning.total:
        raise UserError(
            f"{folder.path} has done {done} updates, and {beginning.total_key} is {beginning.total}: set it to as many "
            "or more, or choose another trainer.folder"
        )
    return done


def status(folder: RunFolder, beginning: Beginning, start: Start | None) -> str:
    """What the command would do in its run folder, one line. Raises: UserError as `num_done`."""
    done, total = num_done(folder, beginning), beginning.total
    if done == total and folder.finished() == total:
        return f"{folder.path} is finished at update {total}: nothing is left to train"
    if done:
        return f"{folder.path} continues at update {done} of {total}"
    if start is not None:
        return f"{folder.path} starts from update {start.num_updates} of {start.run}"
    return f"{folder.path} begins at update 0 of {total}"


@contextmanager
def held(folder: RunFolder, beginning: Beginning) -> Iterator[None]:
    """Claim and hold the folder while the command runs in it; at the end the run is finished.

    Raises:
        UserError: as `num_done`; another process holds the folder; the disk is full.
    """
    done = num_done(folder, beginning)
    with one_line_where_full(folder.path), folder.begun(beginning, done):
        yield


@contextmanager
def one_line_where_full(folder: Path) -> Iterator[None]:
    """A full disk is one line, whoever finds it full: a logger's thread or a library with errors of its own. So is a
    rank that ended, for those that waited for it."""
    shown = threading.excepthook

    def show(arguments: threading.ExceptHookArgs) -> None:
        # The thread's next user gets the same error.
        if not _is_full(arguments.exc_value):
            shown(arguments)

    threading.excepthook = show
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        ranks.blame_the_gone(error)
        if not _is_full(error):
            raise
        # Closing a log raises again, without a path, what was an error with one.
        named = error.__context__
        while named is not None and not isinstance(named, UserError):
            named = named.__context__
        if named is not None:
            raise named from None
        where = getattr(error, "filename", None) or folder
        raise UserError(
            f"cannot write {where}: the disk is full, or a quota is used up; free some space (`workbench clean` "
            "deletes checkpoints that nothing needs) and give the same command again: it continues from the last "
            "checkpoint"
        ) from error
    finally:
        threading.excepthook = shown


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if (isinstance(error, OSError) and error.errno in FULL_ERRNOS) or "No space left on device" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _start_of(folder: RunFolder, recipe: Recipe, base: str | None) -> Start:
    """base: hash of the base teacher's weights."""
    name = recipe.trainer.start
    run, key = RunFolder(Path(name)), f"trainer.start={name}"
    if run.path.resolve() == folder.path.resolve():
        raise UserError(f"{key} is the run's own folder: choose another trainer.folder")
    if not run.is_run():
        raise UserError(f"{key} is no run folder: name a run of `workbench distill`")
    before, record = run.read_recipe().model, run.read_record()
    if record.command != "distill":
        raise UserError(f"{key} is a run of `workbench {record.command}`: name its result as model.folder instead")
    shape = ("roles", "lora_rank", "lora_alpha") if recipe.model.roles == "lora" else ("roles",)
    for option in shape:
        ours, theirs = getattr(recipe.model, option), getattr(before, option)
        if ours != theirs:
            raise UserError(f"{key} was trained with model.{option}={theirs}, and here it is {ours}: give the same")
    _require_same_moments(key, run.read_recipe().optim, recipe.optim)
    known = record.inputs.get("model.folder")
    if recipe.model.roles == "lora" and None not in (base, known) and base != known:
        raise UserError(f"{key} has adapters over other weights than model.folder={recipe.model.folder}: name those")
    found = checkpoint.newest_whole(run.checkpoints)
    if found is None:
        student = f"; model.student={run.student} starts from its student alone" if run.student.exists() else ""
        raise UserError(f"{key} has no checkpoint to start from{student}")
    return Start(name, found[0], found[1].num_updates)


def _require_same_moments(key: str, before: Optim, now: Optim) -> None:
    """In 8 bits there is a first moment only where beta1 asks for one."""
    held = [(optim.moments, optim.moments == "8bit" and optim.beta1 > 0) for optim in (before, now)]
    if held[0] != held[1]:
        raise UserError(
            f"{key} holds moments otherwise (optim.moments={before.moments}, optim.beta1={before.beta1:g}) than this "
            f"recipe ({now.moments}, {now.beta1:g}): give the same, or name its student as model.student"
        )


def load_start(start: Start, state: dict[str, Any], student: Sequence[str]) -> None:
    """Read what `start` holds of `state` into its tensors (collective); what it lacks, as the classifier of a loss that
    it was trained without, stays as a new run has it. An average begins at what the run of `start` delivers, held or
    not. student: names that must be there.

    Raises:
        UserError: the checkpoint cannot be read, or its student is of another shape.
    """
    stored = checkpoint.contents(start.path)

    def taken(prefix: str, part: dict[str, Any]) -> dict[str, Any]:
        found = {
            name: taken(f"{prefix}.{name}", value) if isinstance(value, dict) else value
            for name, value in part.items()
            if isinstance(value, dict) or _fits(stored.get(f"{prefix}.{name}"), value)
        }
        return {name: value for name, value in found.items() if not isinstance(value, dict) or value}

    kept = {part: taken(part, values) for part, values in state.items()}
    lacking = [name for name in student if name not in kept["parameters"]]
    if lacking:
        raise UserError(f"trainer.start={start.run} has a student of another shape ({lacking[0]}): name another run")
    new = len(state["parameters"]) - len(kept["parameters"])
    checkpoint.load(start.path, {part: values for part, values in kept.items() if values})
    if "average" in state and checkpoint.delivered(stored) == "parameters":
        checkpoint.load(start.path, {"parameters": taken("parameters", state["average"])})
    others = f"; {new} tensors that it lacks start as in any new run" if new else ""
    say(f"starting from student, fake score and moments of {start.run} at update {start.num_updates}{others}")


def _fits(stored: object, tensor: Any) -> bool:
    return isinstance(stored, TensorStorageMetadata) and stored.size == tensor.shape
