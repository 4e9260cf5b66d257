"""Runs a study: arms times seeds (or a search), each trial an ordinary run folder, all in one Optuna storage.

    runs/studies/NAME/  study.db  study.json  tensorboard/  teacher/  worker-0.log  trial-0003.{yaml,log,lock}
                        trial-0003/ (a run folder)

The same command continues a study: what finished is not repeated, what was cut short or failed is tried again in its
own run folder. Any number of hosts may run one study at once, each with its own workers;
trial_queue.py keeps them apart.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from rich.console import Console

from datamodules.shards.index import fetch_shards, read_index
from studies.analysis import arms, table
from studies.catalogue import study_named
from studies.machine.intervals import DEFAULT, Intervals
from studies.machine.progress import Progress
from studies.machine.session import Plan, StudySession, open_study, plan_of, retry_for
from studies.machine.storage import guard
from studies.machine.supervisor import WORKER, supervise
from studies.machine.trial_queue import SEARCH, Call
from studies.machine.workers import Worker
from studies.study import Study, vary
from workbench.common.errors import UserError
from workbench.common.tables import stdout_console
from workbench.recipe.config import Recipe

RunTrial = Callable[[Recipe, Path], dict[str, Any]]


def run_study(
    name: str,
    arguments: Iterable[str],
    *,
    study: Study | None = None,
    execute: RunTrial | None = None,
    worker: tuple[str, ...] = WORKER,
    intervals: Intervals = DEFAULT,
) -> optuna.Study:
    """Run what is missing of study `name` and print its table.

    study: what the name would give. execute: runs all trials in this process, one after another. worker: the command
    that starts a worker. intervals: of all processes of this call. Tests hand in their own.

    Raises:
        UserError: unknown name or option, invalid recipe in any arm (before anything is written), a storage that
            does not open, goes away for good or holds a study of another recipe, data that are not there, or not one
            trial with a score.
    """
    arguments = list(arguments)
    plan = plan_of(name, arguments, study or study_named(name))
    if execute is None and worker is WORKER:
        _check_data(plan)
    console = stdout_console()
    retry = retry_for(plan.options)
    retry.say = lambda line: console.print(line, markup=False)
    session = open_study(plan, retry, intervals, is_first=True)
    retry(lambda: table.describe(session.optuna_study, plan.study, plan.base, [name, *arguments]))
    call = _begin(session)
    progress = Progress(session, call, console)
    try:
        if execute is None:
            supervise(name, arguments, session, call, worker, progress)
        else:
            run = execute
            Worker(session, call, uuid.uuid4().hex, lambda recipe, folder, *_: run(recipe, folder)).work(
                progress.update
            )
    finally:
        progress.close()
    _conclude(session, console)
    return session.optuna_study


def _check_data(plan: Plan) -> None:
    """One line now, rather than one a trial; of what is still to be run: a finished study needs no data."""
    trials = [trial for arm in arms.read_study(plan.options.folder).get("arms", []) for trial in arm["trials"]]
    over = {trial["entry"] for trial in trials if trial["state"] in ("complete", "pruned")}
    left = {entry.arm for entry in plan.entries if entry.key not in over}
    recipes = [plan.base if arm == SEARCH else vary(plan.base, plan.study.ARMS[arm]) for arm in sorted(left)]
    for address in dict.fromkeys(recipe.data.encoded for recipe in recipes):
        fetch_shards(address, read_index(address))


def _begin(session: StudySession) -> Call:
    """This call, and its entries queued."""
    options = session.plan.options

    def begin() -> Call:
        with guard(session.storage, session.study_id):
            call = Call(
                key=uuid.uuid4().hex,
                before=len(session.optuna_study.get_trials(deepcopy=False)),
                quota=None if options.search else options.trials,
                deadline=time.time() + options.budget_s if options.budget_s is not None else None,
            )
            session.queue(call).fill()
        return call

    return session.retry(begin)


def _conclude(session: StudySession, console: Console) -> None:
    trials, folder = session.retry(lambda: session.optuna_study.get_trials(deepcopy=False)), session.plan.options.folder
    if not any(trial.state == TrialState.COMPLETE for trial in trials):
        errors = [trial.user_attrs["error"] for trial in trials if "error" in trial.user_attrs]
        reason = f"the last error: {errors[-1]}" if errors else "none was begun"
        raise UserError(f"no trial of the study ended with a score; {reason}")
    table.print_table(folder, console)
    if alive := [trial for trial in trials if trial.state == TrialState.RUNNING]:
        console.print(
            f"{len(alive)} trial(s) still run elsewhere, or died under {session.intervals.grace} s ago: "
            "the same command continues"
        )
    console.print(f"{folder}/study.json; the report: workbench report {folder}", markup=False)
