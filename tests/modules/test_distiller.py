"""The distiller on the closed-form denoiser, through a real trainer: what moves, what is guarded, what is neutral."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from distiller_fakes import (
    BATCH_SIZE,
    CATEGORIES,
    LAYOUT,
    SPECIALIST,
    batch_of,
    denoiser,
    fit,
    make_recipe,
    regroup,
    step_data,
    student_loss,
    take,
)
from torch import Tensor

from workbench.backbones.base import RoleDenoiser
from workbench.backbones.roles import FAKE_SCORE, STUDENT, TEACHER
from workbench.batch import Batch, Condition, StepData
from workbench.common.errors import UserError
from workbench.modules.distiller import Distiller
from workbench.modules.teachers import mixed
from workbench.recipe.config import Dmd, Mixture, Optim, Teachers

pytestmark = pytest.mark.filterwarnings("ignore")


def student_weights(distiller: Distiller) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in distiller.parameters_of(STUDENT)]


def assert_same(left: list[list[Tensor]], right: list[list[Tensor]], **tolerance: float) -> None:
    assert left and len(left) == len(right)
    for ours, theirs in zip(left, right, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize(
    ("rollout", "fake_samples"),
    [("euler", "fresh"), ("renoise", "fresh"), ("euler", "rollout"), ("renoise", "student_rollout")],
)
def test_the_student_moves_to_the_teacher(
    rollout: Literal["euler", "renoise"], fake_samples: Literal["fresh", "rollout", "student_rollout"]
) -> None:
    updates = 200
    recipe = make_recipe(
        updates,
        optim=Optim(student_lr=0.03, fake_lr=0.05, warmup_updates=5, final_lr_fraction=0.02),
        dmd=Dmd(student_steps=2, rollout=rollout, fake_samples=fake_samples),
    )
    network = denoiser()
    start = network.means[STUDENT].detach().clone()
    distiller, _ = fit(recipe, [step_data(step, fake_updates=1) for step in range(updates)], network)
    target = network.means[TEACHER]
    assert distiller.num_updates == updates and distiller.num_skipped == 0
    assert (network.means[STUDENT] - target).norm() < 0.05 * (start - target).norm()
    assert (network.means[FAKE_SCORE] - network.means[STUDENT]).norm() < 0.05 * (start - target).norm()
    means = distiller.means.pop()
    assert {name for name in means if name.startswith("loss/")} == {
        f"loss/{role}/{task}" for role in (STUDENT, FAKE_SCORE) for task in ("t2i", "edit")
    }
    assert all(math.isfinite(value) for value in means.values())

    condition = step_data(0).student[0].condition
    generator = torch.Generator().manual_seed(0)
    noise, fresh = (torch.randn(5, LAYOUT.num_target_tokens, 2, generator=generator) for _ in range(2))
    drawn = distiller.student.sample(condition, noise, lambda step: fresh)
    torch.testing.assert_close(drawn.mean(dim=(0, 1)), target + condition.prompt[:, 0].mean(0), rtol=0, atol=0.2)


REUSING = ("rollout", "student_rollout")


def fake_steps(fake_samples: str, num_fake: int, num_updates: int) -> Tensor:
    """Student step behind each fake-score update: (num_updates, num_fake)."""
    options = Dmd(student_steps=3, fake_updates=num_fake, fake_samples=fake_samples)  # type: ignore[arg-type]
    distiller = Distiller(denoiser(), make_recipe(dmd=options), CATEGORIES)
    steps = []
    for update in range(num_updates):
        distiller.num_updates = update
        steps.append(distiller.fake_steps(num_fake))
    return torch.tensor(steps)


@pytest.mark.parametrize("fake_samples", ["fresh", *REUSING])
def test_the_fake_score_sees_every_step_alike(fake_samples: str) -> None:
    """Each update's step is uniform; reuse never repeats one within a student update, fresh draws do so at
    the rate of chance."""
    num_updates = 600
    steps = fake_steps(fake_samples, 2, num_updates)
    expected, spread = num_updates / 3, 4 * math.sqrt(num_updates * (1 / 3) * (2 / 3))
    for column in steps.T:
        assert ((torch.bincount(column, minlength=3) - expected).abs() < spread).all()
    repeats = int((steps[:, 0] == steps[:, 1]).sum())
    assert abs(repeats - expected) < spread if fake_samples == "fresh" else repeats == 0
    rounds = fake_steps(fake_samples, 3, 50).sort(dim=1).values
    assert (rounds == torch.arange(3)).all() == (fake_samples != "fresh")


@pytest.mark.parametrize("rollout", ["euler", "renoise"])
@pytest.mark.parametrize("fake_samples", REUSING)
def test_a_reused_sample_is_the_students_own_at_its_step(fake_samples: str, rollout: str) -> None:
    """So, with steps alike, what the fake score sees has the distribution that fresh samples have."""
    options = Dmd(student_steps=4, fake_updates=4, fake_samples=fake_samples, rollout=rollout)  # type: ignore[arg-type]
    distiller = Distiller(denoiser(), make_recipe(dmd=options), CATEGORIES)
    data = step_data(0, fake_updates=1)
    updates, states = distiller.fake_score_steps(data, 2)
    steps = distiller.fake_steps(4)
    assert len(updates) == 4 and len(states) == (2 if fake_samples == "student_rollout" else 0)
    stream = "fake0" if fake_samples == "rollout" else STUDENT
    with torch.no_grad():
        for update, step in zip(updates, steps, strict=True):
            for batch, x0 in zip(update.batches, update.from_rollout, strict=True):
                assert x0 is not None
                assert torch.equal(x0, distiller.student.draw(batch, distiller.draws.of(batch, stream), step))
        for batch, state in zip(data.student, states, strict=False):
            plain = student_loss(distiller, batch, step=2)
            assert torch.equal(student_loss(distiller, batch, step=2, state=state), plain)


def test_reuse_pays_for_one_rollout() -> None:
    """Student evaluations of two batches, R = 4: a rollout of 4, the graded one, and for `rollout` the steps before it;
    fresh samples take the mean of 2.5 each."""
    counts = {}
    for fake_samples in ("fresh", *REUSING):
        options = Dmd(student_steps=4, fake_updates=4, fake_samples=fake_samples)  # type: ignore[arg-type]
        network = denoiser()
        data = [step_data(step, fake_updates=options.fake_groups) for step in range(6)]
        fit(make_recipe(6, dmd=options), data, network)
        counts[fake_samples] = network.evaluated.count(STUDENT)
    assert counts["student_rollout"] == 6 * 2 * (4 + 1)
    assert counts["student_rollout"] <= counts["rollout"] <= 6 * 2 * (4 + 4) < counts["fresh"]


def test_tied_times_that_leave_a_step_nothing_are_named() -> None:
    with pytest.raises(UserError, match=r"renoise_tied=above leaves student step 0 \(t = 1 to 0\.9\) no re-noising"):
        Distiller(denoiser(), make_recipe(dmd=Dmd(renoise_tied="above", renoise_max=0.85)), CATEGORIES)
    Distiller(denoiser(), make_recipe(dmd=Dmd(renoise_tied="below", renoise_max=0.9)), CATEGORIES)


def test_the_same_seed_repeats_bit_for_bit_and_another_does_not() -> None:
    data = [step_data(step) for step in range(5)]
    first, again, other = (student_weights(fit(make_recipe(5, seed=seed), data)[0]) for seed in (0, 0, 1))
    assert all(torch.equal(left, right) for left, right in zip(first, again, strict=True))
    assert not all(torch.equal(left, right) for left, right in zip(first, other, strict=True))


@pytest.mark.parametrize(
    "split",
    [
        lambda batch: [take(batch, range(0, 2)), take(batch, range(2, len(batch.rows)))],
        lambda batch: [take(batch, [row]) for row in range(len(batch.rows))],
        lambda batch: [take(batch, list(range(len(batch.rows)))[::-1])],
    ],
    ids=["two", "one row each", "reversed"],
)
def test_micro_batching_changes_nothing(split: Any) -> None:
    data = [step_data(step) for step in range(3)]
    _, complete = fit(make_recipe(3), data)
    _, parts = fit(make_recipe(3), [regroup(item, split) for item in data])
    assert_same(parts.of_student, complete.of_student, rtol=1e-3, atol=1e-5)
    assert_same(parts.of_fake_score, complete.of_fake_score, rtol=1e-3, atol=1e-5)


def test_rows_of_weight_zero_change_nothing() -> None:
    """As the mixture pads: the last row again, at weight 0."""

    def pad(batch: Batch) -> list[Batch]:
        count = len(batch.rows)
        return [take(batch, [*range(count), count - 1, count - 1], [1.0] * count + [0.0] * 2)]

    data = [step_data(step) for step in range(3)]
    plain, expected = fit(make_recipe(3), data)
    padded, gradients = fit(make_recipe(3), [regroup(item, pad) for item in data])
    assert_same(gradients.of_student, expected.of_student, rtol=1e-3, atol=1e-5)
    assert_same(gradients.of_fake_score, expected.of_fake_score, rtol=1e-3, atol=1e-5)
    assert padded.means.pop() == pytest.approx(plain.means.pop(), rel=1e-3)


def test_the_gradient_is_that_of_the_mean_loss_over_the_global_batch() -> None:
    """One student gradient by hand, from the losses per sample that the distiller hands out."""
    data = step_data(0)
    _, gradients = fit(make_recipe(), [replace(data, fake=())])
    distiller = Distiller(denoiser(), make_recipe(), CATEGORIES)
    candidates = []
    for step in range(2):
        losses = torch.cat([student_loss(distiller, batch, step=step) for batch in data.student])
        assert len(losses) == BATCH_SIZE
        candidates.append(torch.autograd.grad(losses.mean(), distiller.parameters_of(STUDENT), retain_graph=True))
    found = gradients.of_student[0]
    assert any(
        all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, by_hand, strict=True)) for by_hand in candidates
    )


def poisoned(data: StepData, *, student: bool) -> StepData:
    """One sample of the student's groups, or of the first fake-score group, has a prompt that is not a number."""
    groups = data.student if student else data.fake[0]
    prompt = groups[0].condition.prompt.clone()
    prompt[1] = math.nan
    bad = (replace(groups[0], condition=replace(groups[0].condition, prompt=prompt)), *groups[1:])
    return replace(data, student=bad) if student else replace(data, fake=(bad, *data.fake[1:]))


@pytest.mark.parametrize("role", [STUDENT, FAKE_SCORE])
def test_a_step_that_is_not_finite_is_not_taken(role: str, capsys: pytest.CaptureFixture[str]) -> None:
    good = replace(step_data(0), fake=step_data(0).fake[:1])
    before, _ = fit(make_recipe(), [good])
    bad = poisoned(replace(step_data(1), fake=step_data(1).fake[:1]), student=role == STUDENT)
    after, gradients = fit(make_recipe(), [good, bad])
    assert after.num_updates == 2 and after.num_skipped == 1
    for left, right in zip(before.parameters_of(role), after.parameters_of(role), strict=True):
        assert torch.equal(left, right)
    other = STUDENT if role == FAKE_SCORE else FAKE_SCORE
    assert not torch.equal(before.parameters_of(other)[0], after.parameters_of(other)[0])
    assert (len(gradients.of_student), len(gradients.of_fake_score)) == ((1, 2) if role == STUDENT else (2, 1))
    printed = capsys.readouterr().out
    assert f"of the {role} at update 1" in printed and "t2i-1" in printed and "step not taken" in printed


def test_too_many_such_steps_end_the_run_with_one_clear_line() -> None:
    data = [poisoned(step_data(step), student=True) for step in range(3)]
    with pytest.raises(UserError, match=r"samples t2i-0, t2i-1.*2 such steps are too many: .* in a new trainer.folder"):
        fit(make_recipe(3), data)


def test_the_student_takes_one_step_an_update_and_the_fake_score_its_own_count() -> None:
    distiller, gradients = fit(make_recipe(4), [step_data(step, fake_updates=3) for step in range(4)])
    assert distiller.num_updates == 4
    assert (len(gradients.of_student), len(gradients.of_fake_score)) == (4, 12)


def test_rates_follow_the_schedule_over_student_updates() -> None:
    optim = Optim(student_lr=0.01, fake_lr=0.02, warmup_updates=4)
    distiller, _ = fit(make_recipe(8, optim=optim), [step_data(step) for step in range(2)])
    assert [group.param_groups[0]["lr"] for group in distiller.trainer.optimizers] == pytest.approx([0.005, 0.01])


def test_a_teacher_without_weight_in_the_step_is_not_run() -> None:
    network = denoiser()
    recipe = make_recipe(12, {"default": [[1.0, 0.0], [0.0, 1.0]]})
    fit(recipe, [step_data(step) for step in range(12)], network)
    assert network.evaluated.count(TEACHER) + network.evaluated.count(SPECIALIST) == 12 * 2
    distiller = Distiller(network, recipe, CATEGORIES)
    for step, expected in ((0, TEACHER), (1, SPECIALIST)):
        network.evaluated.clear()
        student_loss(distiller, step_data(0).student[0], step=step)
        assert set(network.evaluated) - {STUDENT, FAKE_SCORE} == {expected}


def test_a_teacher_with_weight_in_any_category_of_the_task_is_run() -> None:
    """Decided from the table, not from the rows at hand, so that all ranks run the same forwards."""
    network = denoiser()
    tables = {"t2i/text": [[0.0, 1.0]] * 2, "default": [[1.0, 0.0]] * 2}
    distiller = Distiller(network, make_recipe(tables=tables), CATEGORIES)
    for task, expected in (("t2i", {TEACHER, SPECIALIST}), ("edit", {TEACHER})):
        network.evaluated.clear()
        student_loss(distiller, batch_of(task, [0], 5), step=0)  # type: ignore[arg-type]
        assert set(network.evaluated) - {STUDENT, FAKE_SCORE} == expected


def test_alone_a_teacher_without_weight_in_the_rows_at_hand_is_left_out_of_the_same_loss() -> None:
    tables = {"t2i/text": [[0.5, 0.5]] * 2, "default": [[1.0, 0.0]] * 2}
    for rows, expected in (([0, 2], {TEACHER}), ([0, 1], {TEACHER, SPECIALIST})):
        losses = []
        for skips in (False, True):
            network = denoiser()
            distiller = Distiller(network, make_recipe(tables=tables), CATEGORIES)
            distiller.teachers.skips_unweighted = skips
            losses.append(student_loss(distiller, batch_of("t2i", rows, 5), step=0))
        assert torch.equal(*losses) and set(network.evaluated) - {STUDENT, FAKE_SCORE} == expected


def test_a_teacher_of_a_category_that_is_not_planned_is_not_run() -> None:
    tables = {"t2i/text": [[0.0, 1.0]] * 2, "default": [[1.0, 0.0]] * 2}
    for shares, expected in (({"portrait": 1.0}, {TEACHER}), ({"portrait": 0.5, "text": 0.5}, {TEACHER, SPECIALIST})):
        network = denoiser()
        recipe = make_recipe(tables=tables, mixture=Mixture(batch_size=BATCH_SIZE, categories={"t2i": shares}))
        student_loss(Distiller(network, recipe, CATEGORIES), take(batch_of("t2i", range(5), 5), [0, 2, 4]), step=0)
        assert set(network.evaluated) - {STUDENT, FAKE_SCORE} == expected


def test_each_category_is_guided_by_its_own_row() -> None:
    batch = batch_of("t2i", range(5), 5)
    base, specialist = [[1.0, 0.0]] * 2, [[0.0, 1.0]] * 2
    mixed, base_alone, specialist_alone, halves = (
        student_loss(Distiller(denoiser(), make_recipe(tables=tables), CATEGORIES), batch, step=1)
        for tables in (
            {"t2i/text": specialist, "default": base},
            {"default": base},
            {"default": specialist},
            {"default": [[0.5, 0.5]] * 2},
        )
    )
    torch.testing.assert_close(mixed, torch.where(batch.category == 1, specialist_alone, base_alone))
    assert not torch.isclose(base_alone, specialist_alone).any() and not torch.isclose(halves, base_alone).any()


def test_guidance_compares_with_the_empty_prompt() -> None:
    batch = step_data(0, uncond=True).student[0]
    assert batch.uncond is not None
    x_t, t = torch.randn(5, 16, 2, generator=torch.Generator().manual_seed(0)), torch.full((5,), 0.6)
    network, weights = denoiser(), torch.tensor([[1.0, 0.0]]).expand(5, -1)

    def x0(scale: float, uncond: Condition | None) -> Tensor:
        recipe = make_recipe(teachers=Teachers(specialists={"text": "folder"}, cfg_scale=scale))
        teachers = Distiller(network, recipe, CATEGORIES).teachers
        prefixes = teachers.prefixes(replace(batch, uncond=uncond), (True, False), weights)
        return mixed(teachers.predictions(prefixes, x_t, t), weights)

    teacher = RoleDenoiser(network, TEACHER)
    v_cond, v_uncond = (teacher.velocity(teacher.prefix(c), x_t, t) for c in (batch.condition, batch.uncond))
    torch.testing.assert_close(x0(1.0, None), x_t - 0.6 * v_cond)
    torch.testing.assert_close(x0(3.0, batch.uncond), x_t - 0.6 * (v_uncond + 3 * (v_cond - v_uncond)))
    torch.testing.assert_close(x0(3.0, batch.condition), x0(1.0, None))
