"""The Euler sampler against closed forms and diffusers; the student's rollout against the chain rule by hand."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from workbench.method import flow, gaussian, rollout


def noise(batch: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(batch, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Affine(nn.Module):
    """v = (x W + b) (1 + t): a network small enough to unroll by hand."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weight = nn.Parameter(torch.randn(2, 2, generator=generator, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(2, generator=generator, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        return (x_t @ self.weight + self.bias) * (1 + flow.expand(t, x_t))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_grid_falls_from_one_to_zero(shift: float) -> None:
    grid = rollout.time_grid(5, shift)
    assert grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()
    assert rollout.time_grid(4, 3.0, explicit=[1.0, 0.5]).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_euler_is_exact_on_a_constant_velocity(steps: int) -> None:
    x0, eps = noise(seed=1), noise(seed=2)
    result = rollout.sample(lambda x, t: flow.velocity(x0, eps), eps, rollout.time_grid(steps, 3.0))
    torch.testing.assert_close(result, x0, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_of_first_order_on_a_linear_velocity(shift: float) -> None:
    """dx/dt = a x has x(0) = x(1) exp(-a): halving the step halves the error."""
    eps, rate = noise(), 1.3
    exact = eps * math.exp(-rate)
    steps = [32, 64, 128, 256]
    grids = [flow.shift(torch.linspace(1, 0, count + 1, dtype=torch.float64), shift) for count in steps]
    errors = [(rollout.sample(lambda x, t: rate * x, eps, grid) - exact).norm() for grid in grids]
    orders = [math.log2(coarse / fine) for coarse, fine in zip(errors, errors[1:], strict=False)]
    assert all(abs(order - 1) < 0.05 for order in orders), orders


def test_euler_with_the_exact_velocity_samples_gaussian_data() -> None:
    """The probability flow of N(m, S) is affine in the noise; its end has mean m and covariance S."""
    mean = torch.tensor([0.5, -1.0], dtype=torch.float64)
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    probes = torch.cat([torch.zeros(1, 1, 2), torch.eye(2)[:, None]]).double()
    grid = flow.shift(torch.linspace(1, 0, 2001, dtype=torch.float64), 1.0)
    ends = rollout.sample(lambda x, t: gaussian.velocity(x, t, mean, covariance), probes, grid)[:, 0]
    linear = ends[1:] - ends[0]
    torch.testing.assert_close(ends[0], mean, rtol=0, atol=2e-3)
    torch.testing.assert_close(linear.T @ linear, covariance, rtol=0, atol=2e-3)


@pytest.mark.parametrize(("steps", "shift"), [(4, 3.0), (40, 2.0)])
def test_euler_is_the_diffusers_scheduler(steps: int, shift: float) -> None:
    network, x = Affine().float(), noise().float()
    grid = rollout.time_grid(steps, shift)
    with torch.no_grad():
        ours = rollout.sample(network, x, grid)
        scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
        scheduler.set_timesteps(sigmas=torch.linspace(1, 0, steps + 1)[:-1].tolist())
        for t in scheduler.timesteps:
            v = network(x, (t / 1000).expand(len(x)))
            x = scheduler.step(v, t, x, return_dict=False)[0]
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


def test_the_state_of_step_zero_is_the_noise() -> None:
    network, eps = Affine(), noise()
    assert torch.equal(rollout.student_state(network, eps, rollout.time_grid(4, 3.0), 0, None), eps)


def test_the_last_step_ends_where_euler_ends() -> None:
    network, eps, times = Affine(), noise(), rollout.time_grid(4, 3.0)
    state = rollout.student_state(network, eps, times, 3, None)
    with torch.no_grad():
        torch.testing.assert_close(
            rollout.student_sample(network, state, times, 3), rollout.sample(network, eps, times)
        )


@pytest.mark.parametrize("step", range(4))
def test_gradient_flows_through_the_graded_evaluation_alone(step: int) -> None:
    network, eps, times = Affine(), noise(), rollout.time_grid(4, 3.0)
    state = rollout.student_state(network, eps, times, step, None)
    assert not state.requires_grad
    rollout.student_sample(network, state, times, step).sum().backward()

    by_hand = eps
    for k in range(step):
        t, t_next = times[k].double(), times[k + 1].double()
        by_hand = by_hand + (t_next - t) * (by_hand @ network.weight + network.bias).detach() * (1 + t)
    t = times[step].double()
    slope = -t * (1 + t)  # of x0 = x - t (x W + b) (1 + t) in W and b
    expected = slope * by_hand.flatten(0, 1).sum(0)[:, None].expand(2, 2)
    torch.testing.assert_close(network.weight.grad, expected, rtol=1e-5, atol=1e-6)
    expected = (slope * by_hand[..., 0].numel()).expand(2)
    torch.testing.assert_close(network.bias.grad, expected, rtol=1e-5, atol=1e-6)


def test_renoised_states_of_the_exact_denoiser_have_the_marginal_moments() -> None:
    """With x0 known exactly at every step, x_{t_k} is (1 - t_k) x0 + t_k eps with the fresh noise of that step."""
    generator = torch.Generator().manual_seed(0)
    x0, first, *fresh = torch.randn(5, 20_000, 2, 2, generator=generator, dtype=torch.float64)
    x0 = 2 * x0 + 1
    times = rollout.time_grid(4, 3.0)
    for step in (1, 2, 3):
        state = rollout.student_state(lambda x, t: (x - x0) / flow.expand(t, x), first, times, step, fresh)
        t = times[step].double()
        torch.testing.assert_close(state, (1 - t) * x0 + t * fresh[step - 1])
        assert abs(state.mean() - (1 - t)) < 0.03
        assert abs(state.var() - (4 * (1 - t) ** 2 + t**2)) < 0.05


def test_renoise_times_fill_the_interval_and_favour_noise_under_shift() -> None:
    uniform = torch.linspace(0, 1, 101, dtype=torch.float64)
    t = rollout.renoise_time(uniform, shift=3.0, low=0.02, high=0.98)
    assert (t.min(), t.max()) == (pytest.approx(0.02), pytest.approx(0.98))
    torch.testing.assert_close(t[50], torch.tensor(0.02 + 0.96 * 0.75, dtype=torch.float64))


@pytest.mark.parametrize("renoise", [False, True], ids=["euler", "renoise"])
def test_every_clean_prediction_of_a_trajectory_is_the_sample_of_its_step(renoise: bool) -> None:
    network, times = Affine(), rollout.time_grid(4, 3.0)
    fresh = [noise(seed=10 + k) for k in range(4)] if renoise else None
    trajectory = rollout.student_trajectory(network, noise(), times, 4, fresh)
    for step in range(4):
        state = rollout.student_state(network, noise(), times, step, fresh)
        assert torch.equal(trajectory.states[step], state)
        assert torch.equal(trajectory.clean[step], rollout.student_sample(network, state, times, step).detach())
    assert not any(one.requires_grad for one in (*trajectory.states, *trajectory.clean))


def test_tied_times_tile_the_noise_levels_from_either_side() -> None:
    """`below` step k and `above` step k - 1 meet at t_k; the last step above and the first below cover all."""
    times = rollout.time_grid(4, 3.0).tolist()
    below, above = (
        [rollout.renoise_interval(tied, times, step, 0.02, 0.98) for step in range(4)]  # type: ignore[arg-type]
        for tied in ("below", "above")
    )
    assert below[0] == above[3] == rollout.renoise_interval("no", times, 2, 0.02, 0.98) == (0.02, 0.98)
    for step in range(1, 4):
        assert below[step] == (0.02, times[step]) and above[step - 1] == (times[step], 0.98)


@pytest.mark.parametrize("count", [1, 3, 4, 6, 9])
def test_spread_steps_come_all_before_any_comes_again(count: int) -> None:
    rounds = [[2, 0, 3, 1], [1, 3, 0, 2], [0, 1, 2, 3]]
    steps = rollout.spread_steps(4, count, rounds.__getitem__)
    assert len(steps) == count
    for start in range(0, count, 4):
        assert len(set(steps[start : start + 4])) == len(steps[start : start + 4])
