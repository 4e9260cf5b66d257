"""The studies that `workbench study NAME` knows."""

from __future__ import annotations

from studies import task_mixture
from studies.seam import Study
from workbench.errors import UserError

KNOWN: dict[str, Study] = {
    "task-mixture": task_mixture,
}


def study_named(name: str) -> Study:
    """The study of this name. Raises: UserError with the names there are."""
    if name not in KNOWN:
        raise UserError(f"no study {name!r}; there is: {', '.join(KNOWN)}")
    return KNOWN[name]
