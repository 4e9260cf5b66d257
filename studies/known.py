"""The studies that `workbench study NAME` knows."""

from __future__ import annotations

from studies import data_composition, noise_floor, search, task_mixture, teacher_guidance
from studies.seam import Study
from workbench.errors import UserError

KNOWN: dict[str, Study] = {
    "noise-floor": noise_floor,
    "data-composition": data_composition,
    "teacher-guidance": teacher_guidance,
    "task-mixture": task_mixture,
    "search": search,
}


def study_named(name: str) -> Study:
    """The study of this name. Raises: UserError with the names there are."""
    if name not in KNOWN:
        raise UserError(f"no study {name!r}; there is: {', '.join(KNOWN)}")
    return KNOWN[name]
