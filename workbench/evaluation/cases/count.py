"""How many cases a recipe's `evaluation` section chooses, without drawing or decoding one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from datamodules.openmoji import CATEGORIES, is_world
from workbench.common.errors import UserError, nearest
from workbench.common.outside import Outside, read_lines
from workbench.recipe.config import Data, Evaluation


def count_cases(data: Data, evaluation: Evaluation) -> int:
    """Cases of both benchmarks together, as `choose.benchmark_cases` gives them. Raises: UserError as `case_counts`."""
    return case_counts(data, evaluation).total()


def case_counts(data: Data, evaluation: Evaluation) -> Counter[tuple[str, str]]:
    """(task, category) -> cases, as `choose.benchmark_cases` gives them.

    Raises: UserError as there; the lines of a file are only counted here, not checked.
    """
    if evaluation.cases:
        available = _in_file(Path(evaluation.cases))
    else:
        check_source(data)
        check_categories(evaluation.categories)
        per_category = {"t2i": evaluation.t2i_cases, "edit": evaluation.editing_cases}
        available = Counter({(task, name): per_category[task] for task, names in CATEGORIES.items() for name in names})
    most = {"t2i": evaluation.t2i_cases, "edit": evaluation.editing_cases}
    return Counter(
        {
            (task, category): min(count, most.get(task, 0))
            for (task, category), count in available.items()
            if not evaluation.categories or category in evaluation.categories
        }
    )


class _Row(Outside):
    task: str
    category: str


def _in_file(path: Path) -> Counter[tuple[str, str]]:
    return Counter((row.task, row.category) for _, row in read_lines(path, _Row, "name a file of cases"))


def check_source(data: Data) -> None:
    """The world's benchmarks are the default of data of the world alone. Raises: UserError for other data."""
    if not is_world(data):
        raise UserError(
            f"data.source={data.source} has no benchmark: name your own cases with evaluation.cases=FILE.jsonl "
            "(docs/cases.md), or set data.source=openmoji for those of the world that ships"
        )


def check_categories(names: Sequence[str]) -> None:
    """Raises: UserError for a category that the world lacks."""
    known = {name for of_task in CATEGORIES.values() for name in of_task}
    for name in names:
        if name not in known:
            raise UserError(f"evaluation.categories names {name!r}, which the world has not{nearest(name, known)}")
