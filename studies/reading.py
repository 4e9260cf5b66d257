"""Study files, those that ship and those that users write: Python files with the names of `studies.study.Study`."""

from __future__ import annotations

import importlib.util
import symtable
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import optuna

from studies.analysis.decisions import MARGIN
from studies.analysis.expectations import NOISIER
from studies.analysis.screening import MAX_FACTORS, MIN_FACTORS
from studies.factors import runs_of
from studies.machine.trial_queue import SEARCH
from studies.study import BENCHES, Differences, Factors, Sampler, Split, Study
from workbench.common.errors import UserError, nearest
from workbench.evaluation.measures.catalogue import MEASURES
from workbench.recipe.checks import require
from workbench.recipe.config import Recipe

NAMES = ("QUESTION", "ARMS", "FACTORS", "SEEDS", "OBJECTIVES", "SAMPLER", "MARGIN", "PRUNES", "EXPECTS", "suggest")
MEASURED = (*BENCHES, "score", "worst", "variety", *MEASURES)


def _no_space(trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe:
    raise UserError("the file has no suggest(trial, base) to search with: leave out search=true, or write one")


@dataclass
class StudyFile:
    """The names in a file; defaults are three seeds, the score, TPE, a margin of .05, and no search.

    Raises: UserError naming the value of the wrong type.
    """

    QUESTION: str
    ARMS: dict[str, Differences] = field(default_factory=dict)
    FACTORS: Factors = field(default_factory=dict)
    SEEDS: tuple[int, ...] = (0, 1, 2)
    OBJECTIVES: tuple[str, ...] = ("score",)
    SAMPLER: Sampler = "tpe"
    MARGIN: float = MARGIN
    PRUNES: bool = True
    EXPECTS: Mapping[str, str] = field(default_factory=dict)
    SPLIT: Split = "search"
    WORDS: tuple[str, ...] = ()
    suggest: Callable[[optuna.trial.BaseTrial, Recipe], Recipe] = _no_space

    def __post_init__(self) -> None:
        require(bool(self.QUESTION) and isinstance(self.QUESTION, str), "QUESTION must be a sentence")
        self._check_arms()
        require(_all(self.SEEDS, int) and bool(self.SEEDS), "SEEDS must be whole numbers, (0, 1, 2)")
        require(_all(self.OBJECTIVES, str) and bool(self.OBJECTIVES), 'OBJECTIVES must be names, ("score",)')
        for name in self.OBJECTIVES:
            require(name in MEASURED, f"OBJECTIVES knows {', '.join(MEASURED)}, not {name!r}{nearest(name, MEASURED)}")
        samplers = get_args(Sampler)
        require(self.SAMPLER in samplers, f"SAMPLER must be one of {', '.join(samplers)}, got {self.SAMPLER!r}")
        self._check_expectations()
        is_number = isinstance(self.MARGIN, int | float) and not isinstance(self.MARGIN, bool)
        require(is_number and 0 < self.MARGIN < 4, f"MARGIN must be points of the score above 0, got {self.MARGIN!r}")
        require(isinstance(self.PRUNES, bool), f"PRUNES must be True or False, got {self.PRUNES!r}")
        require(bool(self.ARMS) or self.suggest is not _no_space, "it has neither ARMS nor suggest(trial, base)")

    def _check_expectations(self) -> None:
        require(isinstance(self.EXPECTS, Mapping), 'EXPECTS must map arms to predictions, {"slow": "score worse"}')
        predictions = [NOISIER, *(f"{name} {of}" for name in MEASURED for of in ("better", "worse"))]
        for arm, expected in self.EXPECTS.items():
            others = [*self.ARMS][1:]
            require(arm in others, f"EXPECTS has {arm!r}, which is no arm after the first{nearest(str(arm), others)}")
            require(
                expected in predictions,
                f"EXPECTS knows {NOISIER!r}, or an objective that is better or worse (score worse), not {expected!r}",
            )

    def _check_arms(self) -> None:
        require(
            isinstance(self.ARMS, dict)
            and all(isinstance(name, str) and isinstance(arm, Mapping) for name, arm in self.ARMS.items()),
            'ARMS must map names to nested differences from the recipe, {"slow": {"optim": {"student_lr": 1e-5}}}',
        )
        require(SEARCH not in self.ARMS, f"an arm may not be called {SEARCH!r}: draws of a search are")
        if not self.FACTORS:
            return
        require(
            isinstance(self.FACTORS, dict)
            and all(isinstance(name, str) and _all(pair, Mapping, 2) for name, pair in self.FACTORS.items()),
            "FACTORS must map names to two levels, each nested differences from the recipe, "
            '{"EMA": ({"optim": {"ema_decay": 0.9}}, {"optim": {"ema_decay": 0.99}})}',
        )
        require(
            MIN_FACTORS <= len(self.FACTORS) <= MAX_FACTORS,
            f"FACTORS has {len(self.FACTORS)}: a design has {MIN_FACTORS} to {MAX_FACTORS}; fewer are arms",
        )
        runs = runs_of(self.FACTORS)
        require(self.ARMS in ({}, runs), "it has ARMS and FACTORS: put one of them into a file of its own")
        self.ARMS = runs


def study_of(names: Any) -> Study:
    """The study of a module, or of anything with its names."""
    return StudyFile(**{name: getattr(names, name) for name in NAMES if hasattr(names, name)})


def load_study(path: Path) -> Study:
    """The study in the file at `path`, which is run as any Python module.

    Raises: UserError naming the file: it is missing, it does not run, or a name in it is missing, unknown or of the
        wrong type.
    """
    if not path.is_file():
        raise UserError(f"no study file at {path}")
    module = _module(path)
    if not hasattr(module, "QUESTION"):
        raise UserError(f"the study file {path} has no QUESTION")
    try:
        _check_names(path)
        return study_of(module)
    except UserError as error:
        raise UserError(f"the study file {path}: {error}") from error


def _check_names(path: Path) -> None:
    """A setting that nothing reads would be a mistyped one."""
    for name in symtable.symtable(path.read_text(), str(path), "exec").get_symbols():
        found = name.get_name()
        if name.is_assigned() and not name.is_imported() and found.isupper() and found[0] != "_":
            require(
                found in NAMES,
                f"it sets {found}, which no study has{nearest(found, NAMES)}; known are {', '.join(NAMES)}, and a "
                f"constant of your own begins with an underscore, _{found}",
            )


def _module(path: Path) -> ModuleType:
    """The file as a module that dataclasses can look up, under a name that no other module has."""
    spec = importlib.util.spec_from_file_location(f"study file {path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise UserError(f"the study file {path} does not run: {type(error).__name__}: {error}") from error
    return module


def _all(values: Any, kind: type, num: int | None = None) -> bool:
    return (
        isinstance(values, list | tuple)
        and num in (None, len(values))
        and all(isinstance(value, kind) for value in values)
    )
