"""The path and its conversions as identities, in float64; Gaussian data give the conditional expectations."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from workbench.method import flow, gaussian

INSIDE = st.floats(0.01, 0.99)
SHIFT = st.floats(0.1, 10.0)


def states(seed: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 5, 4, generator=generator, dtype=torch.float64) for _ in range(count)]


def times(first: float) -> Tensor:
    return torch.tensor([first, 0.3, 0.8], dtype=torch.float64)


@given(INSIDE, st.integers(0, 1000))
def test_velocity_and_state_give_back_data_and_noise(first: float, seed: int) -> None:
    (x0, eps), t = states(seed, 2), times(first)
    x_t, v = flow.interpolate(x0, eps, t), flow.velocity(x0, eps)
    torch.testing.assert_close(flow.velocity_to_x0(x_t, v, t), x0)
    torch.testing.assert_close(flow.velocity_to_eps(x_t, v, t), eps)


@given(INSIDE, st.integers(0, 1000))
def test_conversions_are_inverses_of_any_prediction(first: float, seed: int) -> None:
    (x_t, prediction), t = states(seed, 2), times(first)
    back = flow.x0_to_velocity(x_t, flow.velocity_to_x0(x_t, prediction, t), t)
    torch.testing.assert_close(back, prediction, rtol=1e-9, atol=1e-9)
    back = flow.score_to_x0(x_t, flow.x0_to_score(x_t, prediction, t), t)
    torch.testing.assert_close(back, prediction, rtol=1e-9, atol=1e-9)


def test_a_scalar_time_is_the_same_time_for_every_sample() -> None:
    x0, eps = states(0, 2)
    one, many = torch.tensor(0.4, dtype=torch.float64), torch.full((3,), 0.4, dtype=torch.float64)
    torch.testing.assert_close(flow.interpolate(x0, eps, one), flow.interpolate(x0, eps, many))
    torch.testing.assert_close(flow.x0_to_score(x0, eps, one), flow.x0_to_score(x0, eps, many))


def test_the_path_runs_from_data_to_noise_at_the_velocity() -> None:
    x0, eps = states(0, 2)
    ends = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)
    x_t = flow.interpolate(x0, eps, ends)
    torch.testing.assert_close(x_t[0], x0[0])
    torch.testing.assert_close(x_t[1], eps[1])
    _, slope = torch.func.jvp(lambda t: flow.interpolate(x0, eps, t), (ends,), (torch.ones_like(ends),))
    torch.testing.assert_close(slope, flow.velocity(x0, eps))


def test_score_of_the_expectation_is_the_gradient_of_the_log_density() -> None:
    """Tweedie, on Gaussian data: the density of x_t is known, and autograd differentiates it."""
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(4, generator=generator, dtype=torch.float64)
    factor = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    covariance = factor @ factor.T
    for t in (0.05, 0.5, 1.0):
        x_t = states(1, 1)[0].requires_grad_()
        marginal = (1 - t) ** 2 * covariance + t**2 * torch.eye(4, dtype=torch.float64)
        density = torch.distributions.MultivariateNormal((1 - t) * mean, marginal)
        (score,) = torch.autograd.grad(density.log_prob(x_t).sum(), x_t)
        time = torch.tensor(t, dtype=torch.float64).expand(3)
        v = gaussian.velocity(x_t.detach(), time, mean, covariance)
        x0 = flow.velocity_to_x0(x_t.detach(), v, time)
        torch.testing.assert_close(flow.x0_to_score(x_t.detach(), x0, time), score)


def test_gaussian_velocity_stays_finite_down_to_the_data() -> None:
    """At t = 0, E[eps - x0 | x0] = -x0: no division by t."""
    x0 = states(2, 1)[0]
    factor = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    time, mean = torch.zeros(3, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    v = gaussian.velocity(x0, time, mean, factor @ factor.T)
    torch.testing.assert_close(v, -x0)


@given(SHIFT, st.floats(0, 1), st.floats(0, 1))
def test_shift_is_a_monotone_bijection_of_the_unit_interval(s: float, first: float, second: float) -> None:
    low, high = sorted((first, second))
    t = torch.tensor([0.0, low, high, 1.0], dtype=torch.float64)
    shifted = flow.shift(t, s)
    assert shifted[0] == 0
    torch.testing.assert_close(shifted[3], t[3])
    assert (shifted.diff() >= 0).all()
    assert high - low < 1e-9 or shifted[2] > shifted[1]
    torch.testing.assert_close(flow.shift(shifted, 1 / s), t)


@given(SHIFT, SHIFT, st.floats(0, 1))
def test_shifts_compose_by_multiplication(first: float, second: float, time: float) -> None:
    t = torch.tensor(time, dtype=torch.float64)
    torch.testing.assert_close(flow.shift(flow.shift(t, first), second), flow.shift(t, first * second))


@pytest.mark.parametrize("s", [1.0, 2.0, 3.0, 5.0])
def test_shift_is_that_of_the_diffusers_scheduler(s: float) -> None:
    steps = 7
    unshifted = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=s)
    scheduler.set_timesteps(sigmas=unshifted.tolist())
    torch.testing.assert_close(scheduler.sigmas[:-1], flow.shift(unshifted, s).float())
    assert scheduler.sigmas[-1] == 0
