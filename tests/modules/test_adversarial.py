"""The adversarial term in training: whom its gradients reach, what it costs, and that without it nothing changes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from distiller_fakes import BATCH_SIZE, CATEGORIES, denoiser, fit, make_recipe, regroup, step_data, take
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor
from toy_network import CHANNELS, PROMPT_WIDTH, ToyDenoiser, ToyTransformer

from workbench.backbones import roles
from workbench.backbones.base import Denoiser
from workbench.backbones.gaussian import GaussianDenoiser
from workbench.backbones.qwen_image_21.transformer import SplitTransformer
from workbench.backbones.roles import FAKE_SCORE, STUDENT
from workbench.batch import Batch, StepData
from workbench.bench.data import random_transformer
from workbench.common.errors import UserError
from workbench.engine.graph_steps import StepInput
from workbench.modules.distiller import Distiller
from workbench.recipe.config import Dmd, Mixture, Model, Optim, Recipe, Teachers, Trainer
from workbench.recipe.reading import from_mapping
from workbench.runs.callbacks import Averaging, Checkpointing, Resuming

pytestmark = pytest.mark.filterwarnings("ignore")

ADVERSARIAL = Dmd(student_steps=2, adversarial_weight=0.5, classifier_weight=0.5)
SIZES = "blocks=2,width=32,heads=2,text=6,channels=4"
"""Of a transformer that reads the toy family's prompts and latents."""


def with_targets(data: StepData, channels: int = 2) -> StepData:
    """Every batch with pictures of its prompts."""

    def draw(batch: Batch) -> list[Batch]:
        generator = torch.Generator().manual_seed(int(1000 * batch.condition.prompt.abs().sum()))
        shape = (len(batch.rows), batch.condition.layout.num_target_tokens, channels)
        return [replace(batch, target=0.5 + 0.5 * torch.randn(shape, generator=generator))]

    return regroup(data, draw)


def closed_form() -> GaussianDenoiser:
    return denoiser()


def transformer(kind: Literal["full", "lora"], family: str) -> Callable[[], Denoiser]:
    def make() -> Denoiser:
        model = Model(roles=kind, lora_rank=2)
        if family == "toy":
            return roles.build(ToyDenoiser, ToyTransformer(), model)
        return roles.build(SplitTransformer, random_transformer(SIZES, torch.device("cpu")), model)

    return make


NETWORKS = {
    "closed form": (closed_form, 2, 2),
    "toy, full": (transformer("full", "toy"), PROMPT_WIDTH, CHANNELS),
    "toy, lora": (transformer("lora", "toy"), PROMPT_WIDTH, CHANNELS),
    "qwen, full": (transformer("full", "qwen"), PROMPT_WIDTH, CHANNELS),
    "qwen, lora": (transformer("lora", "qwen"), PROMPT_WIDTH, CHANNELS),
}


def data_for(width: int, channels: int, *, step: int = 0, fake_updates: int = 2) -> StepData:
    def widened(batch: Batch) -> list[Batch]:
        prompt = batch.condition.prompt.repeat(1, 1, width // 2)
        return [replace(batch, condition=replace(batch.condition, prompt=prompt))]

    return with_targets(regroup(step_data(step, fake_updates=fake_updates), widened), channels)


def recipe_for(name: str, updates: int = 1, **sections: Any) -> Recipe:
    plain = {} if name == "closed form" else {"teachers": Teachers()}
    small = Optim(student_lr=1e-3, fake_lr=1e-3, student_clip=1e9, fake_clip=1e9, warmup_updates=0)
    return make_recipe(updates, **{"dmd": ADVERSARIAL, "optim": small, **plain, **sections})


def learnt(distiller: Distiller) -> None:
    """A classifier that tells something: fresh ones say 0 to everything."""
    classifier = distiller.fake_score.classifier
    assert classifier is not None
    with torch.no_grad():
        classifier.out.weight.normal_(generator=torch.Generator().manual_seed(1))


def graded(distiller: Distiller) -> set[str]:
    """Whose parameters hold a gradient: a trained role, the classifier, or something frozen."""
    classifier = distiller.fake_score.classifier
    assert classifier is not None
    owners = {parameter: role for role in (STUDENT, FAKE_SCORE) for parameter in distiller.parameters_of(role)}
    owners |= dict.fromkeys(classifier.parameters(), "classifier")
    return {owners.get(one, "frozen") for one in distiller.parameters() if one.grad is not None and one.grad.any()}


def adversarial_term(distiller: Distiller, batch: Batch, step: int) -> dict[str, Tensor]:
    weights, active = distiller.lambdas[batch.category, step], distiller.active[batch.task][step]
    numbers = distiller.draws.of(batch, STUDENT)
    return distiller.objective(batch, numbers, step=step, weights=weights, active=active)[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_students_loss_reaches_the_student_and_the_fake_scores_its_network_and_classifier(name: str) -> None:
    make, width, channels = NETWORKS[name]
    distiller = Distiller(make(), recipe_for(name), CATEGORIES)
    learnt(distiller)
    data = data_for(width, channels)
    terms = adversarial_term(distiller, data.student[0], 1)
    assert terms.keys() == {STUDENT, "adversarial"} and (terms["adversarial"] > 0).all()
    terms["adversarial"].sum().backward()
    assert graded(distiller) == {STUDENT}

    distiller.zero_grad()
    given = StepInput(data.fake[0][1], distiller.draws.of(data.fake[0][1], "fake0"))
    distiller.fake_score_loss(given, distiller.means, step=1).sum().backward()
    assert graded(distiller) == {FAKE_SCORE, "classifier"}


@pytest.mark.parametrize("name", NETWORKS)
def test_it_is_the_gradient_of_the_classifiers_opinion_of_the_sample(name: str) -> None:
    """By hand, through one graph from the student's weights to the logit, with the numbers that the step draws."""
    make, width, channels = NETWORKS[name]
    distiller = Distiller(make(), recipe_for(name), CATEGORIES)
    learnt(distiller)
    batch, parameters = data_for(width, channels).student[1], distiller.parameters_of(STUDENT)
    found = adversarial_term(distiller, batch, 1)["adversarial"]
    gradients = torch.autograd.grad(found.sum(), parameters, allow_unused=True)

    numbers = distiller.draws.of(batch, STUDENT)
    x = distiller.student.draw(batch, numbers, 1)
    low, high = distiller.objective.intervals[1]
    t = numbers.uniform("t") * 3 / (1 + 2 * numbers.uniform("t")) * (high - low) + low
    x_t = (1 - t)[:, None, None] * x + t[:, None, None] * numbers.normal("eps", channels)
    network, classifier = distiller.fake_score.network, distiller.fake_score.classifier
    assert classifier is not None
    logits = classifier(network.velocity_and_features(network.prefix(batch.condition), x_t, t)[1])
    by_hand = -0.5 * torch.log(torch.sigmoid(logits))
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-5)
    expected = torch.autograd.grad(by_hand.sum(), parameters, allow_unused=True)
    largest = max(float(gradient.abs().max()) for gradient in expected if gradient is not None)
    assert largest > 0
    for ours, theirs in zip(gradients, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * largest)


def test_features_are_of_the_same_evaluation_as_the_velocity() -> None:
    for name, (make, width, channels) in NETWORKS.items():
        network, batch = make(), data_for(width, channels).student[1]
        x_t, t = torch.randn(3, 16, channels, generator=torch.Generator().manual_seed(0)), torch.full((3,), 0.4)
        prefix = network.prefix(batch.condition, FAKE_SCORE)
        for graded in (False, True):
            with torch.set_grad_enabled(graded):
                velocity, features = network.velocity_and_features(prefix, x_t, t, FAKE_SCORE)
                assert torch.equal(velocity, network.velocity(prefix, x_t, t, FAKE_SCORE)), name
            assert features.shape == (3, 16, network.num_features), name
        others = network.velocity_and_features(prefix, x_t.flip(0), t, FAKE_SCORE)[1]
        assert not torch.allclose(features, others), name


def test_a_fresh_classifier_leaves_the_student_and_the_fake_score_as_they_are_without_it() -> None:
    """It says 0 to everything, so that its first gradient reaches its own last layer alone: the term starts gently."""
    data = [with_targets(step_data(0, fake_updates=1))]
    _, without = fit(make_recipe(dmd=Dmd(student_steps=2)), data)
    distiller, found = fit(make_recipe(dmd=ADVERSARIAL), data)
    count = len(without.of_fake_score[0])
    for ours, theirs in zip(found.of_fake_score[0][:count], without.of_fake_score[0], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [bool(gradient.any()) for gradient in found.of_fake_score[0][count:]].count(True) >= 1
    means = distiller.means.pop()
    for task in ("t2i", "edit"):
        assert means[f"loss/classifier/{task}"] == pytest.approx(math.log(4))


@pytest.mark.parametrize("fake_samples", ["fresh", "rollout", "student_rollout"])
@pytest.mark.parametrize("first_step", ["added", "instead"])
def test_a_run_learns_to_tell_and_logs_it(
    fake_samples: Literal["fresh", "rollout", "student_rollout"], first_step: Literal["added", "instead"]
) -> None:
    options = replace(
        ADVERSARIAL, fake_samples=fake_samples, first_step=first_step, first_step_weight=0.1, fake_per_step=True
    )
    recipe = make_recipe(12, dmd=options, optim=Optim(student_lr=1e-3, fake_lr=0.02, warmup_updates=0))
    groups = {"fresh": 2, "rollout": 1, "student_rollout": 0}[fake_samples]
    data = [with_targets(step_data(step, fake_updates=groups)) for step in range(12)]
    distiller, _ = fit(recipe, data)
    means = distiller.means.pop()
    assert distiller.num_skipped == 0 and all(math.isfinite(value) for value in means.values())
    assert means["loss/classifier/t2i"] < math.log(4) and means["loss/adversarial/t2i"] > 0
    trained = distiller.trained_parameters()
    assert {name for name in trained if "classifier" in name} and not any(
        "classifier" in name for name in distiller.averaged_parameters()
    )


def test_micro_batches_and_padding_change_nothing() -> None:
    def pad_and_split(batch: Batch) -> list[Batch]:
        count = len(batch.rows)
        parts = [take(batch, range(2)), take(batch, [*range(2, count), count - 1], [1.0] * (count - 2) + [0.0])]
        index = ([0, 1], [*range(2, count), count - 1])
        assert batch.target is not None
        return [replace(part, target=batch.target[rows]) for part, rows in zip(parts, index, strict=True)]

    recipe = make_recipe(2, dmd=replace(ADVERSARIAL, fake_updates=1))
    data = [with_targets(step_data(step, fake_updates=1)) for step in range(2)]
    _, complete = fit(recipe, data)
    _, parts = fit(recipe, [regroup(item, pad_and_split) for item in data])
    for ours, theirs in ((parts.of_student, complete.of_student), (parts.of_fake_score, complete.of_fake_score)):
        for update, expected in zip(ours, theirs, strict=True):
            for one, other in zip(update, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    """The classifier and its moments come back from the checkpoint, into a process that drew a fresh one."""
    data = [with_targets(step_data(step)) for step in range(4)]

    def run(folder: str, steps: slice) -> Distiller:
        averaging, where = Averaging(0.9), tmp_path / folder / "checkpoints"
        resuming = Resuming(where, averaging, SimpleNamespace(start_step=0), lambda _: [DummyLogger()])
        callbacks = [averaging, resuming, Checkpointing(where, 2, averaging)]
        return fit(make_recipe(4, dmd=ADVERSARIAL), data[steps], callbacks=callbacks)[0]

    straight = run("straight", slice(0, 4))
    run("stopped", slice(0, 2))
    resumed = run("stopped", slice(2, 4))
    assert resumed.num_updates == straight.num_updates == 4
    ours, theirs = resumed.trained_parameters(), straight.trained_parameters()
    assert "fake_score.classifier.out.weight" in theirs and theirs["fake_score.classifier.out.weight"].any()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_weight_zero_is_the_run_without_the_term_bit_for_bit() -> None:
    """No classifier, no further evaluation, no further number drawn; targets in the data change nothing."""
    data = [step_data(step) for step in range(3)]
    plain, counted = denoiser(), denoiser()
    without, _ = fit(make_recipe(3, dmd=Dmd(student_steps=2)), data, plain)
    off, _ = fit(
        make_recipe(3, dmd=Dmd(student_steps=2, adversarial_weight=0.0, classifier_weight=0.3)),
        [with_targets(item) for item in data],
        counted,
    )
    assert off.fake_score.classifier is None and counted.evaluated == plain.evaluated
    ours, theirs = off.trained_parameters(), without.trained_parameters()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_it_costs_one_evaluation_of_data_an_update_of_the_fake_score_and_none_of_the_students() -> None:
    counts = {}
    for weight in (0.0, 0.1):
        network = denoiser()
        options = Dmd(student_steps=2, adversarial_weight=weight)
        fit(make_recipe(3, dmd=options), [with_targets(step_data(step)) for step in range(3)], network)
        counts[weight] = len(network.evaluated)
    assert counts[0.1] == counts[0.0] + 3 * 2 * 2, "3 updates of the student, 2 of the fake score each, 2 batches each"


def test_a_gradient_of_the_classifier_that_is_not_finite_is_not_taken() -> None:
    good = with_targets(step_data(0, fake_updates=1))
    first, *rest = good.fake[0]
    assert first.target is not None
    target = first.target.clone()
    target[1] = math.nan
    bad = replace(good, step=1, fake=((replace(first, target=target), *rest),))
    before, _ = fit(make_recipe(1, dmd=ADVERSARIAL), [good])
    after, _ = fit(make_recipe(2, dmd=ADVERSARIAL), [good, bad])
    assert after.num_skipped == 1
    for left, right in zip(before.parameters_of(FAKE_SCORE), after.parameters_of(FAKE_SCORE), strict=True):
        assert torch.equal(left, right)


def test_samples_without_a_picture_and_families_without_features_are_named() -> None:
    message = "dmd.adversarial_weight needs a target of every sample, but not all of t2i-0, t2i-1"
    with pytest.raises(UserError, match=message):
        fit(make_recipe(dmd=ADVERSARIAL), [step_data(0)])
    bare = denoiser()
    bare.num_features = 0
    with pytest.raises(UserError, match="this family has none"):
        Distiller(bare, make_recipe(dmd=ADVERSARIAL), CATEGORIES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"adversarial_weight": -0.1}, "dmd.adversarial_weight must not be negative"),
        ({"adversarial_weight": float("nan")}, "dmd.adversarial_weight must not be negative"),
        ({"adversarial_weight": 0.1, "classifier_weight": 0.0}, "dmd.classifier_weight must be above 0"),
    ],
)
def test_impossible_weights_are_named(values: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_mapping({"dmd": values})


def test_a_student_far_from_the_data_moves_towards_them() -> None:
    """The term alone decides: the teacher is where the student starts, and the data are elsewhere."""
    start = (torch.tensor([-1.0, 0.5]), 0.6 * torch.eye(2))
    data_mean = torch.tensor([1.0, -0.5])

    def towards(weight: float) -> float:
        network = GaussianDenoiser(
            {name: start for name in (STUDENT, FAKE_SCORE, "teacher")}, trainable=(STUDENT, FAKE_SCORE)
        )
        recipe = Recipe(
            mixture=Mixture(batch_size=BATCH_SIZE),
            dmd=Dmd(student_steps=1, fake_updates=1, adversarial_weight=weight, classifier_weight=1.0),
            optim=Optim(student_lr=0.01, fake_lr=0.02, warmup_updates=0),
            trainer=Trainer(updates=60, accelerator="cpu"),
        )
        data = []
        for step in range(60):
            item = step_data(step, fake_updates=1)

            def pictured(batch: Batch, step: int = step) -> list[Batch]:
                noise = torch.randn(len(batch.rows), 16, 2, generator=torch.Generator().manual_seed(step))
                return [replace(batch, target=data_mean + batch.condition.prompt[:, :1] + 0.6 * noise)]

            data.append(regroup(item, pictured))
        fit(recipe, data, network)
        return float((network.means[STUDENT].detach() - data_mean).norm())

    away = float((start[0] - data_mean).norm())
    assert towards(0.0) > 0.9 * away and towards(1.0) < 0.75 * away
