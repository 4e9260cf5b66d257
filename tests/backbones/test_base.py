"""The contract of a denoiser, through a family whose text depends on t and whose images have any number of slots."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from distiller_fakes import CATEGORIES, NO_CLIP, fit
from toy_network import CHANNELS, PROMPT_WIDTH, ToyDenoiser, ToyTransformer

from workbench.backbones import roles
from workbench.backbones.base import RoleDenoiser, RoleNetworks
from workbench.backbones.roles import FAKE_SCORE, STUDENT, TEACHER
from workbench.batch import Batch, Condition, Layout, Reference, StepData, Task
from workbench.recipe.config import Dmd, Mixture, Model, Optim, Recipe, Teachers, Trainer

EDIT = Layout(9, 4, 4, (Reference(2, 2, 4, 5),))
LAYOUTS: dict[Task, tuple[Layout, Layout]] = {"t2i": (Layout(5, 4, 4), Layout(2, 4, 4)), "edit": (EDIT, EDIT)}


def condition(layout: Layout, rows: int, seed: int) -> Condition:
    generator = torch.Generator().manual_seed(seed)
    num_references = sum(item.num_tokens for item in layout.references)
    references = torch.randn(rows, num_references, CHANNELS, generator=generator) if num_references else None
    prompt = torch.randn(rows, layout.text_tokens, PROMPT_WIDTH, generator=generator)
    lengths = torch.full((rows,), layout.text_tokens)
    lengths[0] -= int(rows > 1)
    return Condition(prompt, lengths, layout, references)


def batch(task: Task, seed: int) -> Batch:
    cond, uncond = LAYOUTS[task]
    return Batch(
        task=task,
        condition=condition(cond, 3, seed),
        uncond=condition(uncond, 1 if task == "t2i" else 3, 0),
        target=None,
        rows=torch.arange(3),
        weight=torch.ones(3),
        num_samples=3,
        category=torch.full((3,), CATEGORIES.index(f"{task}/text")),
        sample_ids=("a", "b", "c"),
        uncond_is_constant=task == "t2i",
    )


def build(kind: Literal["full", "lora"]) -> RoleNetworks:
    specialists = {"text": ToyTransformer(1)}
    return roles.build(ToyDenoiser, ToyTransformer(0), Model(roles=kind, lora_rank=2), specialists=specialists)


@pytest.mark.parametrize("fake_samples", ["fresh", "student_rollout"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_another_family_is_distilled_by_the_contract_alone(
    kind: Literal["full", "lora"], fake_samples: Literal["fresh", "student_rollout"]
) -> None:
    networks, updates = build(kind), 4
    recipe = Recipe(
        model=Model(roles=kind, lora_rank=2),
        teachers=Teachers(specialists={"text": "folder"}, cfg_scale=3.0),
        mixture=Mixture(batch_size=6),
        dmd=Dmd(student_steps=2, fake_updates=1, fake_samples=fake_samples),
        optim=Optim(student_clip=NO_CLIP, fake_clip=NO_CLIP, student_lr=0.01, fake_lr=0.01, warmup_updates=0),
        trainer=Trainer(updates=updates, accelerator="cpu"),
    )
    data = [
        StepData(step, (batch("t2i", step), batch("edit", step)), ((batch("t2i", 9), batch("edit", 9)),))
        for step in range(updates)
    ]
    before = {role: roles.merged_state(networks, role) for role in (STUDENT, FAKE_SCORE, TEACHER)}
    fit(recipe, data, networks)
    for role, state in before.items():
        after = roles.merged_state(networks, role)
        assert state.keys() == after.keys() == ToyTransformer().state_dict().keys()
        changed = any(not torch.equal(after[name], tensor) for name, tensor in state.items())
        assert changed == (role != TEACHER), role


@torch.no_grad()
def test_a_role_is_its_merged_weights() -> None:
    networks, given = build("lora"), condition(EDIT, 2, 3)
    generator = torch.Generator().manual_seed(0)
    for parameter in networks.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    x_t, t = torch.randn(2, 16, CHANNELS, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, 0.9])
    found = []
    for role in (STUDENT, FAKE_SCORE, TEACHER, f"{TEACHER}_text"):
        merged = ToyTransformer()
        merged.load_state_dict(roles.merged_state(networks, role))
        network, alone = RoleDenoiser(networks, role), RoleDenoiser(ToyDenoiser(merged), role)
        found.append(network.velocity(network.prefix(given), x_t, t))
        torch.testing.assert_close(found[-1], alone.velocity(alone.prefix(given), x_t, t))
    assert not any(torch.allclose(one, found[0]) for one in found[1:])


@torch.no_grad()
def test_a_prefix_is_rebuilt_from_its_tensors_whatever_it_holds() -> None:
    network = RoleDenoiser(build("full"), STUDENT)
    x_t, t = torch.randn(2, 16, CHANNELS, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, 0.9])
    for layouts in LAYOUTS.values():
        one, other = (network.prefix(condition(layouts[0], 2, seed)) for seed in (1, 2))
        expected = network.velocity(other, x_t, t)
        assert torch.equal(network.velocity(one.over(other.tensors()), x_t, t), expected)
        assert not torch.equal(network.velocity(one, x_t, t), expected)
