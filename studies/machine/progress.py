"""Progress of a running study: a line for every trial that ends, one bar for all workers, `study.json`."""

from __future__ import annotations

import time
from dataclasses import replace

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as Bars

from studies.analysis import table
from studies.machine import study_file
from studies.machine.session import StudySession
from studies.machine.storage import shown
from studies.machine.trial_queue import OVER, Call, error_of
from studies.machine.workers import recipe_of
from workbench.recipe.config import Recipe
from workbench.recipe.reading import load


class Progress:
    """Reads the storage; shows what changed since it last did."""

    def __init__(self, session: StudySession, call: Call, console: Console) -> None:
        self.session, self.console, self.queue = session, console, session.queue(call)
        self.columns = study_file.columns(session.plan.study, session.plan.base)
        self.began = time.monotonic()
        self.reported = {trial.number for trial in self._trials() if trial.state.is_finished()}
        self.done_before = self._num_done()
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[pace]}"),
        )
        self.bars = Bars(*columns, console=console, transient=True)
        self.bar = self.bars.add_task("trials", total=len(self.queue.entries), pace="")

    def update(self) -> None:
        """Look once; the data base may be away for a while."""
        trials = self._trials()
        ended = [trial for trial in trials if trial.state.is_finished() and trial.number not in self.reported]
        for trial in ended:
            self.reported.add(trial.number)
            self.console.print(line_of(trial), markup=False)
            if trial.state == TrialState.COMPLETE and trial.user_attrs.get("call") == self.queue.call.key:
                self._log(trial)
        if ended or not (self.session.plan.options.folder / "study.json").exists():
            self.write()
        running = sum(trial.state == TrialState.RUNNING for trial in trials)
        self.bars.update(self.bar, completed=self._num_done(), pace=self._pace(running))

    def close(self) -> None:
        """The last look of a call, which also tells what a call that was killed could not."""
        self.update()
        self.write()
        for trial in self._trials():
            if trial.state == TrialState.COMPLETE and self._lacks_row(trial):
                self._log(trial)

    def _trials(self) -> list[FrozenTrial]:
        return self.session.retry(lambda: self.session.optuna_study.get_trials(deepcopy=False))

    def _lacks_row(self, trial: FrozenTrial) -> bool:
        run = self.session.plan.options.folder / trial.user_attrs["run"]
        return run.is_dir() and not any((run / "tensorboard").glob("*.hparams"))

    def _log(self, trial: FrozenTrial) -> None:
        """Its row of HParams; written here, so that the next call can write what a killed one could not."""
        from workbench.reporting.hparams import log_trial

        recipe = self._recipe(trial)
        values = {**trial.user_attrs["hparams"], **study_file.values_of(recipe, self.columns)}
        hparams = {"arm": table.arm_of(trial), "seed": recipe.seed, **values}
        place = self.session.plan.options.folder / trial.user_attrs["run"] / "tensorboard"
        log_trial(place, recipe, hparams, trial.user_attrs["metrics"])

    def _recipe(self, trial: FrozenTrial) -> Recipe:
        """As it was run, whatever the study's space may be by now."""
        plan = self.session.plan
        written = plan.options.folder / f"{trial.user_attrs['run']}.yaml"
        if written.is_file():
            return load(written)
        recipe, seed = recipe_of(trial, plan.study, plan.base, plan.options)
        return replace(recipe, seed=seed)

    def write(self) -> None:
        """`study.json`, whole."""
        options, study = self.session.plan.options, self.session.plan.study
        path = options.folder / "study.json"
        optuna_study = self.session.optuna_study
        self.session.retry(
            lambda: table.write_json(optuna_study, study, options.folder.name, shown(options.storage), path)
        )

    def _num_done(self) -> int:
        by_entry = self.session.retry(self.queue.trials)
        return sum(any(trial.state in OVER for trial in trials) for trials in by_entry.values())

    def _pace(self, running: int) -> str:
        """`3 running, 14.2 trials/h, 0:12:30 left`; the pace of all hosts, since this call began."""
        done, elapsed_s = self._num_done(), time.monotonic() - self.began
        fresh = done - self.done_before
        if fresh == 0:
            return f"{running} running"
        left_s = int((len(self.queue.entries) - done) * elapsed_s / fresh)
        left = f"{left_s // 3600}:{left_s // 60 % 60:02d}:{left_s % 60:02d}"
        return f"{running} running, {3600 * fresh / elapsed_s:.1f} trials/h, {left} left"


def line_of(trial: FrozenTrial) -> str:
    """How a trial ended, in one line."""
    what = table.said_params(trial.params)
    match trial.state:
        case TrialState.COMPLETE:
            return f"trial {trial.number} ({what}): {', '.join(f'{value:.3f}' for value in trial.values)}"
        case TrialState.PRUNED:
            return f"trial {trial.number} ({what}) pruned after {trial.last_step} updates"
        case _:
            return f"trial {trial.number} ({what}) failed: {error_of(trial)}"
