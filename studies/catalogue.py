"""The studies that `workbench study NAME` knows, and how it finds others."""

from __future__ import annotations

from pathlib import Path

from studies import data_composition, noise_floor, search, task_mixture, teacher_guidance
from studies.study import Study
from studies.user_study import load_study
from workbench.common.errors import UserError

KNOWN: dict[str, Study] = {
    "noise-floor": noise_floor,
    "data-composition": data_composition,
    "teacher-guidance": teacher_guidance,
    "task-mixture": task_mixture,
    "search": search,
}


def study_named(name: str) -> Study:
    """The study of this name, or in this file (`.py`). Raises: UserError with the names there are."""
    if name.endswith(".py"):
        return load_study(Path(name))
    if name not in KNOWN:
        raise UserError(f"no study {name!r}; there is: {', '.join(KNOWN)}, or a file of your own (.py)")
    return KNOWN[name]
