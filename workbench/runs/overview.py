"""All runs under a folder, each read from its small files within milliseconds. Imports no torch."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import lock_descriptor

from workbench.common.errors import UserError
from workbench.common.files import LOCK, is_gone
from workbench.common.outside import read_bytes, read_json
from workbench.recipe.reading import flat_values
from workbench.runs import labels
from workbench.runs.run_folder import RunFolder
from workbench.runs.run_scores import Score, further_numbers, numbers_of, outdated, scores_of, student_metrics, whole

State = Literal["running", "finished", "stopped", "pruned", "failed", "unreadable"]
Value = str | float
_OF_TRIALS: dict[str, State] = {"fail": "failed", "pruned": "pruned"}
_DEEPEST = 5
_LARGEST_RECIPE = 1 << 20
_MOST_VALUES = 5000
_TAIL_BYTES = 1 << 16
_SECTION = re.compile(rb"^(?=[A-Za-z_])", re.MULTILINE)
"""Where a section of a recipe begins, as `to_yaml` writes it."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Run:
    """What the overview shows of a run.

    changed: seconds since 1970. done, total: updates. scores: of the student, by `t2i` and `editing`. numbers: what
    else a run can be sorted by, the categories of both benchmarks (`t2i/NAME`) and its other evaluations
    (`NAME:score`) among it. nfe: network evaluations behind the scores, None without any. outdated: which student the
    scores are of, where another one stands there now. recipe: every value by its dotted key.
    """

    path: Path
    name: str
    state: State
    changed: float
    done: int
    total: int
    nfe: int | None
    outdated: str
    scores: Mapping[str, Score]
    numbers: Mapping[str, float]
    recipe: Mapping[str, Value]
    labels: labels.Labels

    def values(self) -> dict[str, Value]:
        """Everything that runs are sorted and filtered by."""
        own: dict[str, Value] = {
            "name": self.name,
            "state": self.state,
            "age": max(0.0, time.time() - self.changed),
            "done": self.done,
            "tags": " ".join(self.labels.tags),
            "note": self.labels.note,
            "outdated": str(bool(self.outdated)).lower(),
        }
        if self.nfe is not None:
            own["nfe"] = self.nfe
        return {**self.recipe, **self.numbers, **own}


def runs_in(folder: Path) -> list[Run]:
    """All runs and trials in `folder`, or the run that it is, by name.

    Raises: UserError if there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: name one with runs in it")
    states: dict[Path, Mapping[str, str]] = {}
    found = []
    for path in sorted(_run_folders(folder, _DEEPEST)):
        of_study = states.setdefault(path.parent, _states_of_trials(path.parent))
        name = str(path.relative_to(folder)) if path != folder else folder.resolve().name
        found.append(read_run(path, name, of_study.get(path.name)))
    return found


def _run_folders(folder: Path, deepest: int) -> Iterator[Path]:
    if (folder / "recipe.yaml").is_file():
        yield folder
    elif deepest:
        try:
            below = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
        except OSError:
            return
        for name in below:
            yield from _run_folders(folder / name, deepest - 1)


def read_run(path: Path, name: str, of_trial: str | None = None) -> Run:
    """The run in `path`; what is damaged in it is left out. of_trial: its state in a study."""
    folder = RunFolder(path)
    recipe, record = _recipe(folder.recipe), folder.read_record()
    saved = folder.checkpoint_updates()
    done = max([record.finished or 0, _last_update(folder.scalars), *saved[-1:]])
    pretrains = record.command == "pretrain" or (not folder.record.is_file() and folder.teacher.exists())
    total = recipe.get("pretrain.steps" if pretrains else "trainer.updates")
    metrics = student_metrics(path / "metrics.json")
    return Run(
        path=path,
        name=name,
        state=_state(folder, recipe, done, total, of_trial),
        changed=_changed(folder),
        done=done,
        total=int(total) if isinstance(total, int | float) else 0,
        nfe=whole(metrics.get("nfe")),
        outdated=outdated(folder, metrics),
        scores=scores_of(metrics),
        numbers=numbers_of(metrics) | further_numbers(path / "evaluation"),
        recipe=recipe,
        labels=labels.read(path),
    )


def _state(
    folder: RunFolder, recipe: Mapping[str, Value], done: int, total: Value | None, of_trial: str | None
) -> State:
    if _is_held(folder.path / LOCK):
        return "running"
    if total is None:
        return "unreadable"
    if of_trial in _OF_TRIALS:
        return _OF_TRIALS[of_trial]
    if folder.delivered() is None:
        return "stopped"
    # Of before there was a `run.json`, and of a study's: what was delivered tells.
    whole = folder.read_record().finished == done if folder.record.is_file() else done == total
    return "finished" if whole else "stopped"


def _is_held(lock: Path) -> bool:
    """Whether a process holds the run. The lock is tried only where the one that it names may live."""
    try:
        pid, _, host = lock.read_text(errors="replace")[:200].strip().partition(" ")
        if host == socket.gethostname() and is_gone(pid):
            return False
        descriptor = os.open(lock, os.O_RDWR)
    except OSError:
        return False
    try:
        return not lock_descriptor(descriptor, blocking=False)
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _recipe(path: Path) -> dict[str, Value]:
    """Every value by its dotted key; none where the file is no recipe. Read without its checks, which take longer."""
    try:
        content = read_bytes(path, "", largest=_LARGEST_RECIPE)
        return {key: value for section in _SECTION.split(content) for key, value in _section(section)}
    except (UserError, yaml.YAMLError, ValueError, RecursionError, TypeError):
        return {}


@lru_cache(maxsize=1024)
def _section(content: bytes) -> tuple[tuple[str, Value], ...]:
    """Every value of one section; most sections of most runs are the same bytes."""
    values = yaml.load(content, Loader=_LOADER)
    if values is None:
        return ()
    if not isinstance(values, dict) or _size(values) > _MOST_VALUES:
        raise ValueError("not a section of a recipe")
    return tuple((key, value) for key, value in flat_values(values).items() if key)


def _size(value: Any, counted: int = 0) -> int:
    """Number of values in nested ones, counted no further than need be: aliases make a few bytes endless."""
    counted += 1
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in below:
        if counted > _MOST_VALUES:
            break
        counted = _size(each, counted)
    return counted


def _last_update(path: Path) -> int:
    """Of the last whole line of `metrics.jsonl`."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            found = re.findall(rb'^\{"update": ?(\d{1,15})[,}]', file.read(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[-1]) if found else 0


def _changed(folder: RunFolder) -> float:
    places = (folder.recipe, folder.record, folder.scalars, folder.path / "metrics.json")
    return max((path.stat().st_mtime for path in places if path.is_file()), default=0.0)


def _states_of_trials(folder: Path) -> dict[str, str]:
    """Run folder -> state, where `folder` is a study's."""
    try:
        arms = read_json(folder / "study.json", dict, "").get("arms") if (folder / "study.json").is_file() else None
    except UserError:
        return {}
    found = {}
    for arm in arms if isinstance(arms, list) else ():
        trials = arm.get("trials") if isinstance(arm, dict) else None
        for trial in trials if isinstance(trials, list) else ():
            if isinstance(trial, dict) and isinstance(trial.get("run"), str):
                found[trial["run"]] = str(trial.get("state"))
    return found
