"""Diagnostics of a student update by step, category and teacher; like all logged means they stay on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.batch import Batch
from workbench.engine.means import Means
from workbench.method import diagnostics
from workbench.modules.student_loss import Comparison


@torch.no_grad()
def record(
    means: Means,
    batch: Batch,
    seen: Comparison,
    *,
    step: int,
    weights: Tensor,
    categories: Sequence[str],
    teachers: Sequence[str],
) -> None:
    """Log under `x0_gap/TASK`, `per_step/QUANTITY/CATEGORY/step K` and `teacher_share/TEACHER/CATEGORY`.

    Quantities: x0_gap |x0_fake - x0_real|; spread and flat_noise of the student's sample against x0_real (see
    `workbench.method.diagnostics`); gap_TEACHER |x0_teacher - x0_base| of each specialist, over the samples that
    give weight to both.

    Args:
        weights: lambda of each sample at this step, (B, M + 1), columns named by `teachers`.
    """
    layout = batch.condition.layout
    found = {
        "x0_gap": diagnostics.gap(seen.x0_fake, seen.x0_real),
        "spread": diagnostics.spread_ratio(seen.x, seen.x0_real),
        "flat_noise": diagnostics.flat_noise(seen.x, seen.x0_real, layout.height, layout.width),
    }
    means.add(f"x0_gap/{batch.task}", found["x0_gap"], batch.weight)
    counted = dict.fromkeys(found, batch.weight)
    if 0 in seen.x0_of_teachers:
        base = seen.x0_of_teachers[0]
        for m in seen.x0_of_teachers.keys() - {0}:
            found[f"gap_{teachers[m]}"] = diagnostics.gap(seen.x0_of_teachers[m], base)
            counted[f"gap_{teachers[m]}"] = batch.weight * ((weights[:, 0] > 0) & (weights[:, m] > 0))
    for quantity, values in found.items():
        names = [f"per_step/{quantity}/{category}/step{step}" for category in categories]
        means.add_by(names, batch.category, values, counted[quantity])
    if len(teachers) > 1:
        for m, teacher in enumerate(teachers):
            names = [f"teacher_share/{teacher}/{category}" for category in categories]
            means.add_by(names, batch.category, weights[:, m], batch.weight)
