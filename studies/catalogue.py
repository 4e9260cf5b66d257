"""The studies that `workbench study NAME` knows, and how it finds others."""

from __future__ import annotations

from pathlib import Path

from studies import (
    data_composition,
    fidelity,
    frozen_weights,
    known_answers,
    method,
    noise_floor,
    screening,
    search,
    student_budget,
    task_mixture,
    teacher_guidance,
)
from studies.reading import load_study, study_of
from studies.study import Study
from studies.winner import is_folder, winner_of
from workbench.common.errors import UserError, nearest

KNOWN: dict[str, Study] = {
    "noise-floor": study_of(noise_floor),
    "data-composition": study_of(data_composition),
    "teacher-guidance": study_of(teacher_guidance),
    "task-mixture": study_of(task_mixture),
    "student-budget": study_of(student_budget),
    "method": study_of(method),
    "frozen-weights": study_of(frozen_weights),
    "fidelity": study_of(fidelity),
    "known-answers": study_of(known_answers),
    "screening": study_of(screening),
    "search": study_of(search),
}


def study_named(name: str) -> Study:
    """The study of this name, in this file (`.py`), or of the winner of the search in this folder.

    Raises: UserError with the names there are.
    """
    if name.endswith(".py"):
        return load_study(Path(name))
    if name in KNOWN:
        return KNOWN[name]
    if is_folder(name):
        return winner_of(Path(name))
    raise UserError(
        f"no study {name!r}{nearest(name, KNOWN)}; there is: {', '.join(KNOWN)}, a file of your own (.py), or the "
        "folder of a search, whose winner is then run again"
    )
