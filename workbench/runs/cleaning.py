"""`workbench clean`: deletes the checkpoints that nothing needs.

A finished run needs none: its student stays. One with LoRA roles keeps its newest, from which `export --lora` reads the
adapters, and with `trainer.keep=best` the best. A run that is not finished keeps its newest, and one that another run
will still start from keeps that.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from workbench.common import files
from workbench.common.errors import UserError
from workbench.common.outside import Outside, inside, read_json
from workbench.runs.overview import Run, read_run, runs_in
from workbench.runs.run_folder import PROGRESS, RunFolder


@dataclass(frozen=True)
class Waste:
    """Checkpoints of a run that nothing needs, and their size."""

    run: Run
    folders: tuple[Path, ...]
    num_bytes: int


def clean(folder: Path, yes: bool, say: Callable[[str], None] = print) -> int:
    """Tell the size of what nothing needs under `folder`, ask, delete it; returns the bytes that were freed.

    Raises: UserError for no folder, or for nobody to ask without `yes`.
    """
    runs = runs_in(folder)
    for run in runs:
        if run.state == "running":
            say(f"{run.path}: in use, left alone")
    neighbours = _neighbours(folder) if RunFolder(folder).is_run() else runs
    found = [waste for run in runs if (waste := waste_of(run, neighbours)) is not None]
    if not found:
        say(f"{folder}: no checkpoint that nothing needs")
        return 0
    for waste in found:
        say(f"{waste.run.path}: {_counted(waste)}, {waste.num_bytes / 1e6:,.1f} MB ({_kept(waste)})")
    total = sum(waste.num_bytes for waste in found)
    if not yes and not _agreed(f"delete {total / 1e6:,.1f} MB"):
        return 0
    freed = sum(_delete(waste, say) for waste in found)
    say(f"{freed / 1e6:,.1f} MB deleted")
    return freed


def _neighbours(run: Path) -> list[Run]:
    """The runs next to one."""
    return [read_run(path, path.name) for path in run.resolve().parent.iterdir() if RunFolder(path).is_run()]


def waste_of(run: Run, runs: Sequence[Run]) -> Waste | None:
    """What nothing needs of a run, None where there is nothing. runs: that may start from it."""
    if run.state in ("running", "unreadable"):
        return None
    folder = RunFolder(run.path).checkpoints
    present = [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()] if folder.is_dir() else []
    needed = _needed(run, runs)
    waste = sorted(path for path in present if path.name.startswith(_OURS) and path.name not in needed)
    size = sum(file.stat().st_size for path in waste for file in path.rglob("*") if file.is_file())
    return Waste(run, tuple(waste), size) if waste else None


_OURS = ("update-", "best-", ".update-", ".best-")
"""What `checkpoint.py` writes, half-written ones of a killed process too."""


def _needed(run: Run, runs: Sequence[Run]) -> set[str]:
    """Names of the checkpoints that something may still read. The newest one counts together with those before it up
    to the newest that is whole, which a damaged one is passed over for."""
    folder = RunFolder(run.path)
    is_kept = run.state != "finished" or run.recipe.get("model.roles") == "lora"
    needed = set()
    if is_kept or _is_start(run, runs):
        for update in reversed(folder.checkpoint_updates()):
            needed.add(f"update-{update:06d}")
            if _is_whole(folder.checkpoints / f"update-{update:06d}"):
                break
    if is_kept and run.recipe.get("trainer.keep") == "best":
        needed |= {path.name for path in folder.checkpoints.glob("best-*")}
    return needed


def _is_whole(checkpoint: Path) -> bool:
    """Whether its files are as they were written."""
    try:
        stored = read_json(checkpoint / PROGRESS, _Stored, "")
        named = [(inside(checkpoint, name.removeprefix(".")).with_name(name), of) for name, of in stored.files.items()]
        return all(files.sha256_of_file(path) == of.sha256 for path, of in named)
    except (UserError, OSError):
        return False


class _File(Outside):
    sha256: str


class _Stored(Outside):
    files: dict[str, _File]


def _is_start(run: Run, runs: Sequence[Run]) -> bool:
    """Whether another run that has no checkpoint yet starts from this one."""
    return any(
        bool(other.recipe.get("trainer.start"))
        and Path(str(other.recipe["trainer.start"])).resolve() == run.path.resolve()
        and other.state != "finished"
        and not RunFolder(other.path).checkpoint_updates()
        for other in runs
    )


def _counted(waste: Waste) -> str:
    return f"{len(waste.folders)} checkpoint{'s' if len(waste.folders) > 1 else ''}"


def _kept(waste: Waste) -> str:
    folder, wasted = RunFolder(waste.run.path), {path.name for path in waste.folders}
    done = folder.delivered()
    state = "finished" if waste.run.state == "finished" else f"{waste.run.state} at update {waste.run.done}"
    kept = any(f"update-{update:06d}" not in wasted for update in folder.checkpoint_updates())
    stays = ["the newest stays"] if kept else []
    stays += [f"{done.name} stays, more updates are then refused"] if done is not None and not kept else []
    return "; ".join([state, *stays])


def _agreed(what: str) -> bool:
    if not sys.stdin.isatty():
        raise UserError(f"{what}? There is no terminal to ask: give --yes")
    return input(f"{what}? [y/N] ").strip().lower() in ("y", "yes")


def _delete(waste: Waste, say: Callable[[str], None]) -> int:
    """Bytes freed; 0 where the run has begun again meanwhile."""
    try:
        with files.only_one(waste.run.path, "trainer.folder"):
            for path in waste.folders:
                # Out of sight first: what is half deleted is no checkpoint.
                gone = path.with_name(f".{path.name.lstrip('.')}.partial")
                if gone != path:
                    path.rename(gone)
                shutil.rmtree(gone)
    except UserError as error:
        say(f"{error}")
        return 0
    return waste.num_bytes
