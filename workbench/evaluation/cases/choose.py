"""The cases that a recipe's `evaluation` section chooses."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from workbench.batch import TASKS
from workbench.common.errors import UserError
from workbench.evaluation.cases.case import Case, openmoji_cases
from workbench.evaluation.cases.case_file import read_jsonl, sliced
from workbench.recipe.checks import nearest
from workbench.recipe.config import CATEGORIES, Recipe
from workbench.sampling.sampler import fit


def benchmark_cases(recipe: Recipe, split: str, t2i_cases: int, editing_cases: int) -> list[Case]:
    """At most so many cases a category of a split of the world, or of the file `evaluation.cases`, whose images are
    brought to the size at which models answer.

    Raises:
        UserError: a category that is not there, a file that cannot be read, nothing left to evaluate.
    """
    chosen = recipe.evaluation
    counts = {"t2i": t2i_cases, "edit": editing_cases}
    if not chosen.cases:
        known = {name for names in CATEGORIES.values() for name in names}
        for name in chosen.categories:
            if name not in known:
                hint = nearest(name, known)
                raise UserError(f"evaluation.categories names {name!r}, which the world has not{hint}")
        return [
            case
            for task in TASKS
            for case in openmoji_cases(
                task, split, counts[task], recipe.data.resolution, chosen.categories, chosen.slice_seed
            )
        ]
    every = read_jsonl(Path(chosen.cases), lambda image: fit(image, recipe.data.resolution))
    cases = sliced(every, counts, chosen.categories, chosen.slice_seed)
    if not cases:
        raise UserError(f"no case of {chosen.cases} is left: raise evaluation.t2i_cases or evaluation.editing_cases")
    if len(cases) < len(every):
        Console().print(
            f"{len(cases)} of the {len(every)} cases in {chosen.cases}: at most {t2i_cases} T2I and {editing_cases} "
            "editing cases a category (evaluation.t2i_cases, evaluation.editing_cases)"
        )
    return cases
