"""A training step cut into parts: replayed over copied inputs it gives what it gives eagerly, without a host sync.

The graphs here record on the CPU: a recording runs the captured function again over the copied inputs and nothing else,
as a CUDA graph would, under a mode that fails at any operator that a capture could not hold, and under another that
fails where parts beside each other meet.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from distiller_fakes import regroup
from host_lanes import HostLanes
from quiet_trainer import quiet_trainer
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from workbench.backbones import lora, lora_files, roles
from workbench.backbones.base import RoleNetworks
from workbench.backbones.qwen_image_21.transformer import SplitTransformer
from workbench.batch import Batch, StepData
from workbench.bench.data import CATEGORIES, Shapes, random_transformer, step_data
from workbench.common.errors import UserError
from workbench.engine import graph_steps
from workbench.engine.nonfinite import Skips
from workbench.engine.optimisation import uncached_casts
from workbench.modules import distiller as distiller_module
from workbench.modules.distiller import Distiller
from workbench.recipe.config import Dmd, Guidance, Mixture, Model, Optim, Recipe, Teachers, Trainer

pytestmark = pytest.mark.filterwarnings("ignore")
SIZES = "blocks=1,width=32,heads=2,text=24,channels=8"
SHAPES = Shapes(batch_size=3, text_tokens=9, side=4, context_dim=24, channels=8, slots=4)
CPU = torch.device("cpu")
UPDATES = 5
FORBIDDEN = (
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "repeat_interleave",
    "unique",
    "lift_fresh",
    "randn",
    "rand.",
    "normal_",
    "uniform_",
    "randint",
    "randperm",
)
"""Reads of a value by the host, shapes that follow from values, tensors made from Python numbers, random numbers."""


class NothingForTheHost(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        name = function.name()
        assert not any(word in name for word in FORBIDDEN), f"{name} cannot be captured"
        return function(*arguments, **(options or {}))


class RecordedOnTheHost:
    """`Graphs`, on the CPU."""

    made: list[RecordedOnTheHost] = []

    def __init__(self, limit: int) -> None:
        self.limit, self.steps, self.inputs = limit, {}, {}
        self.replays: Counter[Hashable] = Counter()
        self.warm = 0
        self.lanes = HostLanes()
        RecordedOnTheHost.made.append(self)

    def has_room(self, key: Hashable) -> bool:
        return key in self.steps or len(self.steps) < self.limit

    def warm_up(self, function: Callable[[], Any]) -> Any:
        self.warm += 1
        return function()

    def replay(self, key: Hashable, step: Any, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        if key not in self.steps:
            # What was recorded first is what runs ever after: batches of later calls come in through the copies alone.
            self.steps[key], self.inputs[key] = step, [tensor.clone() for tensor in inputs]
        self.replays[key] += 1
        for static, tensor in zip(self.inputs[key], inputs, strict=True):
            static.copy_(tensor)
        with NothingForTheHost(), self.lanes.opened():
            return self.steps[key](self.inputs[key])


class Guarded(Distiller):
    """Takes its steps as on a GPU: guarded by the optimiser itself."""

    @property
    def guards_on_device(self) -> bool:
        return True

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        optimizers = super().configure_optimizers()
        for optimizer in optimizers:
            optimizer.param_groups[0]["capturable"] = False
        return optimizers


def make_recipe(**sections: Any) -> Recipe:
    defaults: dict[str, Any] = {
        "mixture": Mixture(batch_size=2 * SHAPES.batch_size),
        "teachers": Teachers(cfg_scale=1.5),
        "dmd": Dmd(student_steps=2, fake_updates=2),
        "optim": Optim(student_lr=1e-3, fake_lr=1e-3, warmup_updates=4),
        "trainer": Trainer(updates=UPDATES, accelerator="cpu", max_skipped_updates=2),
    }
    return Recipe(**{**defaults, **sections})


def network(recipe: Recipe) -> RoleNetworks:
    base = random_transformer(SIZES, CPU)
    specialists: dict[str, Any] = {}
    for name in recipe.teachers.specialists:
        donor = copy.deepcopy(base)
        lora.install(donor.transformer_blocks)
        layers = {f"transformer_blocks.{at}": layer for at, layer in lora.role_linears(donor.transformer_blocks)}
        generator = torch.Generator().manual_seed(len(name))
        specialists[name] = {
            at: lora_files.AdapterLayer(
                down=torch.randn(2, layer.base_layer.in_features, generator=generator),
                up=0.1 * torch.randn(layer.base_layer.out_features, 2, generator=generator),
                scaling=1.0,
            )
            for at, layer in layers.items()
        }
    return roles.build(SplitTransformer, base, recipe.model, specialists=specialists)


def data_of(recipe: Recipe) -> list[StepData]:
    data = [
        step_data(SHAPES, ("t2i", "edit"), recipe.dmd.fake_groups, step=step, guided=True, device=CPU)
        for step in range(UPDATES)
    ]
    return [regroup(item, pictured) for item in data] if recipe.dmd.needs_targets else data


def pictured(batch: Batch) -> list[Batch]:
    shape = (len(batch.rows), batch.condition.layout.num_target_tokens, SHAPES.channels)
    return [
        replace(batch, target=torch.randn(shape, generator=torch.Generator().manual_seed(len(batch.sample_ids[0]))))
    ]


def fit(recipe: Recipe, data: Sequence[StepData], *, replayed: bool) -> Guarded:
    module = Guarded(network(recipe), recipe, CATEGORIES)
    if replayed:
        module.on_train_start = lambda: setattr(module, "_graph_runner", graph_steps.GraphRunner())  # type: ignore[method-assign]
    trainer = quiet_trainer()
    trainer.fit(module, DataLoader(data, batch_size=None, collate_fn=lambda item: item))  # type: ignore[arg-type]
    return module


@pytest.fixture(autouse=True)
def _on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    RecordedOnTheHost.made.clear()
    monkeypatch.setattr(graph_steps, "Graphs", RecordedOnTheHost)


SPECIALISTS = {"teachers": Teachers(specialists={"text": "-"}, cfg_scale=1.5)}
RECIPES = {
    "euler": make_recipe(),
    "renoise": make_recipe(dmd=Dmd(student_steps=2, fake_updates=2, rollout="renoise")),
    "lora and a specialist": make_recipe(
        model=Model(roles="lora", lora_rank=2),
        guidance=Guidance(tables={"t2i": [[0.5, 0.5], [1.0, 0.0]], "edit": [[1.0, 0.0]] * 2}),
        **SPECIALISTS,
    ),
    "checkpointed": make_recipe(model=Model(gradient_checkpointing=True)),
    "rollout": make_recipe(dmd=Dmd(student_steps=2, fake_updates=3, fake_samples="rollout")),
    "student_rollout": make_recipe(dmd=Dmd(student_steps=2, fake_updates=3, fake_samples="student_rollout")),
    "decoupled, first step": make_recipe(
        dmd=Dmd(student_steps=2, decoupled=True, first_step_weight=0.1, first_step_teacher_steps=2)
    ),
    "looking at tasks": make_recipe(
        trainer=Trainer(updates=UPDATES, accelerator="cpu", max_skipped_updates=2, task_gradients_every=1)
    ),
    "adversarial": make_recipe(
        model=Model(roles="lora", lora_rank=2, gradient_checkpointing=True),
        dmd=Dmd(student_steps=2, fake_updates=1, adversarial_weight=0.1, fake_per_step=True, data_weight=0.1),
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_replayed_is_the_same_bit_for_bit(name: str) -> None:
    recipe = RECIPES[name]
    data = data_of(recipe)
    plain, replayed = fit(recipe, data, replayed=False), fit(recipe, data, replayed=True)
    (graphs,) = RecordedOnTheHost.made
    assert sum(graphs.replays.values()) > graphs.warm and replayed.num_updates == UPDATES
    # Both tasks have a lane, but where their gradients are looked at one after the other.
    by_task = UPDATES if recipe.trainer.task_gradients_every else 0
    assert sum(graphs.replays.values()) - by_task <= graphs.lanes.joined <= sum(graphs.replays.values())
    ours, theirs = replayed.trained_parameters(), plain.trained_parameters()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    for left, right in zip(replayed.optimizers(), plain.optimizers(), strict=True):  # type: ignore[arg-type]
        for one, other in zip(left.state.values(), right.state.values(), strict=True):
            assert all(torch.equal(one[key], other[key]) for key in other)
    assert replayed.means.pop() == plain.means.pop()


def test_graphs_are_few() -> None:
    """One for each student step of either update, whatever the combinations."""
    fit(
        make_recipe(dmd=Dmd(student_steps=2, fake_updates=5)),
        data_of(make_recipe(dmd=Dmd(fake_updates=5))),
        replayed=True,
    )
    (graphs,) = RecordedOnTheHost.made
    assert len(graphs.steps) == graphs.warm == 2 + 2


def test_without_room_for_graphs_steps_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_steps, "MAX_GRAPHS", 1)
    data = data_of(make_recipe())
    plain, replayed = fit(make_recipe(), data, replayed=False), fit(make_recipe(), data, replayed=True)
    assert len(RecordedOnTheHost.made[0].steps) == 1
    ours, theirs = replayed.trained_parameters(), plain.trained_parameters()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def poisoned(data: list[StepData], at: int) -> list[StepData]:
    (first, *rest), item = data[at].student, data[at]
    prompt = first.condition.prompt.clone()
    prompt[1] = math.nan
    first = replace(first, condition=replace(first.condition, prompt=prompt))
    return [*data[:at], replace(item, student=(first, *rest)), *data[at + 1 :]]


@pytest.mark.parametrize("replayed", [False, True])
def test_the_device_leaves_out_a_step_that_is_not_finite(replayed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, last = make_recipe(), UPDATES - 1
    data = data_of(recipe)
    good = fit(recipe, data[:last], replayed=replayed)
    after = fit(recipe, poisoned(data, last), replayed=replayed)
    assert after.num_skipped == 1 and after.num_updates == UPDATES
    role = distiller_module.STUDENT
    for left, right in zip(good.parameters_of(role), after.parameters_of(role), strict=True):
        assert torch.equal(left, right)
    steps = [state["step"].item() for state in after.optimizers()[0].state.values()]  # type: ignore[index]
    assert set(steps) == {last}
    said = capsys.readouterr().out
    assert f"of the student at update {last}" in said and "t2i1" in said


def test_skips_are_told_in_order_and_too_many_end_the_run() -> None:
    said: list[str] = []
    skips = Skips(1, said.append)
    for update, finite in enumerate((True, False, True)):
        skips.note(torch.tensor(finite), "student", update, ["a", "b"])
    assert skips.count() == 1 and len(said) == 1 and "at update 1 (samples a, b, ...)" in said[0]
    with pytest.raises(UserError, match="2 such steps are too many"):
        skips.note(torch.tensor(False), "fake_score", 3, ["c"])
    skips.restart(0)
    assert skips.count() == 0


def test_casts_never_outlive_an_optimiser_step() -> None:
    """Autocast keeps its copies of weights until its block ends; a step within the block would go unseen."""
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), uncached_casts(), torch.no_grad():
        before = layer(x)
        layer.weight.add_(1)
        assert not torch.equal(layer(x), before)
    assert torch.is_autocast_cache_enabled()


def test_without_autocast_the_setting_that_compiled_code_is_bound_to_stays() -> None:
    with uncached_casts():
        assert torch.is_autocast_cache_enabled()
    with torch.autocast("cpu", dtype=torch.bfloat16), uncached_casts():
        assert not torch.is_autocast_cache_enabled()
