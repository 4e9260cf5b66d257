"""Terms that a recipe may add to distribution matching: what each is zero for, and what it adds up to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from distiller_fakes import CATEGORIES, denoiser, fit, make_recipe, step_data, student_loss
from torch import Tensor

from workbench.backbones.gaussian import GaussianDenoiser
from workbench.backbones.roles import FAKE_SCORE, STUDENT, TEACHER
from workbench.batch import Batch
from workbench.common.errors import UserError
from workbench.method import dmd, flow, guidance
from workbench.modules.distiller import Distiller
from workbench.modules.student_loss import Comparison
from workbench.recipe.config import Dmd, Recipe, Teachers
from workbench.recipe.reading import from_mapping

pytestmark = pytest.mark.filterwarnings("ignore")
GUIDED = Teachers(specialists={"text": "folder"}, cfg_scale=3.0)


def states(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 5, 2, generator=generator, dtype=torch.float64) for _ in range(count)]


def terms(
    recipe: Recipe, batch: Batch, step: int, network: GaussianDenoiser | None = None
) -> tuple[dict[str, Tensor], Comparison]:
    distiller = Distiller(network or denoiser(), recipe, CATEGORIES)
    weights, active = distiller.lambdas[batch.category, step], distiller.active[batch.task][step]
    numbers = distiller.draws.of(batch, STUDENT)
    return distiller.objective(batch, numbers, step=step, weights=weights, active=active)


def with_target(batch: Batch) -> Batch:
    shape = (len(batch.rows), batch.condition.layout.num_target_tokens, 2)
    return replace(batch, target=torch.randn(shape, generator=torch.Generator().manual_seed(5)))


def test_without_options_the_loss_is_distribution_matching_alone() -> None:
    found, _ = terms(make_recipe(), with_target(step_data(0, uncond=True).student[0]), 0)
    assert found.keys() == {STUDENT}


def test_a_rescaled_velocity_keeps_its_direction_and_moves_to_the_unguided_norm() -> None:
    v, v_cond = states(2)
    torch.testing.assert_close(guidance.rescale(v, v_cond, 0.0), v)
    full, half = guidance.rescale(v, v_cond, 1.0), guidance.rescale(v, v_cond, 0.5)
    torch.testing.assert_close(full.norm(dim=-1), v_cond.norm(dim=-1))
    torch.testing.assert_close(torch.cosine_similarity(full, v, dim=-1), torch.ones(3, 5, dtype=torch.float64))
    torch.testing.assert_close(half, (v + full) / 2)


def test_rescaled_teachers_predict_at_the_norm_of_the_prompt_alone() -> None:
    batch = step_data(0, uncond=True).student[0]
    assert batch.uncond is not None
    x_t, t, active = torch.randn(5, 16, 2, generator=torch.Generator().manual_seed(0)), torch.full((5,), 0.6), [True]
    recipe = make_recipe(teachers=replace(GUIDED, cfg_rescale=1.0))
    teachers = Distiller(denoiser(), recipe, CATEGORIES).teachers
    prefixes = teachers.prefixes(batch, active, torch.ones(5, 1))
    rescaled = teachers.predictions(prefixes, x_t, t)[0]
    alone = teachers.predictions(prefixes, x_t, t, guided=False)[0]
    torch.testing.assert_close((x_t - rescaled).norm(dim=-1), (x_t - alone).norm(dim=-1))
    assert not torch.allclose(rescaled, alone)


def test_at_one_noise_level_the_decoupled_terms_add_up_to_the_guided_direction() -> None:
    x, fake, cond, uncond = states(4)
    both = dmd.dmd_direction(x, fake, cond) + dmd.augmentation_direction(x, cond, uncond, 4.0)
    scale = (x - cond).abs().mean(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(both * scale, fake - guidance.cfg(cond, uncond, 4.0))
    assert not dmd.augmentation_direction(x, cond, uncond, 1.0).any()


def test_decoupled_the_matching_is_unguided_and_the_guidance_acts_below_the_students_noise() -> None:
    batch = step_data(0, uncond=True).student[0]
    plain, seen_plain = terms(make_recipe(dmd=Dmd(student_steps=2)), batch, 1)
    options, network = Dmd(student_steps=2, decoupled=True), denoiser()
    recipe = make_recipe(teachers=GUIDED, dmd=options)
    decoupled, seen = terms(recipe, batch, 1, network)
    assert torch.equal(seen.x0_real, seen_plain.x0_real) and not torch.allclose(decoupled[STUDENT], plain[STUDENT])
    assert network.evaluated.count(TEACHER) == 3
    loss = Distiller(denoiser(), recipe, CATEGORIES).objective
    assert loss.augmentation_intervals[0] == (0.02, 0.98)
    assert loss.augmentation_intervals[1] == (0.02, loss.student.grid[1])


def test_a_step_that_leaves_the_guidance_term_no_noise_level_is_named() -> None:
    options = Dmd(student_steps=8, renoise_min=0.4, decoupled=True)
    message = r"dmd\.decoupled=true leaves student step 7 .* within \[0\.4, 0\.98\]: lower dmd\.renoise_min"
    with pytest.raises(UserError, match=message):
        Distiller(denoiser(), make_recipe(teachers=GUIDED, dmd=options), CATEGORIES)
    Distiller(denoiser(), make_recipe(teachers=GUIDED, dmd=replace(options, decoupled=False)), CATEGORIES)


def test_the_first_step_loss_is_zero_where_eulers_step_ends_on_the_teachers_state() -> None:
    x, noise = states(2)
    t_next = torch.tensor(0.75, dtype=torch.float64)
    landed = noise + (t_next - 1) * flow.velocity(x, noise)
    torch.testing.assert_close(dmd.first_step_loss(x, noise, landed, t_next), torch.zeros(3, dtype=torch.float64))
    off = dmd.first_step_loss(x, noise, landed + 0.25, t_next)
    torch.testing.assert_close(off, torch.ones(3, dtype=torch.float64))


def test_a_student_that_is_its_teacher_has_no_first_step_loss() -> None:
    """Against one Euler step of the teacher; against many, what is left is that step's own error. No other step has
    the term."""
    batch = step_data(0).student[0]

    def first(num_teacher_steps: int, step: int = 0) -> Tensor | None:
        network = denoiser()
        with torch.no_grad():
            for group in (network.means, network.factors):
                group[STUDENT].copy_(group[TEACHER])
        options = Dmd(student_steps=2, first_step_weight=0.5, first_step_teacher_steps=num_teacher_steps)
        return terms(make_recipe(dmd=options), batch, step, network)[0].get("first_step")

    one, many, more = first(1), first(8), first(64)
    assert one is not None and many is not None and more is not None
    assert one.max() < 1e-9 < 1e-4 < more.min() and ((more / many - 1).abs() < 0.4).all()
    assert first(1, step=1) is None


def test_the_first_step_loss_instead_of_distribution_matching_is_all_of_the_first_step() -> None:
    batch = step_data(0).student[0]
    added = Dmd(student_steps=2, first_step_weight=0.5)
    alone = replace(added, first_step="instead")
    found, seen = terms(make_recipe(dmd=alone), batch, 0)
    assert found.keys() == {"first_step"} and seen is None
    both, _ = terms(make_recipe(dmd=added), batch, 0)
    assert both.keys() == {STUDENT, "first_step"} and torch.equal(found["first_step"], both["first_step"])
    later, seen = terms(make_recipe(dmd=alone), batch, 1)
    assert later.keys() == {STUDENT} and seen is not None
    distiller, _ = fit(make_recipe(8, dmd=alone), [step_data(step) for step in range(8)])
    assert distiller.num_skipped == 0 and "loss/first_step/t2i" in distiller.means.pop()


def test_the_data_term_is_flow_matching_at_the_students_own_time() -> None:
    batch = with_target(step_data(0).student[0])
    assert batch.target is not None
    network, options = denoiser(), Dmd(student_steps=2, data_weight=0.25)
    found, _ = terms(make_recipe(dmd=options), batch, 1, network)
    distiller = Distiller(network, make_recipe(dmd=options), CATEGORIES)
    eps, t = distiller.draws.of(batch, STUDENT).normal("data/eps", 2), distiller.student.times[1].expand(5)
    x_t = flow.interpolate(batch.target, eps, t)
    v = network.velocity(network.prefix(batch.condition, STUDENT), x_t, t, STUDENT)
    torch.testing.assert_close(found["data"], 0.25 * dmd.flow_matching_loss(v, eps - batch.target))
    with pytest.raises(UserError, match="dmd.data_weight needs a target of every sample, but not all of t2i-0, t2i-1"):
        terms(make_recipe(dmd=options), step_data(0).student[0], 1)


def test_all_terms_train_the_student_and_nobody_else() -> None:
    options = Dmd(student_steps=2, decoupled=True, first_step_weight=0.1, data_weight=0.1)
    recipe = make_recipe(6, teachers=GUIDED, dmd=options)
    data = [step_data(step, uncond=True) for step in range(6)]
    data = [replace(item, student=tuple(with_target(batch) for batch in item.student)) for item in data]
    distiller, _ = fit(recipe, data)
    means = distiller.means.pop()
    assert {f"loss/{name}/{task}" for name in ("data", "first_step") for task in ("t2i", "edit")} < means.keys()
    loss = student_loss(distiller, data[0].student[0], step=0)
    loss.sum().backward()
    graded = {name for name, parameter in distiller.denoiser.named_parameters() if parameter.grad is not None}
    assert {name for name in graded if FAKE_SCORE not in name} == {f"means.{STUDENT}", f"factors.{STUDENT}"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dmd": {"decoupled": True}}, "needs teachers.cfg_scale above 1"),
        ({"teachers": {"cfg_rescale": 0.7}}, "teachers.cfg_rescale does nothing without guidance"),
        ({"teachers": {"cfg_rescale": 1.7, "cfg_scale": 2}}, r"teachers.cfg_rescale must lie in \[0, 1\]"),
        ({"dmd": {"first_step": "instead"}}, "set it above 0"),
        ({"dmd": {"data_weight": -1}}, "dmd.data_weight must not be negative"),
    ],
)
def test_options_that_contradict_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_mapping(values)
