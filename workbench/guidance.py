"""What the student is guided by: classifier-free guidance and the lambda table of step-wise multi-teacher guidance.

A lambda table holds, for one class of conditions, K rows (student steps, noisiest first) of M + 1 weights
(base teacher, then the specialists); rows are non-negative and sum to 1 (Qwen-Image-Flash, arXiv 2606.03746:
s_real^(k) = sum_m lambda_{k,m}(c) s_m).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from workbench.errors import UserError


def cfg(v_cond: Tensor, v_uncond: Tensor, scale: float) -> Tensor:
    """Guidance v = v_uncond + w (v_cond - v_uncond); w = 1 is none (Ho & Salimans 2022, arXiv 2207.12598)."""
    return v_uncond + scale * (v_cond - v_uncond)


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
        UserError: wrong shape, negative weight, a row that does not sum to 1, a category without a table.
    """
    for name, rows in tables.items():
        _check(name, rows, num_steps, teachers)
    base_alone = [[1.0] + [0.0] * (len(teachers) - 1)] * num_steps
    resolved = [_nearest_table(tables, category) if tables else base_alone for category in categories]
    return torch.tensor(resolved, dtype=torch.float32)


def _nearest_table(tables: Mapping[str, Sequence[Sequence[float]]], category: str) -> Sequence[Sequence[float]]:
    for name in (category, category.partition("/")[0], "default"):
        if name in tables:
            return tables[name]
    raise UserError(f"guidance.tables has no table for {category}: add one under that name or under 'default'")


def _check(name: str, rows: Sequence[Sequence[float]], num_steps: int, teachers: Sequence[str]) -> None:
    if len(rows) != num_steps:
        raise UserError(f"guidance.tables.{name} has {len(rows)} rows for {num_steps} student steps")
    for k, row in enumerate(rows):
        where = f"guidance.tables.{name}, row {k}"
        if len(row) != len(teachers):
            raise UserError(f"{where} has {len(row)} weights for {len(teachers)} teachers ({', '.join(teachers)})")
        if not all(0 <= weight <= 1 for weight in row):
            raise UserError(f"{where}: every weight must lie in [0, 1], got {list(row)}")
        if abs(sum(row) - 1) > 1e-6:
            raise UserError(f"{where} must sum to 1, got {sum(row):g} from {list(row)}")
