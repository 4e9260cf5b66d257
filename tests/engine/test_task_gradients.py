"""Each task's share of an accumulated gradient, against the gradient of that task alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from distiller_fakes import fit, make_recipe, regroup, step_data, take
from torch import Tensor, nn

from workbench.batch import Batch
from workbench.engine.task_gradients import TaskGradients
from workbench.recipe.config import Dmd, Trainer

pytestmark = pytest.mark.filterwarnings("ignore")


def network() -> nn.ModuleDict:
    """Both tasks read `shared`; each has a layer that the other never touches."""
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(3, 3).double() for name in ("shared", "t2i", "edit")})


def loss(layers: nn.ModuleDict, task: str, seed: int) -> Tensor:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return layers[task](layers["shared"](x).tanh()).square().mean()


def gradient(layers: nn.ModuleDict, batches: list[tuple[str, int]]) -> Tensor:
    total = torch.stack([loss(layers, *batch) for batch in batches]).sum()
    found = torch.autograd.grad(total, [*layers.parameters()], allow_unused=True, materialize_grads=True)
    return torch.cat([part.flatten() for part in found])


@pytest.mark.parametrize(
    "batches",
    [
        [("t2i", 0), ("edit", 1)],
        [("t2i", 0), ("t2i", 1), ("edit", 2), ("edit", 3), ("edit", 4)],
        [("edit", 0), ("t2i", 1), ("t2i", 2)],
    ],
)
def test_the_share_of_a_task_is_the_gradient_of_its_batches_alone(batches: list[tuple[str, int]]) -> None:
    layers = network()
    looked = TaskGradients([*layers.parameters()], [task for task, _ in batches])
    for i, batch in enumerate(batches):
        loss(layers, *batch).backward()
        looked.after(i)
    alone = {task: gradient(layers, [batch for batch in batches if batch[0] == task]) for task in ("t2i", "edit")}
    assert looked.norms.keys() == alone.keys()
    for task, expected in alone.items():
        torch.testing.assert_close(looked.norms[task], expected.norm())
    total = gradient(layers, batches)
    accumulated = torch.cat([p.grad.flatten() for p in layers.parameters() if p.grad is not None])
    torch.testing.assert_close(accumulated, total)
    cosine = torch.cosine_similarity(alone["t2i"], alone["edit"], dim=0)
    torch.testing.assert_close(looked.cosine(total.norm()), cosine)


def halves(batch: Batch) -> list[Batch]:
    return [take(batch, range(2)), take(batch, range(2, len(batch.rows)))]


@pytest.mark.parametrize("split", [lambda batch: [batch], halves], ids=["one batch a task", "micro-batches"])
def test_looking_changes_no_bit_and_happens_every_so_often(split: object) -> None:
    data = [regroup(step_data(step, fake_updates=1), split) for step in range(6)]
    found = {}
    for every in (0, 3):
        trainer = Trainer(updates=6, accelerator="cpu", max_skipped_updates=1, task_gradients_every=every)
        distiller, gradients = fit(make_recipe(6, trainer=trainer), data)
        found[every] = (distiller, gradients.of_student, distiller.means.pop())
    plain, looking = found[0], found[3]
    for left, right in zip(plain[1], looking[1], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(left, right, strict=True))
    ours, theirs = looking[0].trained_parameters(), plain[0].trained_parameters()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    new = {name for name in looking[2].keys() - plain[2].keys() if not name.startswith("per_step/")}
    assert new == {"task_gradients/norm/t2i", "task_gradients/norm/edit", "task_gradients/cosine"}
    shared = {name: value for name, value in looking[2].items() if name in plain[2]}
    assert shared == plain[2]


def test_a_single_look_agrees_with_the_norm_of_the_whole_gradient() -> None:
    trainer = Trainer(updates=1, accelerator="cpu", max_skipped_updates=1, task_gradients_every=1)
    _, gradients = fit(make_recipe(1, trainer=trainer, dmd=Dmd(student_steps=1)), [step_data(0)])
    means = fit(make_recipe(1, trainer=trainer, dmd=Dmd(student_steps=1)), [step_data(0)])[0].means.pop()
    t2i, edit, cosine = (means[f"task_gradients/{name}"] for name in ("norm/t2i", "norm/edit", "cosine"))
    whole = torch.cat([one.flatten() for one in gradients.of_student[0]]).norm()
    assert means["per_step/gradient_norm/t2i/step0"] == t2i
    assert t2i**2 + edit**2 + 2 * t2i * edit * cosine == pytest.approx(float(whole) ** 2, rel=1e-4)


def test_one_task_alone_has_nothing_to_compare() -> None:
    trainer = Trainer(updates=1, accelerator="cpu", max_skipped_updates=1, task_gradients_every=1)
    data = step_data(0)
    alone = replace(data, student=data.student[:1])
    means = fit(make_recipe(1, trainer=trainer), [alone])[0].means.pop()
    assert not any(name.startswith("task_gradients/") for name in means)
