"""One worker: takes entries from the queue and runs them, until there are none.

The supervisor (`studies/machine/runner.py`) starts it with its task as one line of JSON on standard input: there a
storage's password shows up in no list of processes. Once that input closes the supervisor is gone, and
the worker stops as if interrupted.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from studies.catalogue import study_named
from studies.machine import study_file
from studies.machine.intervals import Intervals
from studies.machine.options import Options
from studies.machine.pruning import Milestones, read_milestones
from studies.machine.session import LARGEST_SEED, StudySession, check_recipe, open_study, plan_of, retry_for, sampler_of
from studies.machine.storage import DatabaseAway, Heartbeat
from studies.machine.trial import BUSY, LIBRARIES, run_trial
from studies.machine.trial_process import Stopped, TrialProcess, one_line
from studies.machine.trial_queue import INTERRUPTED, SEARCH, Call, Entry
from studies.study import Study, objectives, vary
from workbench.common.errors import UserError
from workbench.recipe.config import Recipe

Run = Callable[[Recipe, Path, Callable[[], bool], float], dict[str, Any]]
"""Runs a recipe into a folder; asks every so many seconds whether to stop, and raises Stopped if so."""


@dataclass(frozen=True)
class Task:
    """What a supervisor tells a worker. token: the worker's name in the storage. noise_floor: fixed for this
    command, even if the noise-floor study changes meanwhile."""

    name: str
    arguments: list[str]
    token: str
    call: Call
    noise_floor: float | None
    intervals: Intervals


class Worker:
    """Runs entries of a session under one token."""

    def __init__(self, session: StudySession, call: Call, token: str, run: Run) -> None:
        self.session, self.plan, self.token, self.run = session, session.plan, token, run
        self.optuna_study, self.retry = session.optuna_study, session.retry
        self.began = 0.0
        self.queue = session.queue(call)

    def work(self, after: Callable[[], None] = lambda: None) -> None:
        """Run entries until none is left that may still be begun; `after` each."""
        while True:
            if not self._has_time():
                return
            taken = self.retry(
                lambda: self.queue.take(self.token, lost=self.retry.is_steady(self.session.intervals.grace))
            )
            if taken is not None:
                self._run_one(*taken)
                after()
            elif not self.retry(self.queue.is_open):
                return
            else:
                # Another worker has the rest: if it dies, they come back.
                time.sleep(self.session.intervals.idle * (0.5 + random.random()))

    def _has_time(self) -> bool:
        """Whether a trial as long as the longest so far would end before the deadline."""
        deadline = self.queue.call.deadline
        if deadline is None:
            return True
        trials = self.retry(lambda: self.optuna_study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        longest = max((trial.user_attrs.get("cost", {}).get("wall", 0.0) for trial in trials), default=0.0)
        return time.time() + longest < deadline

    def _run_one(self, entry: Entry, taken: FrozenTrial) -> None:
        """One attempt at an entry; however it ends is written to the storage."""
        self.began = time.monotonic()
        if entry.arm == SEARCH:
            self.optuna_study.sampler = sampler_of(self.plan.study, self.plan.options, entry.seed)
        trial_id = self.retry(lambda: self.session.id_of(taken.number))
        with Heartbeat(self.session.storage, trial_id):
            trial = self.retry(lambda: optuna.trial.Trial(self.optuna_study, trial_id))
            error: str | None = None
            try:
                values = self._measure(trial)
            except KeyboardInterrupt:
                self._finish(trial, TrialState.FAIL, error=INTERRUPTED)
                raise
            except Stopped:
                self._finish(trial, TrialState.PRUNED)
            except DatabaseAway:
                raise
            except Exception as raised:
                error = one_line(raised)
                self._finish(trial, TrialState.FAIL, error=error)
            else:
                self._finish(trial, TrialState.COMPLETE, values)
        if error == BUSY:
            time.sleep(self.session.intervals.idle)

    def _measure(self, trial: optuna.trial.Trial) -> list[float]:
        study, base, options = self.plan.study, self.plan.base, self.plan.options
        recipe, seed = self.retry(lambda: recipe_of(trial, study, base, options))
        folder = options.folder / trial.user_attrs["run"]
        recipe = replace(recipe, seed=seed, trainer=replace(recipe.trainer, folder=str(folder)))
        hparams = study_file.differences(recipe, base)
        self.retry(lambda: trial.set_user_attr("hparams", hparams))
        watcher = MilestoneWatcher(self, trial, folder)
        metrics = self.run(recipe, folder, watcher.should_stop, self.session.intervals.trial)
        watcher.should_stop()
        values = objectives(metrics, study.OBJECTIVES, study.SPLIT)
        cost = {name: float(value) for name, value in metrics.get("cost", {}).items()}
        wall = time.monotonic() - self.began
        cost |= {"start": wall - sum(cost.values()), "wall": wall}
        headline = study_file.headline(metrics)

        def keep() -> None:
            for key, value in (("metrics", headline), ("cost", cost)):
                trial.set_user_attr(key, value)

        self.retry(keep)
        return values

    def _frozen(self, trial: optuna.trial.Trial) -> FrozenTrial:
        return self.session.storage.get_trial(self.session.id_of(trial.number))

    def _finish(
        self,
        trial: optuna.trial.Trial,
        state: TrialState,
        values: list[float] | None = None,
        error: str | None = None,
    ) -> None:
        """Tell the storage; a trial that was taken for dead meanwhile is its successor's to finish, in this folder."""

        wall = time.monotonic() - self.began

        def tell() -> None:
            if self._frozen(trial).state != TrialState.RUNNING:
                return
            if error is not None:
                trial.set_user_attr("error", error)
            if "cost" not in trial.user_attrs:
                trial.set_user_attr("cost", {"wall": wall})
            self.optuna_study.tell(trial, values=values, state=state)

        self.retry(tell)


class MilestoneWatcher:
    """Carries a run's milestones into the storage as they come, and says when they are bad enough to stop."""

    def __init__(self, worker: Worker, trial: optuna.trial.Trial, folder: Path) -> None:
        self.worker, self.trial, self.folder = worker, trial, folder
        self.seen: Milestones = {}

    def should_stop(self) -> bool:
        found = read_milestones(self.folder)
        fresh = {update: scores for update, scores in found.items() if update not in self.seen}
        if not fresh:
            return False
        self.seen = found
        self.worker.retry(lambda: self.trial.set_user_attr("milestones", found))
        # Several objectives have no order that a report could be judged by.
        if len(self.worker.plan.study.OBJECTIVES) > 1:
            return False
        return any([self._report(update, scores) for update, scores in sorted(fresh.items())])

    def _report(self, update: int, scores: dict[str, float]) -> bool:
        """Whether this milestone is a reason to stop."""
        name = self.worker.plan.study.OBJECTIVES[0]
        if name not in scores:
            return False
        self.worker.retry(lambda: self.trial.report(scores[name], update))
        return self.worker.retry(self.trial.should_prune)


def recipe_of(trial: optuna.trial.BaseTrial, study: Study, base: Recipe, options: Options) -> tuple[Recipe, int]:
    """The recipe and the seed of a trial: of its arm, or drawn.

    Raises: UserError if this draw, unlike the one that was checked, cannot be compared with the others.
    """
    if trial.user_attrs.get("entry", "").startswith(f"{SEARCH}@"):
        drawn = study.suggest(trial, base)
        check_recipe("suggest", base, drawn)
        return drawn, options.seeds[0]
    arm = trial.suggest_categorical("arm", tuple(study.ARMS))
    return vary(base, study.ARMS[arm]), trial.suggest_int("seed", 0, LARGEST_SEED)


def serve(study_of: Callable[[str], Study], run: TrialProcess) -> None:
    """A worker process: its task from standard input, its messages to standard output."""
    signal.signal(signal.SIGINT, _interrupt_once)
    content = json.loads(sys.stdin.readline())
    task = Task(**{**content, "call": Call(**content["call"]), "intervals": Intervals(**content["intervals"])})
    Thread(target=_stop_with_the_supervisor, daemon=True).start()
    plan = replace(plan_of(task.name, task.arguments, study_of(task.name)), noise_floor=task.noise_floor)
    session = open_study(plan, retry_for(plan.options), task.intervals, is_first=False)
    worker = Worker(session, task.call, task.token, run)
    if worker.retry(worker.queue.is_open):
        run.prepare()
    worker.work()


def line_of(task: Task) -> str:
    """What `serve` reads."""
    return json.dumps(asdict(task)) + "\n"


def _interrupt_once(*_: object) -> None:
    """A terminal interrupts worker and supervisor, whose end interrupts the worker again: not while it still tells the
    storage of the first time. The supervisor sees to one that takes too long."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _stop_with_the_supervisor() -> None:
    """The input is never written to again: it ends with the supervisor."""
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGINT)


def main(study_of: Callable[[str], Study] = study_named, run: TrialProcess | None = None) -> None:
    """Exit codes as of the command line: 0 nothing left to do, 2 what the user can mend, 130 interrupted."""
    try:
        serve(study_of, run or TrialProcess(run_trial, LIBRARIES))
    except KeyboardInterrupt:
        sys.exit(130)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", flush=True)
        sys.exit(2)
