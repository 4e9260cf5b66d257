"""A study session: options, base recipe and its place in the storage, alike in every process that works on it."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from sqlalchemy.exc import SQLAlchemyError

from studies.machine.definition import definition_changes, definition_of
from studies.machine.intervals import Intervals
from studies.machine.options import Options, parse
from studies.machine.pruning import NoiseFloorPruner, noise_floor_of
from studies.machine.storage import Retry, Storage, connect, guard, shown, unopened
from studies.machine.trial_queue import SEARCH, Call, Entry, TrialQueue
from studies.study import Study, vary
from workbench.common.errors import UserError, nearest
from workbench.evaluation.measures.catalogue import TEXT_MEASURES
from workbench.evaluation.measures.choices import MIN_CHOICES
from workbench.evaluation.measures.ocr import installed
from workbench.recipe import lambda_tables
from workbench.recipe.config import Recipe
from workbench.recipe.reading import load, recipe_hash

LARGEST_SEED = 2**31 - 1


@dataclass(frozen=True)
class Plan:
    """A study's arguments read and checked, before anything is written.

    recipes: of the arms. noise_floor: inside which nothing is pruned; None: no pruning at all.
    """

    study: Study
    options: Options
    base: Recipe
    recipes: Mapping[str, Recipe]
    noise_floor: float | None

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Seed by seed, so that a study cut short has compared all arms; or the numbered draws of a search."""
        if self.options.search:
            assert self.options.trials is not None
            return tuple(Entry(SEARCH, slot) for slot in range(self.options.trials))
        arms = [arm for arm in self.study.ARMS if not self.options.arms or arm in self.options.arms]
        return tuple(Entry(arm, seed) for seed in self.options.seeds for arm in arms)


@dataclass(frozen=True)
class StudySession:
    """A plan and its storage."""

    plan: Plan
    storage: Storage
    optuna_study: optuna.Study
    study_id: int
    retry: Retry
    intervals: Intervals

    def queue(self, call: Call) -> TrialQueue:
        """The entries as `call` sees them."""
        return TrialQueue(
            self.optuna_study, self.storage, self.study_id, self.plan.entries, call, self.plan.options.folder
        )

    def id_of(self, number: int) -> int:
        """The storage's own number of a trial."""
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)


def plan_of(name: str, arguments: Iterable[str], study: Study) -> Plan:
    """Read the arguments and check every arm, and a draw of a search; nothing is written.

    name: of the study, its file, or the folder of a search whose winner is run again.

    Raises: UserError naming the option, the key or the arm.
    """
    arguments = [*study.WORDS, *arguments]
    name = Path(name).stem if name.endswith(".py") else name
    options = parse(name, arguments, default_seeds=study.SEEDS, must_search=not study.ARMS, known_arms=study.ARMS)
    base = vary(load(options.recipe, options.overrides), {"evaluation": {"split": study.SPLIT}})
    recipes = _arms(study, base)
    if options.search:
        _check_space(study, base)
    for arm in options.arms:
        if arm not in study.ARMS:
            raise UserError(f"the study {name} has no arm {arm!r}{nearest(arm, study.ARMS)}")
    if options.arms and options.search:
        raise UserError("arms= chooses what is replicated; a search has none: leave it out")
    _check_devices(options, base)
    _check_objectives(study, base)
    return Plan(study, options, base, recipes, _noise_floor(study, options, base))


def _noise_floor(study: Study, options: Options, base: Recipe) -> float | None:
    """The noise floor given, or that of the neighbouring study, of the objective; None where nothing can be pruned."""
    prunes, given = study.PRUNES and options.search and len(study.OBJECTIVES) == 1, options.noise_floor
    if given is not None and not prunes:
        why = "only a search with one objective prunes" if study.PRUNES else "this study says PRUNES = False"
        raise UserError(f"noise_floor is for pruning, and {why}: leave it out")
    if given is not None and base.evaluation.milestone_cases == 0:
        raise UserError("pruning goes by scores at milestones: give evaluation.milestone_cases=4, or no noise_floor")
    if not prunes or base.evaluation.milestone_cases == 0:
        return None
    return given or noise_floor_of(options.folder.parent / "noise-floor", study.OBJECTIVES[0])


def _arms(study: Study, base: Recipe) -> dict[str, Recipe]:
    """Recipe of every arm. UserError unless they can stand in one table, no two of them the same."""
    for factor, levels in study.FACTORS.items():
        low, high = (_check_variation(f"factor {factor!r}", base, partial(vary, base, level)) for level in levels)
        if low == high:
            raise UserError(f"the factor {factor!r} has two levels that are one recipe: it would show no effect")
    recipes: dict[str, Recipe] = {}
    for arm, differences in study.ARMS.items():
        recipe = _check_variation(f"arm {arm!r}", base, partial(vary, base, differences))
        for other, known in recipes.items():
            if recipe == known:
                raise UserError(f"the arms {other!r} and {arm!r} are one recipe: leave out one of them")
        recipes[arm] = recipe
    return recipes


def _check_variation(what: str, base: Recipe, varied: Callable[[], Recipe]) -> Recipe:
    """UserError unless the outcome is a recipe that can stand in one table with the base."""
    try:
        recipe = varied()
    except Exception as error:
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        raise UserError(f"{what}: {kind}{error}") from error
    check_recipe(what, base, recipe)
    return recipe


def check_recipe(what: str, base: Recipe, recipe: Any) -> None:
    """UserError unless it is a recipe, scored as the base is, that leaves to the study what is the study's."""
    if not isinstance(recipe, Recipe):
        raise UserError(f"{what} gives {type(recipe).__name__}, not a recipe: return vary(base, {...})")
    if recipe.evaluation != base.evaluation:
        raise UserError(f"{what} changes the evaluation: trials that are scored differently cannot be compared")
    if recipe.seed != base.seed:
        raise UserError(f"{what} sets seed: the study gives every trial its own, by seeds=0,1,2; leave it out")
    if recipe.trainer.folder != base.trainer.folder:
        raise UserError(f"{what} sets trainer.folder: every trial has its own in the study folder; leave it out")
    try:
        lambda_tables.tables(
            recipe.guidance, num_steps=recipe.dmd.student_steps, specialists=list(recipe.teachers.specialists)
        )
    except UserError as error:
        raise UserError(f"{what}: {error}") from error


def _check_space(study: Study, base: Recipe) -> None:
    """One draw, and the names of what it drew."""
    trial = _any_draw()
    _check_variation("suggest", base, partial(study.suggest, trial, base))
    for name in ("arm", "seed"):
        if name in trial.params:
            raise UserError(f"suggest draws a parameter called {name!r}, a name that the study itself uses: rename it")


def _any_draw() -> optuna.Trial:
    """A trial of no study that is kept, to see that a space can be drawn from."""
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    return optuna.create_study(sampler=RandomSampler(seed=0)).ask()


def _check_objectives(study: Study, base: Recipe) -> None:
    """That a trial can have what the study goes by: it would find out at its end alone."""
    needed = [name for name in study.OBJECTIVES if name in TEXT_MEASURES]
    if needed and (base.evaluation.ocr == "off" or not installed()):
        raise UserError(
            f"the objective {needed[0]} needs OCR: pip install 'few-step-workbench[ocr]', and no evaluation.ocr=off"
        )
    cases = base.evaluation.t2i_cases
    if "variety" in study.OBJECTIVES and not base.evaluation.cases and cases < MIN_CHOICES:
        raise UserError(
            f"the objective variety compares the choices in {MIN_CHOICES} or more answers of a category,"
            f" evaluation.t2i_cases is {cases}"
        )


def _check_devices(options: Options, base: Recipe) -> None:
    """A trial of several devices wants as many for itself."""
    wanted = base.trainer.devices
    if options.devices and len(options.devices) < wanted:
        raise UserError(f"devices={','.join(options.devices)} are too few for trials of trainer.devices={wanted}")
    in_all = wanted * options.workers
    if wanted > 1 and in_all > max(wanted, len(options.devices)) and base.trainer.accelerator != "cpu":
        raise UserError(
            f"{options.workers} workers with trainer.devices={wanted} each need devices= with {in_all} GPUs"
        )


def open_study(plan: Plan, retry: Retry, intervals: Intervals, *, is_first: bool) -> StudySession:
    """The study in its storage, made if absent.

    is_first: a storage that does not answer is then an error at once, not something to wait for.

    Raises: UserError where it does not open, or holds a study of another recipe.
    """
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    plan.options.folder.mkdir(parents=True, exist_ok=True)
    if is_first:
        try:
            return _open(plan, retry, intervals)
        except (SQLAlchemyError, StorageInternalError) as error:
            raise unopened(error) from error
    return retry(lambda: _open(plan, retry, intervals))


def _open(plan: Plan, retry: Retry, intervals: Intervals) -> StudySession:
    options, study = plan.options, plan.study
    storage = connect(options.storage, intervals)
    optuna_study = optuna.create_study(
        storage=storage,
        study_name=options.folder.name,
        directions=["maximize"] * len(study.OBJECTIVES),
        sampler=sampler_of(study, options, 0),
        pruner=NopPruner() if plan.noise_floor is None else NoiseFloorPruner(plan.noise_floor),
        load_if_exists=True,
    )
    study_id = storage.get_study_id_from_name(options.folder.name)
    # Trials of different recipes must not stand in one table.
    now, before = definition_of(plan.study, plan.base, plan.recipes), optuna_study.user_attrs.get("definition")
    arms = {arm: recipe_hash(replace(recipe, seed=0)) for arm, recipe in plan.recipes.items()}
    content = json.dumps([recipe_hash(replace(plan.base, seed=0)), arms, study.OBJECTIVES, study.MARGIN])
    fingerprint = hashlib.sha256(content.encode()).hexdigest()[:12]
    with guard(storage, study_id):
        changed = definition_changes(before, now) if before is not None else ""
        if changed or (before is None and optuna_study.user_attrs.get("fingerprint", fingerprint) != fingerprint):
            raise UserError(
                f"{options.folder} holds a study of another base recipe, other arms or another margin"
                f"{f' ({changed})' if changed else ''}; give a new one with folder=..."
            )
        optuna_study.set_user_attr("fingerprint", fingerprint)
        optuna_study.set_user_attr("definition", now)
    return StudySession(plan, storage, optuna_study, study_id, retry, intervals)


def sampler_of(study: Study, options: Options, slot: int) -> BaseSampler:
    """The sampler of one numbered draw: workers side by side, and a draw tried again, each get their own numbers."""
    seed = (options.seeds[0] * 1_000_003 + slot) % LARGEST_SEED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match study.SAMPLER:
            case "tpe":
                return TPESampler(seed=seed, constant_liar=True)
            case "nsga2":
                return NSGAIISampler(seed=seed)


def retry_for(options: Options) -> Retry:
    """Named by the storage's URL, password hidden."""
    return Retry(shown(options.storage) if "://" in options.storage else options.storage)
