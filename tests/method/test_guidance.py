"""Guidance: the ends of CFG, mixing x0 against mixing scores, and the checks of the lambda table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from workbench.common.errors import UserError
from workbench.method import flow, guidance

TEACHERS = ("teacher", "teacher_portrait", "teacher_text")
BASE, PORTRAIT, TEXT = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]


def predictions(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


def resolve(tables: dict[str, list[list[float]]], *categories: str, num_steps: int = 2) -> Tensor:
    return guidance.lambda_table(tables, categories, num_steps=num_steps, teachers=TEACHERS)


def test_scale_one_is_cond_and_scale_zero_is_uncond() -> None:
    cond, uncond = predictions(2)
    torch.testing.assert_close(guidance.cfg(cond, uncond, 1.0), cond)
    torch.testing.assert_close(guidance.cfg(cond, uncond, 0.0), uncond)


def test_guiding_velocities_is_guiding_clean_predictions() -> None:
    cond, uncond, x_t = predictions(3)
    t = torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64)
    guided = flow.velocity_to_x0(x_t, guidance.cfg(cond, uncond, 4.0), t)
    x0_cond, x0_uncond = (flow.velocity_to_x0(x_t, v, t) for v in (cond, uncond))
    torch.testing.assert_close(guided, guidance.cfg(x0_cond, x0_uncond, 4.0))


@given(st.lists(st.floats(0.01, 1.0), min_size=3, max_size=3), st.floats(0.05, 0.95), st.integers(0, 1000))
def test_mixing_x0_is_mixing_scores_because_the_weights_sum_to_one(raw: list[float], time: float, seed: int) -> None:
    weights = torch.tensor([raw, raw[::-1], [1.0, 0.0, 0.0]], dtype=torch.float64)
    weights = weights / weights.sum(1, keepdim=True)
    *x0, x_t = predictions(4, seed)
    t = torch.full((3,), time, dtype=torch.float64)
    mixed_scores = guidance.mix([flow.x0_to_score(x_t, one, t) for one in x0], weights)
    torch.testing.assert_close(flow.x0_to_score(x_t, guidance.mix(x0, weights), t), mixed_scores)
    torch.testing.assert_close(guidance.mix(x0, weights)[2], x0[0][2])


def test_the_nearest_class_counts() -> None:
    tables = {"t2i/portrait": [PORTRAIT, BASE], "t2i": [TEXT, BASE], "default": [BASE, TEXT]}
    table = resolve(tables, "t2i/portrait", "t2i/landscape", "edit/text")
    assert table.tolist() == [tables["t2i/portrait"], tables["t2i"], tables["default"]]


def test_without_tables_the_base_teacher_guides_alone() -> None:
    assert resolve({}, "t2i/a", "edit/b", num_steps=3).tolist() == [[BASE] * 3] * 2


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([BASE], r"guidance\.tables\.t2i has 1 rows for 2 student steps"),
        ([BASE, [0.5, 0.5]], r"tables\.t2i, row 1 has 2 weights for 3 teachers \(teacher, teacher_portrait"),
        ([BASE, [1.5, -0.5, 0.0]], r"tables\.t2i, row 1: every weight must lie in \[0, 1\]"),
        ([[0.5, 0.4, 0.0], BASE], r"tables\.t2i, row 0 must sum to 1, got 0\.9"),
        ([[float("nan"), 0.5, 0.5], BASE], r"tables\.t2i, row 0: every weight"),
    ],
)
def test_a_wrong_row_is_named(rows: list[list[float]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve({"t2i": rows}, "t2i/portrait")


def test_a_category_without_a_table_is_named() -> None:
    with pytest.raises(UserError, match=r"no table for edit/text"):
        resolve({"t2i": [BASE, BASE]}, "t2i/portrait", "edit/text")


def test_a_teacher_runs_where_a_planned_category_gives_it_weight() -> None:
    tables = {"t2i/portrait": [BASE, PORTRAIT], "t2i": [BASE, TEXT], "edit": [BASE, BASE]}
    categories = ("t2i/portrait", "t2i/text", "edit/text")
    table = resolve(tables, *categories)
    alone, both = [[True, False, False]], [False, True, True]
    active = guidance.active_teachers(table, categories, [True, True, True])
    assert active == {"t2i": [*alone, both], "edit": alone * 2}
    assert guidance.active_teachers(table, categories, [False, True, True])["t2i"] == [*alone, [False, False, True]]
    assert guidance.active_teachers(table, categories, [False, False, True]) == active
