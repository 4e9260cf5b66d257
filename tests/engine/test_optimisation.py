"""Schedule, clipping and moving average against their slow references."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from workbench.engine.optimisation import MovingAverage, clip_gradients, learning_rate_factor


def test_the_rate_rises_linearly_then_falls_as_a_cosine() -> None:
    factors = [learning_rate_factor(update, 10, 110, 0.1) for update in range(130)]
    assert factors[:10] == pytest.approx([(update + 1) / 10 for update in range(10)])
    assert factors[10] == 1 and factors[60] == pytest.approx(0.55)
    assert factors[110:] == pytest.approx([0.1] * 20)
    falls = [before - after for before, after in zip(factors[10:110], factors[11:111], strict=True)]
    assert all(fall > 0 for fall in falls)
    assert max(falls) == pytest.approx(0.45 * math.pi / 100, rel=1e-3)


def test_the_rate_is_constant_where_nothing_is_asked_for() -> None:
    assert all(learning_rate_factor(update, 0, 50, 1.0) == 1 for update in range(60))


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 1e6])
def test_clipping_is_torch_s_own(max_norm: float) -> None:
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    ours[0].bias.requires_grad_(False)
    theirs = copy.deepcopy(ours)
    x = torch.randn(6, 4)
    for network in (ours, theirs):
        network(x).square().sum().backward()
    norm = clip_gradients(ours.parameters(), max_norm)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(theirs.parameters(), max_norm))
    for left, right in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (left.grad is None) == (right.grad is None)
        if left.grad is not None:
            torch.testing.assert_close(left.grad, right.grad)


def test_a_gradient_that_is_not_finite_shows_in_the_norm() -> None:
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, math.nan])
    assert not torch.isfinite(clip_gradients([parameter], 1.0))


def test_the_average_is_the_slow_recursion() -> None:
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(3, generator=generator))
    average = MovingAverage({"weight": parameter}, decay=0.6)
    slow = parameter.detach().double()
    for update in range(1, 30):
        with torch.no_grad():
            parameter.add_(torch.randn(3, generator=generator))
        average.update(update)
        decay = min(0.6, (1 + update) / (10 + update))
        slow = decay * slow + (1 - decay) * parameter.detach().double()
    torch.testing.assert_close(average.average["weight"].double(), slow, rtol=1e-5, atol=1e-6)


def test_one_swap_exchanges_and_two_change_nothing() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    average = MovingAverage({"weight": parameter}, decay=0.5)
    average.average["weight"].fill_(7.0)
    average.swap()
    assert parameter.tolist() == [7.0, 7.0] and average.average["weight"].tolist() == [1.0, 2.0]
    average.swap()
    assert parameter.tolist() == [1.0, 2.0] and average.average["weight"].tolist() == [7.0, 7.0]


def test_without_a_decay_the_average_is_the_weights_and_holds_nothing() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    average = MovingAverage({"weight": parameter}, decay=0.0)
    for update in (1, 2):
        with torch.no_grad():
            parameter.add_(update)
        average.update(update)
        average.swap()
        assert torch.equal(average.average["weight"], parameter)
    assert parameter.tolist() == [4.0, 5.0]
    assert average.average["weight"].data_ptr() == parameter.data_ptr()
