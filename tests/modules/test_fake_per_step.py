"""A fake score that knows the student's step, against calculus: with it a student whose steps follow different teachers
ends on each of them; with one of the mixture over steps it does not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from distiller_fakes import batch_of, fit, make_recipe, step_data
from torch import Tensor

from workbench.backbones.base import RoleDenoiser
from workbench.backbones.gaussian import GaussianDenoiser
from workbench.backbones.roles import FAKE_SCORE
from workbench.common.errors import UserError
from workbench.method import rollout
from workbench.modules.fake_score import FakeScoreModule
from workbench.recipe.config import Dmd
from workbench.recipe.reading import from_mapping

pytestmark = pytest.mark.filterwarnings("ignore")

TARGETS = (0.0, 0.0, 1.0, 1.0)
"""Mean of each step's teacher, in deviations of the data: the base for two steps, then a specialist."""


def nodes(count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes and weights of a standard normal variable."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.from_numpy(points), torch.from_numpy(weights / math.sqrt(2 * math.pi))


def posterior_mean(x_t: Tensor, t: Tensor, means: Tensor) -> Tensor:
    """E[x0 | x_t] where x0 is N(mean, 1) with a mean drawn from `means` (.., components): each component's own, by its
    share of the evidence."""
    variance = ((1 - t) ** 2 + t**2)[..., None]
    off = x_t[..., None] - (1 - t[..., None]) * means
    share = torch.softmax(-off.square() / (2 * variance), dim=-1)
    return (share * (means + (1 - t[..., None]) / variance * off)).sum(dim=-1)


def fixed_point(per_step: bool) -> Tensor:
    """Means of a student that draws N(mean_k, 1) at step k, where the expected x0_fake - x0_real of every step, the
    DMD gradient up to its positive normaliser, vanishes; by quadrature over x, eps and t."""
    means, targets = torch.zeros(4, dtype=torch.float64), torch.tensor(TARGETS, dtype=torch.float64)
    (z, of_z), (eps, of_eps) = nodes(24), nodes(24)
    times = rollout.renoise_time((torch.arange(16, dtype=torch.float64) + 0.5) / 16, shift=3.0, low=0.02, high=0.98)
    shape = (4, 24, 24, 16)
    t = times.expand(shape)
    for _ in range(2000):
        x = (means[:, None] + z)[:, :, None, None].expand(shape)
        x_t = (1 - t) * x + t * eps[:, None]
        # Components of the fake score: the step alone, or all steps alike.
        known = means[:, None] if per_step else means.expand(4, 4)
        x0_fake = posterior_mean(x_t, t, known[:, None, None, None, :])
        x0_real = posterior_mean(x_t, t, targets[:, None, None, None, None])
        gradient = torch.einsum("kzet,z,e->k", x0_fake - x0_real, of_z, of_eps) / 16
        means = means - gradient
        if gradient.abs().max() < 1e-7:
            return means
    raise AssertionError(f"no fixed point: {gradient.tolist()}")


def test_step_wise_guidance_needs_a_fake_score_that_knows_the_step() -> None:
    targets = torch.tensor(TARGETS, dtype=torch.float64)
    known, mixture = fixed_point(per_step=True), fixed_point(per_step=False)
    assert (known - targets).abs().max() < 1e-3
    # Both kinds of step are pushed past their teachers, away from each other, by more than their teachers are apart.
    print(f"targets {TARGETS}, with the step {known.tolist()}, over the mixture {mixture.tolist()}")
    assert mixture[:2].max() < -0.5 and mixture[2:].min() > 1.5
    assert mixture.mean() == pytest.approx(0.5, abs=1e-3), "what the mixture pins down is its own mean"


@pytest.mark.parametrize("per_step", [True, False])
def test_the_embedding_learns_what_sets_the_steps_apart(per_step: bool) -> None:
    """Samples of step k are N(mean_k, I): one that knows k learns both means, another what lies between."""
    means = torch.tensor([[-1.0, 0.0], [1.0, 2.0]])
    network = GaussianDenoiser({FAKE_SCORE: (torch.zeros(2), torch.eye(2))}, trainable=(FAKE_SCORE,))
    fake_score = FakeScoreModule(RoleDenoiser(network, FAKE_SCORE), num_steps=2 if per_step else 0)
    condition = replace(batch_of("t2i", range(5), 5).condition, prompt=torch.zeros(5, 3, 2))
    optimizer = torch.optim.Adam([*network.parameters(), *fake_score.parameters()], lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for update in range(400):
        step = update % 2
        x0, eps = means[step] + torch.randn(5, 16, 2, generator=generator), torch.randn(5, 16, 2, generator=generator)
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - update / 400)
        optimizer.zero_grad()
        fake_score.loss(condition, x0, eps, torch.rand(5, generator=generator), step).mean().backward()
        optimizer.step()
    noise, t = torch.zeros(5, 16, 2), torch.ones(5)
    learnt = torch.stack([fake_score.x0(condition, noise, t, step)[0, 0] for step in (0, 1)])
    expected = means if per_step else means.mean(dim=0).expand(2, 2)
    torch.testing.assert_close(learnt, expected, atol=0.15, rtol=0)


@pytest.mark.parametrize("fake_samples", ["fresh", "rollout", "student_rollout"])
def test_it_starts_as_one_that_does_not_know_and_is_trained_and_kept(
    fake_samples: Literal["fresh", "rollout", "student_rollout"],
) -> None:
    options = Dmd(student_steps=2, fake_samples=fake_samples)
    means, num_groups = [], {"fresh": 2, "rollout": 1, "student_rollout": 0}[fake_samples]
    for per_step in (False, True):
        recipe = make_recipe(1, dmd=replace(options, fake_per_step=per_step))
        distiller, _ = fit(recipe, [step_data(0, fake_updates=num_groups)])
        means.append(distiller.means.pop())
    assert means[0]["loss/student/t2i"] == pytest.approx(means[1]["loss/student/t2i"], rel=0.05)
    name = "fake_score.step_embedding"
    assert name in distiller.trained_parameters()
    assert any(parameter is distiller.fake_score.step_embedding for parameter in distiller.parameters_of(FAKE_SCORE))
    assert distiller.fake_score.step_embedding is not None and distiller.fake_score.step_embedding.abs().max() > 0
    assert name not in {*distiller.averaged_parameters()}


def test_it_is_refused_where_its_embedding_would_not_be_reduced() -> None:
    with pytest.raises(UserError, match="leave out trainer.strategy=fsdp"):
        from_mapping({"dmd": {"fake_per_step": True}, "trainer": {"strategy": "fsdp"}})
