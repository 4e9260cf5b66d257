"""Runs a study: arms times seeds (or a search), each trial an ordinary run folder, all in one Optuna storage.

    runs/studies/NAME/  study.db  study.json  tensorboard/  trial-0003.yaml  trial-0003/ (a run folder)

The same command continues a study: what finished is not repeated, what was cut short or failed is tried again in its
own run folder. One process runs a study at a time; its storage may be elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from studies import summary
from studies.known import study_named
from studies.options import Options, parse
from studies.seam import Study, objectives, vary
from studies.trial import run_trial
from workbench.config import Recipe
from workbench.errors import UserError
from workbench.recipes import load, recipe_hash

RunTrial = Callable[[Recipe, Path], dict[str, Any]]
Cell = tuple[str, int]
"""An arm and a seed: what is run once."""

HEARTBEAT_S, GRACE_S, MAX_REQUEUES = 15, 60, 2
LARGEST_SEED = 2**31 - 1


def run_study(
    name: str, words: Iterable[str], *, study: Study | None = None, execute: RunTrial = run_trial
) -> optuna.Study:
    """Run what is missing of study `name` and print its table.

    study, execute: what the name and a subprocess would give; tests hand in their own.

    Raises:
        UserError: unknown name or option, invalid recipe in any arm (before anything is written), a storage that
            does not open or that holds a study of another recipe, or not one trial with a score.
    """
    study, words = study or study_named(name), list(words)
    options = parse(name, words)
    base = vary(load(options.recipe, options.overrides), ["evaluation.split=search"])
    for arm, overrides in study.ARMS.items():
        _named(arm, base, overrides)
    console = Console()
    memory = _open(options, base, study)
    summary.describe(memory, base, [name, *words])

    def objective(trial: optuna.trial.BaseTrial) -> float:
        return measure(trial, study, base, options, execute)

    def record(memory: optuna.Study, trial: FrozenTrial) -> None:
        _record(memory, trial, study, base, options, console)

    try:
        if options.search:
            memory.optimize(objective, n_trials=options.trials, catch=(Exception,), callbacks=[record])
        else:
            _replicate(memory, objective, record, options, tuple(study.ARMS))
    finally:
        _write_json(memory, study, options)
    if not memory.get_trials(states=(TrialState.COMPLETE,)):
        errors = [trial.user_attrs.get("error", "no error recorded") for trial in memory.get_trials()]
        raise UserError(f"no trial of the study ended with a score; the last said: {errors[-1]}")
    summary.print_table(options.folder, console)
    if alive := memory.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        console.print(
            f"{len(alive)} trial(s) still run elsewhere, or died under {GRACE_S} s ago: the same command continues"
        )
    console.print(f"{options.folder}/study.json; the report: workbench report {options.folder}")
    return memory


def measure(trial: optuna.trial.BaseTrial, study: Study, base: Recipe, options: Options, execute: RunTrial) -> float:
    """The objective: the trial's recipe, run into its own folder, and the student's score on the search split."""
    recipe, seed = _recipe_of(trial, study, base, options)
    # A trial that was cut short is tried again under a new number, in the folder that it began.
    run = trial.user_attrs.get("run", f"trial-{trial.number:04d}")
    trial.set_user_attr("run", run)
    folder = options.folder / run
    recipe = replace(recipe, seed=seed, trainer=replace(recipe.trainer, folder=str(folder)))
    try:
        metrics = execute(recipe, folder)
        value = objectives(metrics, study.OBJECTIVES)[0]
    except KeyboardInterrupt:
        trial.set_user_attr("error", "interrupted")
        raise
    except Exception as error:
        trial.set_user_attr("error", f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise
    trial.set_user_attr("metrics", summary.headline(metrics))
    trial.set_user_attr("hparams", summary.differences(recipe, base))
    return value


def _recipe_of(trial: optuna.trial.BaseTrial, study: Study, base: Recipe, options: Options) -> tuple[Recipe, int]:
    if options.search and "arm" not in trial.params:
        return study.suggest(trial, base), options.seeds[0]
    arm = trial.suggest_categorical("arm", tuple(study.ARMS))
    return _named(arm, base, study.ARMS[arm]), trial.suggest_int("seed", 0, LARGEST_SEED)


def _named(arm: str, base: Recipe, overrides: Iterable[str]) -> Recipe:
    try:
        return vary(base, overrides)
    except UserError as error:
        raise UserError(f"arm {arm!r}: {error}") from error


def _replicate(
    memory: optuna.Study,
    objective: Callable[[optuna.trial.BaseTrial], float],
    record: Callable[[optuna.Study, FrozenTrial], None],
    options: Options,
    arms: tuple[str, ...],
) -> None:
    """Every arm under every seed, seed by seed, so that a study cut short has compared all arms."""
    cells = [(arm, seed) for seed in options.seeds for arm in arms]
    tried: list[Cell] = []
    while options.trials is None or len(tried) < options.trials:
        if not memory.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            taken = _cells(memory, TrialState.COMPLETE, TrialState.RUNNING)
            missing = [cell for cell in cells if cell not in taken and cell not in tried]
            if not missing:
                return
            begun = _cells(memory, TrialState.FAIL).get(missing[0])
            again = {"run": begun.user_attrs["run"]} if begun and "run" in begun.user_attrs else None
            memory.enqueue_trial(dict(zip(("arm", "seed"), missing[0], strict=True)), user_attrs=again)
        memory.optimize(
            objective,
            n_trials=1,
            catch=(Exception,),
            callbacks=[record, lambda _, trial: tried.append((trial.params["arm"], trial.params["seed"]))],
        )


def _cells(memory: optuna.Study, *states: TrialState) -> dict[Cell, FrozenTrial]:
    """The newest trial of each cell in one of `states`."""
    trials = memory.get_trials(deepcopy=False, states=states)
    return {
        (trial.params["arm"], trial.params["seed"]): trial for trial in trials if {"arm", "seed"} <= set(trial.params)
    }


def _open(options: Options, base: Recipe, study: Study) -> optuna.Study:
    """The study in its storage, made if absent; a trial whose process died is queued again."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    options.folder.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            storage = RDBStorage(
                options.storage,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=GRACE_S,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=MAX_REQUEUES),
            )
            memory = optuna.create_study(
                storage=storage, study_name=options.folder.name, direction="maximize", load_if_exists=True
            )
            optuna.storages.fail_stale_trials(memory)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        # The first line may hold the URL, and with it a password.
        raise UserError(
            f"the study's storage does not open ({type(error).__name__}); is storage= a database URL that answers?"
        ) from error
    memory.sampler = optuna.samplers.TPESampler(seed=options.seeds[0] + len(memory.trials))
    # Trials of different recipes must not stand in one table.
    content = json.dumps([recipe_hash(replace(base, seed=0)), study.ARMS])
    fingerprint = hashlib.sha256(content.encode()).hexdigest()[:12]
    if memory.user_attrs.get("fingerprint", fingerprint) != fingerprint:
        raise UserError(
            f"{options.folder} holds a study of another base recipe or other arms; give a new one with folder=..."
        )
    memory.set_user_attr("fingerprint", fingerprint)
    return memory


def _record(
    memory: optuna.Study, trial: FrozenTrial, study: Study, base: Recipe, options: Options, console: Console
) -> None:
    """After each trial: one line, its row of HParams, and the whole `study.json`."""
    what = ", ".join(f"{name} {value}" for name, value in trial.params.items())
    if trial.state != TrialState.COMPLETE:
        console.print(f"trial {trial.number} ({what}) failed: {trial.user_attrs.get('error')}", markup=False)
    else:
        console.print(f"trial {trial.number} ({what}): {trial.value:.3f}", markup=False)
        folder = options.folder / trial.user_attrs["run"]
        hparams = {"arm": summary.arm_of(trial), **trial.user_attrs["hparams"]}
        recipe, _ = _recipe_of(optuna.trial.FixedTrial(trial.params), study, base, options)
        summary.log_trial(folder / "tensorboard", recipe, hparams, trial.user_attrs["metrics"])
    _write_json(memory, study, options)


def _write_json(memory: optuna.Study, study: Study, options: Options) -> None:
    storage = make_url(options.storage).render_as_string(hide_password=True)
    summary.write_json(memory, study, options.folder.name, storage, options.folder / "study.json")
