"""A rehearsal before the first update leaves nothing to compile, stores the blocks that fit, and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import lightning as L
import pytest
import torch
from quiet_trainer import quiet_trainer
from torch import Tensor
from torch.utils.data import DataLoader

from workbench.backbones import blocks, roles
from workbench.backbones.base import RoleNetworks
from workbench.backbones.qwen_image_21.transformer import SplitTransformer
from workbench.backbones.roles import FAKE_SCORE, STUDENT
from workbench.batch import StepData
from workbench.bench.data import CATEGORIES, Shapes, random_transformer, step_data
from workbench.modules import rehearsal
from workbench.modules.distiller import Distiller
from workbench.modules.rehearsal import Pair
from workbench.recipe.config import Dmd, Guidance, Mixture, Model, Optim, Recipe, Teachers, Trainer

pytestmark = pytest.mark.filterwarnings("ignore")
CPU, BLOCKS = torch.device("cpu"), 4
SHAPES = Shapes(batch_size=2, text_tokens=8, side=4, context_dim=24, channels=8, slots=4)
INFINITE = float("inf")
RECIPE = Recipe(
    model=Model(gradient_checkpointing=True),
    teachers=Teachers(cfg_scale=2.0),
    mixture=Mixture(batch_size=4),
    dmd=Dmd(student_steps=2, fake_updates=1),
    optim=Optim(student_lr=1e-3, fake_lr=1e-3, warmup_updates=0),
    trainer=Trainer(updates=4, accelerator="cpu"),
)
STEPS = [step_data(SHAPES, ("t2i", "edit"), 1, step=step, guided=True, device=CPU) for step in range(4)]
PAIRS = [Pair(*batches) for batches in zip(STEPS[0].student, STEPS[0].fake[0], strict=True)]


def make(compiled: bool = False) -> Distiller:
    base = random_transformer(f"blocks={BLOCKS},width=32,heads=2,text=24,channels=8", CPU)
    networks = roles.build(SplitTransformer, base, RECIPE.model)
    if compiled:
        torch._dynamo.reset()
        networks.compile_blocks("eager")
    return Distiller(networks, RECIPE, CATEGORIES)


def networks_of(module: Distiller) -> RoleNetworks:
    assert isinstance(module.denoiser, RoleNetworks)
    return module.denoiser


class Rehearsing(L.Callback):
    """Rehearses where a run does; afterwards `later` graphs were compiled."""

    known = later = 0

    def __init__(self, pairs: list[Pair]) -> None:
        self.pairs = pairs

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Distiller)
        rehearsal.prepare(module, self.pairs, None, lambda: None)
        self.known = rehearsal.compilations()

    def on_train_end(self, *_: object) -> None:
        self.later = rehearsal.compilations() - self.known


def fit(module: Distiller, steps: list[StepData], callbacks: list[L.Callback]) -> dict[str, Tensor]:
    trainer = quiet_trainer(*callbacks)
    trainer.fit(module, DataLoader(steps, batch_size=None, collate_fn=lambda item: item))  # type: ignore[arg-type]
    return {name: parameter.detach().clone() for name, parameter in module.trained_parameters().items()}


def test_nothing_is_left_to_compile_however_low_the_limit_was(monkeypatch: pytest.MonkeyPatch) -> None:
    callback = Rehearsing(PAIRS[:1])
    monkeypatch.setattr(blocks, "MAX_COMPILED_BODIES", 2)
    # pytest's undoing would hide the setting from all that follows.
    with torch._dynamo.config.patch(recompile_limit=2):
        fit(make(compiled=True), [replace(s, student=s.student[:1], fake=(s.fake[0][:1],)) for s in STEPS], [callback])
    assert callback.known > 2 and callback.later == 0


def test_the_run_is_the_same_in_every_bit() -> None:
    rehearsed, plain = fit(make(), STEPS, [Rehearsing(PAIRS)]), fit(make(), STEPS, [])
    assert all(torch.equal(rehearsed[name], parameter) for name, parameter in plain.items())


def test_a_rehearsal_keeps_neither_gradients_nor_means() -> None:
    module = make()
    calls: list[None] = []
    assert rehearsal.prepare(module, PAIRS, None, lambda: calls.append(None)) == 0
    assert len(calls) == rehearsal.rehearsals(len(PAIRS), chooses=False)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert module.means.pop() == {} and module.num_updates == 0


@pytest.mark.parametrize(
    ("peaks", "limit", "expected"),
    [
        ({1: 20.0, 2: 30.0}, 40, 3),
        ({1: 20.0, 2: 30.0}, 49, 3),
        ({1: 20.0, 2: 30.0}, 50, 4),
        ({1: 20.0, 2: 30.0}, 1000, 4),
        ({1: 20.0, 2: 30.0}, 25, 1),
        ({1: 20.0, 2: 30.0}, 5, 0),
        ({1: 20.0, 2: INFINITE}, 25, 1),
        ({1: 30.0, 2: INFINITE}, 25, 0),
        ({1: INFINITE, 2: INFINITE}, 25, 0),
        ({1: 20.0, 2: 20.0}, 25, 4),
    ],
)
def test_as_many_blocks_are_stored_as_a_line_through_two_peaks_allows(
    peaks: dict[int, float], limit: int, expected: int
) -> None:
    assert rehearsal.affordable(peaks, BLOCKS, limit) == expected


def test_the_shape_that_needs_most_decides_for_both_trained_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    each = {"t2i": 10.0, "edit": 30.0}

    def peak(_module: Distiller, _networks: Sequence[object], pair: Pair, stored: int) -> float:
        return 10.0 + each[pair.student.task] * stored

    monkeypatch.setattr(rehearsal, "_peak", peak)
    module, calls = make(), list[None]()
    assert rehearsal.prepare(module, PAIRS, 101, lambda: calls.append(None)) == 3
    networks = networks_of(module)
    assert [networks.network(role).num_recomputed for role in (STUDENT, FAKE_SCORE)] == [BLOCKS - 3] * 2
    assert len(calls) <= rehearsal.rehearsals(len(PAIRS), chooses=True)


def test_where_all_blocks_fit_each_shape_is_rehearsed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[str, int]] = []

    def peak(_module: Distiller, _networks: Sequence[object], pair: Pair, stored: int) -> float:
        tried.append((pair.student.task, stored))
        return 10.0 * stored

    monkeypatch.setattr(rehearsal, "_peak", peak)
    module, calls = make(), list[None]()
    assert rehearsal.prepare(module, PAIRS, 10 * BLOCKS, lambda: calls.append(None)) == BLOCKS
    assert tried == [("t2i", 0), ("edit", 0), ("t2i", BLOCKS), ("edit", BLOCKS)] and len(calls) == 4


def test_ranks_that_share_a_network_try_no_more_blocks_than_all_expect_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def peak(_module: Distiller, _networks: Sequence[object], _pair: Pair, stored: int) -> float:
        tried.append(stored)
        return 50.0 + 10 * stored

    monkeypatch.setattr(rehearsal, "_peak", peak)
    monkeypatch.setattr(Distiller, "device_mesh", "of two ranks")
    for limit, wanted, stored in (
        (40, [0], 0),
        (55, [0, 1], 0),
        (65, [0, 1], 1),
        (75, [0, 1, 2], 2),
        (200, [0, 1, 2], 4),
    ):
        tried.clear()
        module = make()
        assert rehearsal.prepare(module, PAIRS[:1], limit, lambda: None) == stored
        assert tried == [*wanted, *([stored] if stored else [])]


def test_a_shape_that_needs_more_than_the_hardest_one_without_stored_blocks_lowers_their_number(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lowest, each = {"t2i": 20.0, "edit": 10.0}, {"t2i": 5.0, "edit": 30.0}
    tried: list[tuple[str, int]] = []

    def peak(_module: Distiller, _networks: Sequence[object], pair: Pair, stored: int) -> float:
        tried.append((pair.student.task, stored))
        return lowest[pair.student.task] + each[pair.student.task] * stored

    monkeypatch.setattr(rehearsal, "_peak", peak)
    module, calls = make(), list[None]()
    assert rehearsal.prepare(module, PAIRS, 75, lambda: calls.append(None)) == 2
    first = [("t2i", 0), ("edit", 0), ("t2i", BLOCKS), ("edit", BLOCKS), ("t2i", 1), ("t2i", 2), ("t2i", BLOCKS)]
    assert tried == [*first, ("edit", BLOCKS), ("edit", 3), ("edit", 2)]
    assert [networks_of(module).network(role).num_recomputed for role in (STUDENT, FAKE_SCORE)] == [BLOCKS - 2] * 2
    assert len(calls) <= rehearsal.rehearsals(len(PAIRS), chooses=True)


def test_every_teacher_of_a_task_is_rehearsed_at_few_steps() -> None:
    assert rehearsal._covering([[True, False, False], [True, True, False], [False, True, True]]) == [1, 2]
    assert rehearsal._covering([[True], [True]]) == [1]


def test_specialists_are_run_whatever_the_rows_at_hand() -> None:
    """Every teacher with weight in a planned category, though the batch at hand gives it none."""
    guidance = Guidance(tables={"t2i": [[0.0, 1.0], [1.0, 0.0]], "edit": [[1.0, 0.0]] * 2})
    recipe = replace(RECIPE, teachers=Teachers(specialists={"text": "-"}, cfg_scale=2.0), guidance=guidance)
    base = random_transformer(f"blocks={BLOCKS},width=32,heads=2,text=24,channels=8", CPU)
    other = random_transformer(f"blocks={BLOCKS},width=32,heads=2,text=24,channels=8", CPU)
    networks = roles.build(SplitTransformer, base, recipe.model, specialists={"text": other})
    module, evaluated = Distiller(networks, recipe, CATEGORIES), set[str]()
    module.teachers.skips_unweighted = True
    module.lambdas[CATEGORIES.index("t2i/any")] = torch.tensor([1.0, 0.0])
    velocity = networks.velocity

    def noted(prefix: object, x_t: Tensor, t: Tensor, role: str) -> Tensor:
        evaluated.add(role)
        return velocity(prefix, x_t, t, role)  # type: ignore[arg-type]

    networks.velocity = noted  # type: ignore[method-assign]
    rehearsal.prepare(module, PAIRS[:1], None, lambda: None)
    assert evaluated == {STUDENT, FAKE_SCORE, *roles.teacher_roles(recipe.teachers)}
    assert module.teachers.skips_unweighted
