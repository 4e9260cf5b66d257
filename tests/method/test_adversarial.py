"""The adversarial losses against calculus, on two Gaussians whose best classifier is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from workbench.method import adversarial

GRID = torch.linspace(-14, 14, 20001, dtype=torch.float64)
DATA, STUDENT = Normal(torch.tensor(0.0).double(), 1.0), Normal(torch.tensor(1.5).double(), 1.3)


def mean(values: Tensor, of: Normal) -> Tensor:
    """Expectation by quadrature over the grid."""
    return torch.trapezoid(of.log_prob(GRID).exp() * values, GRID)


def classifier_loss(logits: Tensor) -> Tensor:
    nothing = torch.full_like(logits, -torch.inf)
    of_data = adversarial.classifier_loss(logits, nothing)
    of_samples = adversarial.classifier_loss(-nothing, logits)
    return mean(of_data, DATA) + mean(of_samples, STUDENT)


def best_logits() -> Tensor:
    return DATA.log_prob(GRID) - STUDENT.log_prob(GRID)


def test_the_best_classifier_is_the_log_ratio_of_the_densities() -> None:
    """There the loss is stationary and smallest, at log 4 less twice the Jensen-Shannon divergence."""
    best = best_logits().requires_grad_()
    loss = classifier_loss(best)
    (slope,) = torch.autograd.grad(loss, best)
    (elsewhere,) = torch.autograd.grad(classifier_loss(best + 0.1), best)
    assert slope.abs().max() < 1e-12 < 1e-5 < elsewhere.abs().max()
    for bump in (0.3 * torch.sin(GRID), 0.1 * GRID, torch.full_like(GRID, -0.2)):
        assert classifier_loss(best + bump) > loss + 1e-4
    mixture = torch.log((DATA.log_prob(GRID).exp() + STUDENT.log_prob(GRID).exp()) / 2)
    divergence = sum(mean(of.log_prob(GRID) - mixture, of) for of in (DATA, STUDENT)) / 2
    assert float(loss.detach()) == pytest.approx(math.log(4) - 2 * float(divergence), abs=1e-9)


def test_one_that_cannot_tell_is_at_log_four() -> None:
    zeros = torch.zeros(3)
    torch.testing.assert_close(adversarial.classifier_loss(zeros, zeros), torch.full((3,), math.log(4)))


def test_quadratic_logits_trained_on_samples_find_the_ratio() -> None:
    """The log ratio of two Gaussians is a quadratic, which stochastic descent on the loss recovers."""
    generator = torch.Generator().manual_seed(0)
    of_data, of_samples = (
        of.mean + of.stddev * torch.randn(40000, generator=generator, dtype=torch.float64) for of in (DATA, STUDENT)
    )

    def powers(x: Tensor) -> Tensor:
        return torch.stack([torch.ones_like(x), x, x.square()], dim=1)

    weights = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = adversarial.classifier_loss(powers(of_data) @ weights, powers(of_samples) @ weights).mean()
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    m, s = float(STUDENT.mean), float(STUDENT.stddev)
    expected = [math.log(s) + m**2 / (2 * s**2), -m / s**2, 1 / (2 * s**2) - 1 / 2]
    torch.testing.assert_close(weights.detach(), torch.tensor(expected, dtype=torch.float64), atol=0.05, rtol=0)


def test_the_students_gradient_points_to_the_data_and_does_not_fade_where_it_is_found_out() -> None:
    """d/dx -log sigmoid(l) = -(1 - sigmoid(l)) l'; the saturating log(1 - D) would have sigmoid(l) in its place."""
    x = GRID.clone().requires_grad_()
    ratio = DATA.log_prob(x) - STUDENT.log_prob(x)
    (slope,) = torch.autograd.grad(ratio.sum(), x, retain_graph=True)
    (gradient,) = torch.autograd.grad(adversarial.student_loss(ratio).sum(), x)
    torch.testing.assert_close(gradient, -torch.sigmoid(-ratio.detach()) * slope)
    found_out = (GRID > 5) & (ratio.detach() < -3)
    assert (gradient[found_out] > 0.9 * slope[found_out].abs()).all(), "descent moves these samples down, to the data"


def test_a_loss_carries_the_gradient_that_was_computed_for_it() -> None:
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(3, 4, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    losses = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    weights = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    carried = adversarial.with_gradient(losses, weights * x, gradient)
    assert torch.equal(carried, losses)
    (found,) = torch.autograd.grad(carried.sum(), weights)
    torch.testing.assert_close(found, (x * gradient).sum())
