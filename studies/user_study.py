"""Study files that users write: Python files with the names of `studies.study.Study`."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import optuna

from studies.machine.trial_queue import SEARCH
from studies.study import BENCHES, Differences, Sampler, Study
from workbench.common.errors import UserError, nearest
from workbench.recipe.checks import require
from workbench.recipe.config import Recipe

NAMES = ("QUESTION", "ARMS", "SEEDS", "OBJECTIVES", "SAMPLER", "suggest")
MEASURED = (*BENCHES, "score", "worst", "diversity")


def _no_space(trial: optuna.trial.BaseTrial, base: Recipe) -> Recipe:
    raise UserError("the file has no suggest(trial, base) to search with: leave out search=true, or write one")


@dataclass
class UserStudy:
    """The names in a file; defaults are three seeds, the score, TPE, and no search.

    Raises: UserError naming the value of the wrong type.
    """

    QUESTION: str
    ARMS: dict[str, Differences] = field(default_factory=dict)
    SEEDS: tuple[int, ...] = (0, 1, 2)
    OBJECTIVES: tuple[str, ...] = ("score",)
    SAMPLER: Sampler = "tpe"
    suggest: Callable[[optuna.trial.BaseTrial, Recipe], Recipe] = _no_space

    def __post_init__(self) -> None:
        require(bool(self.QUESTION) and isinstance(self.QUESTION, str), "QUESTION must be a sentence")
        require(
            isinstance(self.ARMS, dict)
            and all(isinstance(name, str) and isinstance(arm, Mapping) for name, arm in self.ARMS.items()),
            'ARMS must map names to nested differences from the recipe, {"slow": {"optim": {"student_lr": 1e-5}}}',
        )
        require(SEARCH not in self.ARMS, f"an arm may not be called {SEARCH!r}: draws of a search are")
        require(_all(self.SEEDS, int) and bool(self.SEEDS), "SEEDS must be whole numbers, (0, 1, 2)")
        require(_all(self.OBJECTIVES, str) and bool(self.OBJECTIVES), 'OBJECTIVES must be names, ("score",)')
        for name in self.OBJECTIVES:
            require(name in MEASURED, f"OBJECTIVES knows {', '.join(MEASURED)}, not {name!r}{nearest(name, MEASURED)}")
        samplers = get_args(Sampler)
        require(self.SAMPLER in samplers, f"SAMPLER must be one of {', '.join(samplers)}, got {self.SAMPLER!r}")
        require(bool(self.ARMS) or self.suggest is not _no_space, "it has neither ARMS nor suggest(trial, base)")


def load_study(path: Path) -> Study:
    """The study in the file at `path`, which is run as any Python module.

    Raises: UserError naming the file: it is missing, it does not run, or a name in it is missing or of the wrong type.
    """
    if not path.is_file():
        raise UserError(f"no study file at {path}")
    module = _module(path)
    found = {name: getattr(module, name) for name in NAMES if hasattr(module, name)}
    if "QUESTION" not in found:
        raise UserError(f"the study file {path} has no QUESTION")
    try:
        return UserStudy(**found)
    except UserError as error:
        raise UserError(f"the study file {path}: {error}") from error


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


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list | tuple) and all(isinstance(value, kind) for value in values)
