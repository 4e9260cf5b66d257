"""Checkpoints of everything that training changes: trainable weights, their average, moments, and the counters.

One folder a checkpoint, `checkpoints/update-000100/`, written by torch's distributed checkpoint (any number of ranks
reads what any other number wrote) under a temporary name and renamed when it is complete and on the disk. The
previous one stays. Frozen teachers are not stored. `progress.json` holds the counters, and size and sha256 of every
other file: a checkpoint that changed on the disk is not read, and the one before it is taken.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from workbench.backbones.finite import require_finite_values, tensors_of
from workbench.common import ranks
from workbench.common.console import say
from workbench.common.errors import UserError
from workbench.common.large_files import sync
from workbench.common.outside import Count, Outside, inside, read_json
from workbench.engine.moments import AdamW8bit
from workbench.runs import counted_files
from workbench.runs.counted_files import CountedFile
from workbench.runs.run_folder import PROGRESS
from workbench.runs.safe_reader import SafeReader

_NAME = re.compile(r"update-(\d{6,})")
KEPT = 2
WEIGHT_BYTES = 4
"""A trained parameter's, in float32; its moments come on top."""


@dataclass(frozen=True)
class Progress:
    """Counters of a checkpoint."""

    num_updates: int
    num_skipped: int


class _Stored(Outside):
    """The content of `progress.json`. files: by name; None in checkpoints of before they were counted."""

    num_updates: Count
    num_skipped: Count
    files: dict[str, CountedFile] | None = None


def prime(optimizer: torch.optim.Optimizer) -> None:
    """Create the state of an optimiser as its first step would, so that it can be saved and loaded at any time."""
    if isinstance(optimizer, AdamW8bit):
        optimizer.prime()
        return
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.Muon):
            for parameter in group["params"]:
                optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))
            continue
        on_device = group.get("fused") or group.get("capturable")
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device if on_device else "cpu"),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }


def training_state(
    parameters: Mapping[str, nn.Parameter], average: Mapping[str, Tensor], optimizers: list[torch.optim.Optimizer]
) -> dict[str, Any]:
    """The tensors of a checkpoint by name; loading writes into them in place. average: empty where none is held and
    the parameters are what the run delivers."""
    moments = {parameter: state for optimizer in optimizers for parameter, state in optimizer.state.items()}
    return {
        "parameters": {name: parameter.detach() for name, parameter in parameters.items()},
        **({"average": dict(average)} if average else {}),
        "moments": {name: moments[parameter] for name, parameter in parameters.items() if parameter in moments},
    }


def save(folder: Path, state: dict[str, Any], progress: Progress) -> Path:
    """Write the checkpoint of `progress` below `folder` (collective), and drop all but the newest `KEPT`.

    Raises:
        UserError: the disk is full or cannot be written, or another rank ended; the previous checkpoint is untouched.
    """
    final = folder / f"update-{progress.num_updates:06d}"
    _write(final, state, progress)
    _drop(_checkpoints(folder)[:-KEPT])
    return final


def save_best(folder: Path, average: Mapping[str, Tensor], num_updates: int) -> None:
    """Write the averaged weights of the best milestone so far (collective), then delete those of the previous best.

    Raises:
        UserError: as `save`.
    """
    final = best_of(folder, num_updates)
    _write(final, {"average": dict(average)}, Progress(num_updates, 0))
    _drop([old for old in folder.glob("best-*") if old != final])


def best_of(folder: Path, num_updates: int) -> Path:
    """Where `save_best` keeps the weights of that milestone."""
    return folder / f"best-{num_updates:06d}"


def has_best(folder: Path, num_updates: int) -> bool:
    """Whether the weights of that milestone are there and whole (collective)."""
    return fault(best_of(folder, num_updates)) == ""


def load_best(folder: Path, average: Mapping[str, Tensor], num_updates: int) -> None:
    """Read them into the tensors of `average` (collective). Raises: UserError, as `load`."""
    load(best_of(folder, num_updates), {"average": dict(average)})


def _write(final: Path, state: dict[str, Any], progress: Progress) -> None:
    """Write `state` under the name `final` once it is complete and on the disk; what killed writes left goes."""
    folder, temporary = final.parent, final.parent / f".{final.name}.partial"
    if ranks.rank() == 0:
        for leftover in folder.glob(".*.partial"):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
    ranks.barrier()
    try:
        files = counted_files.save(temporary, state)
        if ranks.rank() == 0:
            stored = _Stored(num_updates=progress.num_updates, num_skipped=progress.num_skipped, files=files)
            _write_synced(temporary / PROGRESS, stored.model_dump_json())
            sync(temporary)
            shutil.rmtree(final, ignore_errors=True)
            os.replace(temporary, final)
            sync(folder)
    except (OSError, RuntimeError, CheckpointException) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        ranks.blame_the_gone(error)
        message = (
            f"cannot write the checkpoint {final}: {_reason(error)}; free some disk and run the same command again: "
            "it continues from the previous checkpoint"
        )
        raise (ranks.error_of_all if isinstance(error, CheckpointException) else UserError)(message) from error
    ranks.barrier()


def _drop(folders: Iterable[Path]) -> None:
    if ranks.rank() == 0:
        for old in folders:
            shutil.rmtree(old, ignore_errors=True)
    ranks.barrier()


def load(checkpoint: Path, state: dict[str, Any], reader: SafeReader | None = None) -> None:
    """Read `checkpoint` into the tensors of `state` (collective).

    reader: of this checkpoint, where it is read in parts.

    Raises:
        UserError: a file is missing or damaged, the checkpoint is of another model, a value is not finite, or another
            rank ended.
    """
    try:
        dcp.load(state, storage_reader=reader or SafeReader(checkpoint), no_dist=not ranks.is_distributed())
    except (Exception, CheckpointException) as error:  # torch raises many kinds, all meaning the same to the user
        ranks.blame_the_gone(error)
        raise UserError(
            f"cannot read the checkpoint {checkpoint}: {_reason(error)}; delete that folder to use the one before"
        ) from error
    require_finite_values(f"the checkpoint {checkpoint}", dict(tensors_of(state)), "delete it to use the one before")


def contents(checkpoint: Path) -> Mapping[str, object]:
    """What a checkpoint holds, by name, without its values. Raises: UserError if it cannot be read."""
    try:
        return SafeReader(checkpoint).read_metadata().state_dict_metadata
    except Exception as error:
        raise UserError(f"cannot read the checkpoint {checkpoint}: {error}") from error


def delivered(names: Iterable[str]) -> str:
    """The part of a checkpoint of these `contents` that a run delivers: the average, or the parameters where none was
    held."""
    return "average" if any(name.startswith("average.") for name in names) else "parameters"


class StoredStudent(Mapping[str, Tensor]):
    """The student that a checkpoint delivers, each tensor read to the host when it is asked for.

    parameters: by the wanted name, the name in the checkpoint and a tensor of the same shape and dtype, on any device.
    """

    def __init__(self, checkpoint: Path, parameters: Mapping[str, tuple[str, Tensor]]) -> None:
        self.checkpoint, self.parameters, self._reader = checkpoint, parameters, SafeReader(checkpoint)
        self._part = delivered(contents(checkpoint))

    def __getitem__(self, name: str) -> Tensor:
        stored, like = self.parameters[name]
        values = torch.empty_like(like, device="cpu")
        load(self.checkpoint, {self._part: {stored: values}}, self._reader)
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)


def newest(folder: Path) -> tuple[Path, Progress] | None:
    """The newest checkpoint below `folder` that can be told the counters of, if any; its tensors may be damaged."""
    for checkpoint in reversed(_checkpoints(folder)):
        try:
            stored = _stored(checkpoint)
        except UserError:
            continue
        return checkpoint, Progress(stored.num_updates, stored.num_skipped)
    return None


def newest_whole(folder: Path) -> tuple[Path, Progress] | None:
    """The newest checkpoint below `folder` whose files are as they were written, if there is any checkpoint
    (collective). A line names every newer one that is damaged.

    Raises:
        UserError: there are checkpoints, all of them damaged.
    """
    found = _checkpoints(folder)
    for checkpoint in reversed(found):
        reason = fault(checkpoint)
        if not reason:
            stored = _stored(checkpoint)
            return checkpoint, Progress(stored.num_updates, stored.num_skipped)
        say(f"{checkpoint} is damaged ({reason}): the one before is taken")
    if found:
        raise UserError(f"all checkpoints in {folder} are damaged ({reason}): delete that folder to start again")
    return None


def fault(checkpoint: Path) -> str:
    """What is wrong with the files of a checkpoint, empty where nothing is (collective)."""
    try:
        files = _stored(checkpoint).files
    except UserError as error:
        return str(error)
    if files is None:
        return ""

    def fault_of(name: str) -> str:
        # torch's `.metadata` is hidden.
        path = inside(checkpoint, name.removeprefix(".")).with_name(name)
        return "" if path.is_file() and CountedFile.of(path) == files[name] else f"{name} is gone or has changed"

    return next(filter(None, ranks.in_shares(sorted(files), fault_of)), "")


def _stored(checkpoint: Path) -> _Stored:
    """Raises: UserError for counters that are none, or another checkpoint's."""
    stored = read_json(checkpoint / PROGRESS, _Stored, "delete that folder")
    if stored.num_updates != int(checkpoint.name.rpartition("-")[2]):
        raise UserError(f"{checkpoint / PROGRESS} is of update {stored.num_updates}; delete that folder")
    return stored


def _checkpoints(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("update-*") if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("update-")))


def _reason(error: BaseException) -> str:
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _write_synced(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
