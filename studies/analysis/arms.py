"""The trials of a study as arms: what each scored, how it differs from the reference arm, and what that is worth.

`study.json` gives the trials; their run folders next to it give the score of every case (`evaluation/cases.jsonl`), the
training curves and the resolved recipe. Whatever of these is missing, the rest is still reported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import ConfigDict, Field

from studies.analysis import replicates
from studies.analysis.crossed import Table
from studies.analysis.replicates import Spread
from workbench.common.errors import UserError
from workbench.common.outside import Count, Outside, read_json
from workbench.evaluation.case_scores import Key, read_difficulties, read_scores

NOISE_FLOOR = "noise-floor"
SEARCH = "search"
"""What `study.json` calls the recipes that a search drew: no arm, since no two of them are one recipe."""
BENCHES = {"t2i": ("t2i_bench",), "editing": ("editing_bench",), "score": ("t2i_bench", "editing_bench")}
"""Objective -> the benches it is the mean of; every other objective is a number of the run as a whole."""
REPORTED = ("score", "t2i", "editing", "variety")
"""Objectives that a report shows of every arm; higher is better."""
ONE_SEED = "one seed says nothing of others"

Values = Mapping[str, Any]
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Arm:
    """An arm's trials in the order run. finished: those with a score. cases: of each finished trial the student's
    score by (bench, category, case, evaluation seed), empty where the run folder has none. difficulties: of the cases
    that belong to a part of their category, as the first finished trial has them."""

    name: str
    trials: Sequence[Values]
    finished: Sequence[Values]
    cases: Sequence[Mapping[Key, float]]
    difficulties: Mapping[str, str] = field(default_factory=dict)

    def values(self, objective: str) -> list[float]:
        """The objective's value of every finished trial that has it."""
        found = (trial.get("values", {}).get(objective) for trial in self.finished)
        return [float(value) for value in found if value is not None]


@dataclass(frozen=True)
class Floor:
    """A finished noise floor. spreads: objective -> spread between its seeds. budget: what it was measured at."""

    path: Path
    spreads: dict[str, Spread]
    budget: dict[str, int] = field(default_factory=dict)


class _Part(Outside):
    """Part of a study's file; what is not named here is passed on as it is."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=True)


class _Trial(_Part):
    number: Count
    state: str
    run: str | None = None
    values: dict[str, float | None] | None = None
    milestones: dict[str, dict[str, float | None]] | None = None


class _Arm(_Part):
    name: str
    trials: list[_Trial]


class _Study(_Part):
    arms: list[_Arm] = Field(default_factory=list)
    budget: dict[str, Count] | None = None


def read_study(folder: Path) -> dict[str, Any]:
    """`study.json` of a study folder; nothing if it is missing. Raises: UserError if it is broken."""
    path = folder / "study.json"
    if not path.is_file():
        return {}
    return read_json(path, _Study, "the study's own command writes it again").model_dump(exclude_unset=True)


def read_arms(folder: Path, study: Values) -> list[Arm]:
    """The arms of a study in its own order, a trial that was tried again under a new number counted once."""
    arms = []
    for arm in study.get("arms", []):
        # Attempts at one entry of the queue share a run folder; the one that ended well counts, or the last.
        attempts = sorted(arm.get("trials", []), key=lambda trial: (trial.get("state") == "complete", trial["number"]))
        newest = {trial.get("entry") or trial["number"]: trial for trial in attempts}
        finished = [trial for trial in newest.values() if trial.get("state") == "complete" and trial.get("values")]
        finished.sort(key=lambda trial: trial["number"])
        cases = [_read(run_folder(folder, trial), _student_scores) for trial in finished]
        difficulties = _read(run_folder(folder, finished[0]), read_difficulties) if finished else {}
        arms.append(Arm(arm["name"], list(newest.values()), finished, cases, difficulties))
    return arms


def replicated(arms: Sequence[Arm]) -> list[Arm]:
    """The arms proper, without what a search in the same folder drew."""
    return [arm for arm in arms if arm.name != SEARCH]


def asked_for(found: Sequence[Arm], study: Values) -> list[Arm]:
    """The arms that some call of the study asked for, and its reference: no other has a trial, not even one that
    waits. All runs of a screening."""
    return [arm for arm in found if arm.trials or study.get("factors") or arm.name == study.get("reference")]


def run_folder(folder: Path, trial: Values) -> Path | None:
    """The run folder of a trial, inside the study's."""
    return folder / Path(str(trial["run"])).name if trial.get("run") else None


def _read(run: Path | None, read: Callable[[Path], dict[K, V]]) -> dict[K, V]:
    """What `read` finds of a run's cases; nothing where there are none."""
    if run is None:
        return {}
    try:
        return read(run)
    except UserError:
        return {}


def _student_scores(run: Path) -> dict[Key, float]:
    return read_scores(run).get("student", {})


def tables(arms: Sequence[Arm], objective: str) -> list[Table]:
    """For each arm (bench, category) -> scores (runs, cases), seeds of the evaluation averaged, over the cases that all
    finished trials of all arms share; empty if a trial has no cases or they share none."""
    everywhere = [cases for arm in arms for cases in arm.cases]
    if objective not in BENCHES or not everywhere:
        return [{} for _ in arms]
    shared = sorted(set.intersection(*(set(cases) for cases in everywhere)))
    groups: dict[tuple[str, str], dict[str, list[Key]]] = {}
    for key in shared:
        if key[0] in BENCHES[objective]:
            groups.setdefault(key[:2], {}).setdefault(key[2], []).append(key)
    return [
        {
            group: np.array([[np.mean([run[key] for key in keys]) for keys in of.values()] for run in arm.cases])
            for group, of in groups.items()
        }
        if arm.cases
        else {}
        for arm in arms
    ]


def floor_of(folder: Path) -> Floor | None:
    """The noise floor that a finished study in `folder` found; None unless two of its seeds ended with a score."""
    study = read_study(folder)
    arms = replicated(read_arms(folder, study))
    # What only waits may wait for good: the seeds of a call that was stopped.
    running = any(trial.get("state") == "running" for arm in arms for trial in arm.trials)
    spreads = {name: replicates.spread_of([arm.values(name) for arm in arms]) for name in REPORTED}
    known = {name: spread for name, spread in spreads.items() if spread is not None}
    return Floor(folder / "study.json", known, budget_of(study)) if known and not running else None


def find_floor(folder: Path, given: Path | None) -> Floor | None:
    """The noise floor in the folder given, or in `noise-floor` next to `folder`.

    Raises: UserError if the one given is not a finished noise floor.
    """
    if given is not None:
        found = floor_of(given)
        if found is None:
            raise UserError(f"{given} holds no finished noise floor: run `workbench study {NOISE_FLOOR}` there first")
        return found
    neighbour = folder.resolve().parent / NOISE_FLOOR
    return floor_of(neighbour) if neighbour != folder.resolve() else None


def budget_of(study: Values) -> dict[str, int]:
    """Student updates and cases of the base recipe, by which two studies can be compared."""
    return {name: int(value) for name, value in (study.get("budget") or {}).items()}
