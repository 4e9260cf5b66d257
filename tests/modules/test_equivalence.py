"""One training step of the engine against the plain arrangement: the same losses and gradients from the same draws."""

from __future__ import annotations

import copy
from typing import Any, Literal

import lightning as L
import pytest
import torch
from quiet_trainer import quiet_trainer
from torch import Tensor
from torch.utils.data import DataLoader

from workbench.backbones import families, roles
from workbench.backbones.roles import FAKE_SCORE, STUDENT
from workbench.bench.data import CATEGORIES, Shapes, random_transformer, step_data
from workbench.bench.plain import PlainEngine
from workbench.modules.distiller import Distiller
from workbench.recipe.config import Dmd, Guidance, Mixture, Model, Optim, Recipe, Schedule, Teachers, Trainer

pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = "blocks=2,width=32,heads=2,text=24,channels=8"
SHAPES = Shapes(batch_size=3, text_tokens=9, side=4, context_dim=24, channels=8, slots=4)
CPU = torch.device("cpu")
FAMILIES = ("QwenImage21Pipeline", "QwenImageEditPlusPipeline")
NO_CLIP = 1e9

Gradients = list[tuple[str, list[Tensor]]]
Outcome = tuple[dict[str, float], Gradients]
"""Mean losses by role and task; gradients of every optimiser step with the role that took it."""


def make_recipe(**sections: Any) -> Recipe:
    defaults: dict[str, Any] = {
        "mixture": Mixture(batch_size=2 * SHAPES.batch_size),
        "dmd": Dmd(fake_updates=2),
        # Small rates: Adam's first steps are signs, which rounding alone can turn over.
        "optim": Optim(student_lr=1e-5, fake_lr=1e-5, warmup_updates=0, student_clip=NO_CLIP, fake_clip=NO_CLIP),
        "trainer": Trainer(updates=1, accelerator="cpu", max_skipped_updates=1),
    }
    return Recipe(**{**defaults, **sections})


class Notes(L.Callback):
    """Gradients before each optimiser step, by role."""

    def __init__(self) -> None:
        self.gradients: Gradients = []

    def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
        role = STUDENT if optimizer is trainer.optimizers[0] else FAKE_SCORE
        self.gradients.append((role, gradients_of(optimizer)))


def gradients_of(optimizer: Any) -> list[Tensor]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]


def both(
    recipe: Recipe, seed: int = 0, family: str = FAMILIES[0]
) -> tuple[tuple[dict[str, float], Gradients], tuple[dict[str, float], Gradients]]:
    """(mean losses by role and task, gradients) of one step of the engine, and of the reference."""
    base = random_transformer(SIZES, CPU, class_name=family)
    specialists = {name: random_transformer(SIZES, CPU, class_name=family) for name in recipe.teachers.specialists}
    for specialist in specialists.values():
        specialist.proj_out.weight.data.mul_(0.5)
    network = families.of_class(family).network
    denoiser = roles.build(network, base, recipe.model, specialists=specialists, seed=seed)
    with torch.no_grad():
        # Roles that start alike hide a mistaken role, and adapters that start at zero hide half their gradients.
        for name, parameter in denoiser.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
                parameter.add_(0.1 * parameter.shape[-1] ** -0.5 * noise)
    guided = recipe.teachers.cfg_scale != 1
    data = step_data(SHAPES, ("t2i", "edit"), recipe.dmd.fake_updates, step=seed, guided=guided, device=CPU)
    return engine(copy.deepcopy(denoiser), recipe, data), plain(denoiser, recipe, data, family)


def engine(denoiser: Any, recipe: Recipe, data: Any) -> Outcome:
    module, notes = Distiller(denoiser, recipe, CATEGORIES), Notes()
    trainer = quiet_trainer(notes)
    trainer.fit(module, DataLoader([data], batch_size=None, collate_fn=lambda item: item))  # type: ignore[arg-type]
    means = {name: value for name, value in module.means.pop().items() if name.startswith("loss/")}
    return means, notes.gradients


def plain(denoiser: Any, recipe: Recipe, data: Any, family: str) -> Outcome:
    stock_velocity = families.measured(family).stock_velocity
    reference, gradients = PlainEngine(denoiser, stock_velocity, recipe, CATEGORIES, per_length=True), []
    for role, optimizer in reference.optimizers.items():
        optimizer.register_step_pre_hook(
            lambda optimizer, *_, role=role: gradients.append((role, gradients_of(optimizer)))
        )
    reference.step(data, 0)
    losses: dict[str, list[Tensor]] = {}
    for role, task, values in reference.losses:
        losses.setdefault(f"loss/{role}/{task}", []).append(values)
    return {name: float(torch.cat(values).mean()) for name, values in losses.items()}, gradients


def assert_equivalent(recipe: Recipe, family: str = FAMILIES[0]) -> None:
    (losses, gradients), (their_losses, their_gradients) = both(recipe, family=family)
    assert losses == pytest.approx(their_losses, rel=1e-4)
    assert [role for role, _ in gradients] == [role for role, _ in their_gradients]
    for (role, ours), (_, theirs) in zip(gradients, their_gradients, strict=True):
        largest = max(float(gradient.abs().max()) for gradient in theirs)
        assert largest > 0
        for left, right in zip(ours, theirs, strict=True):
            assert (left - right).norm() <= 1e-4 * max(float(right.norm()), 1e-3 * largest), role


@pytest.mark.parametrize("rollout", ["euler", "renoise"])
@pytest.mark.parametrize("cfg_scale", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_engine_equals_the_plain_arrangement(
    kind: Literal["full", "lora"], cfg_scale: float, rollout: Literal["euler", "renoise"]
) -> None:
    assert_equivalent(
        make_recipe(
            model=Model(roles=kind, lora_rank=4),
            teachers=Teachers(cfg_scale=cfg_scale),
            dmd=Dmd(fake_updates=2, rollout=rollout),
        )
    )


@pytest.mark.parametrize(("family", "kind"), [(FAMILIES[0], "full"), (FAMILIES[0], "lora"), (FAMILIES[1], "lora")])
def test_so_do_both_when_checkpointed(family: str, kind: Literal["full", "lora"]) -> None:
    recipe = make_recipe(model=Model(roles=kind, lora_rank=4, gradient_checkpointing=True))
    assert_equivalent(recipe, family)


def test_so_do_several_teachers() -> None:
    table = {"t2i": [[0.25, 0.75]] * 4, "edit": [[1.0, 0.0]] * 4}
    assert_equivalent(
        make_recipe(teachers=Teachers(specialists={"text": "-"}, cfg_scale=1.5), guidance=Guidance(tables=table))
    )


def test_so_do_scheduled_teachers() -> None:
    schedules = {"default": Schedule("ramp", {"text": 0.5}), "t2i": Schedule("switch", {"text": 1.0}, at=2)}
    teachers, guidance = Teachers(specialists={"text": "-"}, cfg_scale=1.5), Guidance(schedules=schedules)
    assert_equivalent(make_recipe(teachers=teachers, guidance=guidance))


def test_clipping_scales_the_whole_gradient_alike() -> None:
    optim = Optim(student_lr=1e-5, fake_lr=1e-5, warmup_updates=0, student_clip=1e-3, fake_clip=1e-3)
    recipe = make_recipe(optim=optim)
    assert_equivalent(recipe)
    _, (_, gradients) = both(recipe)
    for _, parts in gradients:
        assert torch.stack([part.norm() for part in parts]).norm() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("rollout", ["euler", "renoise"])
@pytest.mark.parametrize("fake_samples", ["rollout", "student_rollout"])
def test_a_reusing_algorithm_equals_a_slow_reference_of_itself(
    fake_samples: Literal["rollout", "student_rollout"], rollout: Literal["euler", "renoise"]
) -> None:
    dmd = Dmd(fake_updates=5, fake_samples=fake_samples, rollout=rollout)
    assert_equivalent(make_recipe(teachers=Teachers(cfg_scale=1.5), dmd=dmd))
