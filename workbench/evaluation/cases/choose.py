"""The cases that a recipe's `evaluation` section chooses."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from workbench.common.errors import UserError
from workbench.evaluation.cases.case import BENCHES, Case
from workbench.evaluation.cases.case_file import read_jsonl, sliced
from workbench.evaluation.cases.count import check_categories, check_source
from workbench.evaluation.cases.world import world_cases
from workbench.recipe.config import SIDE_MULTIPLE, Data, Evaluation
from workbench.sampling.sampler import fit


def benchmark_cases(
    data: Data,
    evaluation: Evaluation,
    *,
    split: str | None = None,
    t2i_cases: int | None = None,
    editing_cases: int | None = None,
) -> list[Case]:
    """At most so many cases a category of a split of the world, or of the file `evaluation.cases`, whose images are
    brought to the size at which models answer. split, t2i_cases, editing_cases: the recipe's when absent.

    Raises:
        UserError: a category that is not there, a file that cannot be read, nothing left to evaluate, data that are not
            the world's without a file of cases.
    """
    counts = {
        "t2i": evaluation.t2i_cases if t2i_cases is None else t2i_cases,
        "edit": evaluation.editing_cases if editing_cases is None else editing_cases,
    }
    if not evaluation.cases:
        check_source(data)
        check_categories(evaluation.categories)
        split = split or evaluation.split
        return [
            case
            for task in BENCHES
            for case in world_cases(
                task, split, counts[task], data.resolution, evaluation.categories, evaluation.slice_seed
            )
        ]
    every = read_jsonl(Path(evaluation.cases), lambda image: fit(image, data.resolution, SIDE_MULTIPLE))
    cases = sliced(every, counts, evaluation.categories, evaluation.slice_seed)
    if not cases:
        raise UserError(
            f"no case of {evaluation.cases} is left: raise evaluation.t2i_cases or evaluation.editing_cases"
        )
    if len(cases) < len(every):
        Console(markup=False).print(
            f"{len(cases)} of the {len(every)} cases in {evaluation.cases}: at most {counts['t2i']} T2I and "
            f"{counts['edit']} editing cases a category (evaluation.t2i_cases, evaluation.editing_cases)"
        )
    return cases
