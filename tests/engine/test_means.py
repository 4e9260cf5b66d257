"""Weighted means: over samples, not over micro-batches; padding rows count for nothing."""

from __future__ import annotations

import pytest
import torch

from workbench.engine.means import Means


def test_the_mean_is_over_samples_not_over_micro_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    values, weights = torch.rand(10, generator=generator), torch.rand(10, generator=generator)
    means = Means()
    for rows in (slice(0, 7), slice(7, 8), slice(8, 10)):
        means.add("loss", values[rows], weights[rows])
    assert means.pop()["loss"] == pytest.approx(float((values * weights).sum() / weights.sum()))


def test_padding_rows_have_no_share() -> None:
    means = Means()
    means.add("loss", torch.tensor([1.0, 3.0, 100.0]), torch.tensor([1.0, 1.0, 0.0]))
    means.add("only padding", torch.tensor([5.0]), torch.tensor([0.0]))
    assert means.pop() == {"loss": 2.0}


def test_names_are_separate_a_scalar_is_one_sample_and_pop_empties() -> None:
    means = Means()
    means.add("norm", torch.tensor(2.0))
    means.add("norm", torch.tensor(4.0))
    means.add("loss", torch.ones(3, requires_grad=True))
    assert means.pop() == {"norm": 3.0, "loss": 1.0}
    assert means.pop() == {}


def test_grouped_means_are_those_of_each_group_and_a_nan_stays_in_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    values, weights = torch.rand(12, generator=generator), torch.rand(12, generator=generator)
    index, names = torch.arange(12) % 3, ["a", "b", "c", "nobody"]
    grouped, apart = Means(), Means()
    for rows in (slice(0, 5), slice(5, 12)):
        grouped.add_by(names, index[rows], values[rows], weights[rows])
    for group in range(3):
        apart.add(names[group], values[index == group], weights[index == group])
    assert grouped.pop() == pytest.approx(apart.pop())
    grouped.add_by(names, torch.tensor([0, 1, 1]), torch.tensor([float("nan"), 1.0, 3.0]), torch.ones(3))
    found = grouped.pop()
    assert found.keys() == {"a", "b"} and found["b"] == 2.0 and found["a"] != found["a"]
