"""Guidance of the student: classifier-free guidance and the lambda table of step-wise multi-teacher guidance.

A lambda table holds, for one class of conditions, K rows (student steps, noisiest first) of M + 1 weights
(base teacher, then the specialists); rows are non-negative and sum to 1 (arXiv 2606.03746:
s_real^(k) = sum_m lambda_{k,m}(c) s_m).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from workbench.batch import TASKS
from workbench.common.errors import UserError


def cfg(v_cond: Tensor, v_uncond: Tensor, scale: float) -> Tensor:
    """Guidance v = v_uncond + w (v_cond - v_uncond); w = 1 is none (Ho & Salimans 2022, arXiv 2207.12598)."""
    return v_uncond + scale * (v_cond - v_uncond)


def rescale(v: Tensor, v_cond: Tensor, strength: float) -> Tensor:
    """Guided velocity `v` with each token's norm drawn towards that of `v_cond`: 0 leaves it, 1 gives it that norm.

    Against the over-saturation of large scales. The norm is over the channels of a token; Lin et al. 2023 (arXiv
    2305.08891, section 3.4) rescale by the deviation over all of a sample.
    """
    ratio = v_cond.norm(dim=-1, keepdim=True) / v.norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return v * (1 + strength * (ratio - 1))


def mix(predictions: Sequence[Tensor], weights: Tensor) -> Tensor:
    """sum_m lambda_m x_m over M + 1 predictions (B, N, C) with weights (B, M + 1): (B, N, C).

    Mixing x0 or scores is the same thing, because the conversion between them is affine and the weights sum to 1.
    """
    stacked = torch.stack(list(predictions), dim=1)
    return (weights.to(stacked.dtype)[:, :, None, None] * stacked).sum(dim=1)


def lambda_table(
    tables: Mapping[str, Sequence[Sequence[float]]],
    categories: Sequence[str],
    *,
    num_steps: int,
    teachers: Sequence[str],
) -> Tensor:
    """The table of every category: (len(categories), K, M + 1) float32.

    categories: qualified names `task/category`. The nearest of `task/category`, `task`, `default` counts; with no
    tables at all, the base teacher (the first of `teachers`) guides every step alone.

    Raises:
        UserError: wrong shape, negative weight, a row that does not sum to 1, a category without a table, a table
            for a class that does not exist.
    """
    for name, rows in tables.items():
        if name not in (*categories, *TASKS, "default"):
            raise UserError(
                f"guidance has a class {name!r}, but the data have only {', '.join(categories)}: correct it, or name a "
                f"task ({', '.join(TASKS)}) or 'default'"
            )
        _check(name, rows, num_steps, teachers)
    base_alone = [[1.0] + [0.0] * (len(teachers) - 1)] * num_steps
    resolved = [_nearest_table(tables, category) if tables else base_alone for category in categories]
    return torch.tensor(resolved, dtype=torch.float32)


def active_teachers(table: Tensor, categories: Sequence[str], planned: Sequence[bool]) -> dict[str, list[list[bool]]]:
    """Per task and student step, which teachers have weight in any planned category: task -> K lists of M + 1.

    Decided from the plan and not from the rows at hand, so that all ranks run the same forwards. A task of which
    nothing is planned counts all its categories.

    Args:
        table: of every category, (len(categories), K, M + 1).
    """
    active = {}
    for task in dict.fromkeys(name.partition("/")[0] for name in categories):
        rows = [i for i, name in enumerate(categories) if name.partition("/")[0] == task]
        active[task] = (table[[i for i in rows if planned[i]] or rows] > 0).any(dim=0).tolist()
    return active


def _nearest_table(tables: Mapping[str, Sequence[Sequence[float]]], category: str) -> Sequence[Sequence[float]]:
    for name in (category, category.partition("/")[0], "default"):
        if name in tables:
            return tables[name]
    raise UserError(
        f"guidance.tables has no table for {category} (nor guidance.schedules): add one under that name or 'default'"
    )


def _check(name: str, rows: Sequence[Sequence[float]], num_steps: int, teachers: Sequence[str]) -> None:
    if len(rows) != num_steps:
        raise UserError(
            f"guidance.tables.{name} has {len(rows)} rows for {num_steps} student steps: one a step, noisiest first"
        )
    for k, row in enumerate(rows):
        where = f"guidance.tables.{name}, row {k}"
        if len(row) != len(teachers):
            raise UserError(f"{where} has {len(row)} weights for {len(teachers)} teachers ({', '.join(teachers)})")
        if not all(0 <= weight <= 1 for weight in row):
            raise UserError(f"{where}: every weight must lie in [0, 1], got {list(row)}")
        if abs(sum(row) - 1) > 1e-6:
            raise UserError(f"{where} must sum to 1, got {sum(row):g} from {list(row)}; divide each weight by it")
