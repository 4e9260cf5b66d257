"""Distribution matching against calculus: with Gaussians, score, KL gradient and optimum are closed forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from workbench.method import dmd, flow, gaussian, rollout

TEACHER_MEAN = torch.tensor([0.8, -0.5], dtype=torch.float64)
TEACHER_FACTOR = torch.tensor([[1.0, 0.0], [0.6, 0.5]], dtype=torch.float64)
TEACHER_COVARIANCE = TEACHER_FACTOR @ TEACHER_FACTOR.T
START_MEAN = torch.tensor([-1.0, 1.0], dtype=torch.float64)
START_FACTOR = torch.tensor([[0.4, 0.1], [-0.2, 0.9]], dtype=torch.float64)


def states(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 5, 2, generator=generator, dtype=torch.float64) for _ in range(count)]


def gaussian_x0(x_t: Tensor, t: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    return flow.velocity_to_x0(x_t, gaussian.velocity(x_t, t, mean, covariance), t)


def marginal(t: float, mean: Tensor, covariance: Tensor) -> MultivariateNormal:
    return MultivariateNormal((1 - t) * mean, (1 - t) ** 2 * covariance + t**2 * torch.eye(2, dtype=torch.float64))


def test_autograd_of_the_loss_is_the_direction() -> None:
    x, fake, real = states(3)
    x.requires_grad_()
    g = dmd.dmd_direction(x.detach(), fake, real)
    losses = dmd.dmd_loss(x, g)
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    torch.testing.assert_close(gradient, g / x[0].numel())
    torch.testing.assert_close(losses, 0.5 * g.square().mean(dim=(1, 2)))


def test_no_gradient_passes_through_the_direction() -> None:
    x, fake, real = (state.requires_grad_() for state in states(3))
    dmd.dmd_loss(x, dmd.dmd_direction(x, fake, real)).sum().backward()
    assert fake.grad is None and real.grad is None


def test_the_direction_vanishes_exactly_where_fake_and_real_agree() -> None:
    x, fake, real = states(3)
    fake = torch.where(torch.rand(fake.shape, generator=torch.Generator().manual_seed(0)) < 0.5, real, fake)
    g = dmd.dmd_direction(x, fake, real)
    assert torch.equal(g == 0, fake == real)
    assert torch.isfinite(dmd.dmd_direction(real, real, real)).all()


def test_the_direction_has_no_scale_and_each_sample_its_own() -> None:
    x, fake, real = states(3)
    g = dmd.dmd_direction(x, fake, real)
    factors = torch.tensor([0.01, 1.0, 300.0], dtype=torch.float64)[:, None, None]
    torch.testing.assert_close(dmd.dmd_direction(factors * x, factors * fake, factors * real), g)
    torch.testing.assert_close(dmd.dmd_direction(x[1:2], fake[1:2], real[1:2]), g[1:2])


@pytest.mark.parametrize("t", [0.1, 0.5, 0.95])
def test_the_direction_is_the_gradient_of_the_log_density_ratio_up_to_a_positive_factor(t: float) -> None:
    x, eps = states(2)
    time = torch.full((3,), t, dtype=torch.float64)
    x_t = flow.interpolate(x, eps, time).requires_grad_()
    ratio = marginal(t, START_MEAN, START_FACTOR @ START_FACTOR.T).log_prob(x_t)
    ratio = ratio - marginal(t, TEACHER_MEAN, TEACHER_COVARIANCE).log_prob(x_t)
    (calculus,) = torch.autograd.grad(ratio.sum(), x_t)
    fake = gaussian_x0(x_t.detach(), time, START_MEAN, START_FACTOR @ START_FACTOR.T)
    real = gaussian_x0(x_t.detach(), time, TEACHER_MEAN, TEACHER_COVARIANCE)
    factors = calculus / dmd.dmd_direction(x, fake, real)
    assert (factors > 0).all()
    torch.testing.assert_close(factors, factors[:, :1, :1].expand_as(factors))


def test_the_expected_score_difference_is_the_gradient_of_the_kl_divergence() -> None:
    """d KL(p_t student || p_t teacher) / d theta = E[(1 - t) (s_fake - s_real) dx / d theta] (DMD eq. 2)."""
    t = 0.4
    factor, mean = START_FACTOR.clone().requires_grad_(), START_MEAN.clone().requires_grad_()
    divergence = kl_divergence(marginal(t, mean, factor @ factor.T), marginal(t, TEACHER_MEAN, TEACHER_COVARIANCE))
    exact = torch.autograd.grad(divergence, (factor, mean))

    generator = torch.Generator().manual_seed(0)
    noise, eps = torch.randn(2, 400_000, 1, 2, generator=generator, dtype=torch.float64)
    x = noise @ factor.T + mean
    time = torch.full((len(x),), t, dtype=torch.float64)
    x_t = flow.interpolate(x.detach(), eps, time)
    fake = gaussian_x0(x_t, time, START_MEAN, START_FACTOR @ START_FACTOR.T)
    real = gaussian_x0(x_t, time, TEACHER_MEAN, TEACHER_COVARIANCE)
    difference = flow.x0_to_score(x_t, fake, time) - flow.x0_to_score(x_t, real, time)
    sampled = torch.autograd.grad(((1 - t) * difference * x).sum() / len(x), (factor, mean))
    for left, right in zip(sampled, exact, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0.02 * float(right.abs().max()))


class AffineStudent(nn.Module):
    """x = A eps + b: a one-step generator that can become any Gaussian."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(START_FACTOR.clone())
        self.mean = nn.Parameter(START_MEAN.clone())

    def forward(self, noise: Tensor) -> Tensor:
        return noise @ self.factor.T + self.mean

    def covariance(self) -> Tensor:
        return self.factor @ self.factor.T


def distil(
    student: AffineStudent, fake_x0: Callable[[Tensor, Tensor], Tensor], before: Callable[[int, Tensor], None]
) -> None:
    """600 student updates on `dmd_loss`; `before` sees the step and this step's samples first."""
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.03, betas=(0.0, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600, eta_min=1e-4)
    for step in range(600):
        noise, eps = torch.randn(2, 64, 8, 2, generator=generator, dtype=torch.float64)
        x = student(noise)
        before(step, x.detach())
        uniform = torch.rand(64, generator=generator, dtype=torch.float64)
        t = rollout.renoise_time(uniform, shift=1.0, low=0.02, high=0.98)
        with torch.no_grad():
            x_t = flow.interpolate(x, eps, t)
            real = gaussian_x0(x_t, t, TEACHER_MEAN, TEACHER_COVARIANCE)
            direction = dmd.dmd_direction(x, fake_x0(x_t, t), real)
        optimizer.zero_grad()
        dmd.dmd_loss(x, direction).mean().backward()
        optimizer.step()
        schedule.step()


def test_with_the_exact_fake_score_the_student_becomes_the_teacher() -> None:
    student = AffineStudent()
    distil(student, lambda x_t, t: gaussian_x0(x_t, t, student.mean, student.covariance()), lambda step, x: None)
    torch.testing.assert_close(student.mean.detach(), TEACHER_MEAN, rtol=0, atol=1e-8)
    torch.testing.assert_close(student.covariance().detach(), TEACHER_COVARIANCE, rtol=0, atol=1e-8)


def test_with_a_fake_score_trained_alongside_the_student_becomes_the_teacher() -> None:
    """The fake score starts elsewhere and learns the student's moving Gaussian by flow matching, 2 updates a step."""
    student, generator = AffineStudent(), torch.Generator().manual_seed(2)
    mean = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    factor = nn.Parameter(torch.eye(2, dtype=torch.float64))
    optimizer = torch.optim.Adam([mean, factor], lr=0.05, betas=(0.0, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600, eta_min=1e-3)

    def follow(step: int, x: Tensor) -> None:
        for _ in range(2):
            eps = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            t = torch.rand(len(x), generator=generator, dtype=torch.float64).clamp(0.02, 0.98)
            predicted = gaussian.velocity(flow.interpolate(x, eps, t), t, mean, factor @ factor.T)
            optimizer.zero_grad()
            dmd.flow_matching_loss(predicted, flow.velocity(x, eps)).mean().backward()
            optimizer.step()
        schedule.step()

    distil(student, lambda x_t, t: gaussian_x0(x_t, t, mean, factor @ factor.T), follow)
    torch.testing.assert_close(student.mean.detach(), TEACHER_MEAN, rtol=0, atol=0.05)
    torch.testing.assert_close(student.covariance().detach(), TEACHER_COVARIANCE, rtol=0, atol=0.05)


def test_the_optimum_of_flow_matching_is_the_conditional_expectation() -> None:
    """The closed-form velocity of the data's own Gaussian has zero gradient, up to sampling."""
    generator = torch.Generator().manual_seed(3)
    noise, eps = torch.randn(2, 200_000, 1, 2, generator=generator, dtype=torch.float64)
    x0 = noise @ TEACHER_FACTOR.T + TEACHER_MEAN
    t = torch.rand(len(x0), generator=generator, dtype=torch.float64).clamp(0.02, 0.98)
    mean, factor = TEACHER_MEAN.clone().requires_grad_(), TEACHER_FACTOR.clone().requires_grad_()
    predicted = gaussian.velocity(flow.interpolate(x0, eps, t), t, mean, factor @ factor.T)
    loss = dmd.flow_matching_loss(predicted, flow.velocity(x0, eps)).mean()
    for gradient in torch.autograd.grad(loss, (mean, factor)):
        assert gradient.abs().max() < 0.02
