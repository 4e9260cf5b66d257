"""The queue of a study: which entries there are, and how one worker after another takes one.

A entry is what is run once: an arm under a seed, or a numbered draw of a search. Its trials are attempts at it, one at
a time and all in one run folder; the newest counts.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from studies.machine.storage import Storage, guard
from studies.machine.trial import BUSY, lock_of

MAX_REQUEUES = 2
"""So often an entry whose worker dies is tried again in one call: more than that, and it is the entry that kills."""
SEARCH = "search"
DIED, INTERRUPTED = "its worker died", "interrupted"
DUPLICATE = "queued twice"
CUT_SHORT = (INTERRUPTED, BUSY)
OVER = (TrialState.COMPLETE, TrialState.PRUNED)
OPEN = (TrialState.WAITING, TrialState.RUNNING)


@dataclass(frozen=True)
class Entry:
    """An arm and a seed; or `search` and the number of the draw."""

    arm: str
    seed: int

    @property
    def key(self) -> str:
        return f"{self.arm}@{self.seed}"

    @property
    def params(self) -> dict[str, str | int]:
        """The parameters that Optuna's trial is fixed to."""
        return {} if self.arm == SEARCH else {"arm": self.arm, "seed": self.seed}


@dataclass(frozen=True)
class Call:
    """One `workbench study` command.

    key: names it in the storage. before: trials of a smaller number are not its own: what failed there is tried again.
    quota: entries that its workers may begin, all of them together. deadline: no trial is begun that would end after
    this, in seconds since the epoch.
    """

    key: str
    before: int
    quota: int | None = None
    deadline: float | None = None


@dataclass(frozen=True)
class TrialQueue:
    """A study's entries in its storage, seen from one call."""

    optuna_study: optuna.Study
    storage: Storage
    study_id: int
    entries: tuple[Entry, ...]
    call: Call
    folder: Path

    def trials(self) -> dict[Entry, list[FrozenTrial]]:
        """The attempts at each of the call's entries, oldest first."""
        keys = {entry.key: entry for entry in self.entries}
        found: dict[Entry, list[FrozenTrial]] = {entry: [] for entry in self.entries}
        for trial in self.optuna_study.get_trials(deepcopy=False):
            if (entry := keys.get(trial.user_attrs.get("entry", ""))) and not is_duplicate(trial):
                found[entry].append(trial)
        return found

    def fill(self, lost: bool = True) -> None:
        """TrialQueue every entry that is neither done nor under way nor failed for good; the guard must be held.

        lost: whether trials of silent workers are given up first; not just after the data base was away, when all are.
        """
        if lost:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                optuna.storages.fail_stale_trials(self.optuna_study)
        for entry, trials in self.trials().items():
            if any(trial.state in (*OPEN, *OVER) for trial in trials) or not self._is_wanted(entry, trials):
                continue
            last = trials[-1] if trials else None
            carried = {"run": last.user_attrs["run"]} if last and "run" in last.user_attrs else {}
            params = {**(last.params if last else {}), **entry.params}
            self.optuna_study.enqueue_trial(params, user_attrs={"entry": entry.key, **carried})

    def _is_wanted(self, entry: Entry, trials: list[FrozenTrial]) -> bool:
        """Whether an entry that has only failed so far, or nothing at all, is (still) to be tried."""
        if not trials or error_of(trials[-1]) in CUT_SHORT:
            return True
        if error_of(trials[-1]) == DIED:
            deaths = [t for t in trials if t.number >= self.call.before and error_of(t) == DIED]
            return len(deaths) <= MAX_REQUEUES
        return trials[-1].number < self.call.before

    def take(self, worker: str, lost: bool = True) -> tuple[Entry, FrozenTrial] | None:
        """Claim an entry for `worker`; None if there is none to begin now. May be repeated after it broke off."""
        with guard(self.storage, self.study_id):
            self.fill(lost)
            by_entry = self.trials()
            waiting: list[tuple[Entry, FrozenTrial]] = []
            for entry, trials in by_entry.items():
                for trial in trials:
                    if trial.state == TrialState.RUNNING and trial.user_attrs.get("worker") == worker:
                        # Claimed in an attempt whose answer was lost.
                        return entry, trial
                    if trial.state == TrialState.WAITING:
                        waiting.append((entry, trial))
            begun = {entry for entry, trials in by_entry.items() if self._is_ours(trials)}
            for entry, trial in waiting:
                others = [t for t in by_entry[entry] if t.number != trial.number and t.state in (*OVER, *OPEN)]
                if any(t.state != TrialState.WAITING or t.number < trial.number for t in others):
                    self._drop(trial, others[0])
                elif self.call.quota is not None and entry not in begun and len(begun) >= self.call.quota:
                    continue
                elif not self.is_written(trial):
                    return entry, self._claim(trial, worker)
        return None

    def _is_ours(self, trials: list[FrozenTrial]) -> bool:
        return any(trial.user_attrs.get("call") == self.call.key for trial in trials)

    def _claim(self, trial: FrozenTrial, worker: str) -> FrozenTrial:
        """The heartbeat comes first: a trial that runs without one would never be missed."""
        number = self._id(trial)
        run = trial.user_attrs.get("run", f"trial-{trial.number:04d}")
        for key, value in (("run", run), ("worker", worker), ("call", self.call.key)):
            self.storage.set_trial_user_attr(number, key, value)
        self.storage.record_heartbeat(number)
        self.storage.set_trial_state_values(number, TrialState.RUNNING)
        return self.storage.get_trial(number)

    def _drop(self, trial: FrozenTrial, other: FrozenTrial) -> None:
        """Queued twice, by an attempt whose answer was lost."""
        self.storage.set_trial_user_attr(self._id(trial), "error", f"{DUPLICATE}: trial {other.number} is the same")
        self.storage.set_trial_state_values(self._id(trial), TrialState.FAIL)

    def give_up(self, worker: str) -> None:
        """A worker that is known to be dead: its trial need not wait to be missed."""
        with guard(self.storage, self.study_id):
            for trial in self.optuna_study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if trial.user_attrs.get("worker") == worker:
                    self.storage.set_trial_state_values(self._id(trial), TrialState.FAIL)

    def is_written(self, trial: FrozenTrial) -> bool:
        """Whether a process still works in the trial's run folder, whatever its heartbeat says."""
        if "run" not in trial.user_attrs:
            return False
        try:
            with FileLock(lock_of(self.folder / trial.user_attrs["run"]), blocking=False):
                return False
        except Timeout:
            return True

    def is_open(self) -> bool:
        """Whether anything may still come of waiting: an entry of this call is queued or under way."""
        by_entry = self.trials()
        begun = {entry for entry, trials in by_entry.items() if self._is_ours(trials)}
        full = self.call.quota is not None and len(begun) >= self.call.quota
        chosen = begun if full else by_entry.keys()
        return any(trial.state in OPEN for entry in chosen for trial in by_entry[entry])

    def _id(self, trial: FrozenTrial) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, trial.number)


def error_of(trial: FrozenTrial) -> str | None:
    """Why a trial failed; one that could not say so itself died with its worker."""
    error: str | None = trial.user_attrs.get("error")
    return error or (DIED if trial.state == TrialState.FAIL else None)


def is_duplicate(trial: FrozenTrial) -> bool:
    """Whether it is no attempt at all: queued though its entry was already."""
    return (error_of(trial) or "").startswith(DUPLICATE)


def newest(trials: Iterable[FrozenTrial]) -> FrozenTrial | None:
    """The attempt that counts: the one that ended well, or the last."""
    ordered = sorted(trials, key=lambda trial: (trial.state in OVER, trial.number))
    return ordered[-1] if ordered else None
