"""Roles: what each one computes and learns equals a network of its own, whoever else runs in between."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from diffusers import QwenImage21Transformer2DModel
from single_network import single_role
from torch import Tensor, nn

from workbench.backbones import lora, lora_files, roles
from workbench.backbones.base import RoleDenoiser, RoleNetworks
from workbench.backbones.qwen_image_21.transformer import SplitTransformer
from workbench.backbones.roles import FAKE_SCORE, STUDENT, TEACHER
from workbench.batch import Condition, Layout, Reference
from workbench.common.errors import UserError
from workbench.method import rollout
from workbench.modules.distiller import Distiller
from workbench.modules.student import StudentModule
from workbench.recipe.config import Dmd, Model, Recipe, Teachers

SPECIALIST = "teacher_text"
Kind = Literal["full", "lora"]


def random_transformer(seed: int) -> QwenImage21Transformer2DModel:
    model = QwenImage21Transformer2DModel(
        in_channels=8,
        out_channels=8,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=24,
        axes_dims_rope=(4, 6, 6),
    )
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.eval()


def specialist_adapter() -> lora_files.Adapter:
    generator = torch.Generator().manual_seed(7)
    linears = [(n, m) for n, m in random_transformer(0).transformer_blocks.named_modules() if isinstance(m, nn.Linear)]
    return {
        f"transformer_blocks.{name}": lora_files.AdapterLayer(
            0.5 * torch.randn(2, linear.in_features, generator=generator),
            0.5 * torch.randn(linear.out_features, 2, generator=generator),
            1.5,
        )
        for name, linear in linears[::3]
    }


def build(kind: Kind, gradient_checkpointing: bool = False, low_rank: bool = False) -> RoleNetworks:
    """Roles whose weights differ, as after some training; the specialist has full or low-rank weights."""
    model = Model(roles=kind, lora_rank=3, lora_alpha=2.0, gradient_checkpointing=gradient_checkpointing)
    specialist = specialist_adapter() if low_rank else random_transformer(1)
    denoiser = roles.build(SplitTransformer, random_transformer(0), model, specialists={"text": specialist})
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return denoiser


def alone(denoiser: RoleNetworks, role: str) -> RoleNetworks:
    """A plain transformer of its own that holds the merged weights of `role`."""
    transformer = random_transformer(3)
    transformer.load_state_dict(roles.merged_state(denoiser, role))
    return single_role(transformer, role)


@pytest.fixture
def condition() -> Condition:
    generator = torch.Generator().manual_seed(4)
    layout = Layout(9, 4, 4, (Reference(3, 2, 4, 2),))
    return Condition(
        prompt=torch.randn(2, 9, 24, generator=generator),
        lengths=torch.tensor([9, 7]),
        layout=layout,
        references=torch.randn(2, 8, 8, generator=generator),
    )


@pytest.fixture
def noise() -> Tensor:
    return torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(5))


def student_gradients(
    denoiser: RoleNetworks, condition: Condition, noise: Tensor, between: Callable[[], None]
) -> dict[str, Tensor]:
    """Gradients of a loss on the student's third step, with `between` run before the backward."""
    student = StudentModule(RoleDenoiser(denoiser, STUDENT), rollout.time_grid(4, 3.0), "euler")
    x = student.graded_sample(condition, noise, 2, None)
    between()
    x.square().mean().backward()
    named = denoiser.network(STUDENT).transformer.named_parameters()
    return {name: parameter.grad for name, parameter in named if parameter.grad is not None}


@pytest.mark.parametrize("low_rank", [False, True], ids=["full", "low-rank"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_merged_weights_in_a_plain_transformer_are_the_role(
    kind: Kind, low_rank: bool, condition: Condition, noise: Tensor
) -> None:
    denoiser, t = build(kind, low_rank=low_rank), torch.tensor([0.9, 0.3])
    outputs = []
    for role in (STUDENT, FAKE_SCORE, TEACHER, SPECIALIST):
        with torch.no_grad():
            outputs.append(denoiser.velocity(denoiser.prefix(condition, role), noise, t, role))
            plain = alone(denoiser, role)
            torch.testing.assert_close(outputs[-1], plain.velocity(plain.prefix(condition, role), noise, t, role))
    assert all((left - right).abs().max() > 1e-2 for left, right in zip(outputs, outputs[1:], strict=False))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "checkpointed"])
@pytest.mark.parametrize("low_rank", [False, True], ids=["full", "low-rank"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_interleaved_roles_leave_the_student_its_own_gradient(
    kind: Kind, low_rank: bool, checkpointing: bool, condition: Condition, noise: Tensor
) -> None:
    """Compared with a student in a network of its own; a low-rank gradient follows from its by the chain rule."""
    denoiser = build(kind, checkpointing, low_rank)
    separate = alone(denoiser, STUDENT)
    expected = student_gradients(separate, condition, noise, lambda: None)

    def others() -> None:
        t = torch.tensor([0.5, 0.6])
        for role in (FAKE_SCORE, TEACHER, SPECIALIST, STUDENT):
            with torch.no_grad():
                denoiser.velocity(denoiser.prefix(condition, role), noise, t, role)
        denoiser.velocity(denoiser.prefix(condition, FAKE_SCORE), noise, t, FAKE_SCORE)

    gradients = student_gradients(denoiser, condition, noise, others)
    linears = dict(lora.role_linears(denoiser.network(STUDENT).transformer))
    assert len(linears) == (14 if kind == "lora" else 0)
    for name, layer in linears.items():
        gradient = expected.pop(f"{name}.weight")
        up, down = layer.lora_B[STUDENT].weight.detach(), layer.lora_A[STUDENT].weight.detach()
        expected[f"{name}.lora_A.{STUDENT}.weight"] = layer.scaling[STUDENT] * up.T @ gradient
        expected[f"{name}.lora_B.{STUDENT}.weight"] = layer.scaling[STUDENT] * gradient @ down.T
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    trained = {name for name, parameter in denoiser.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in trainable(denoiser) if STUDENT in name.split(".")}


def trainable(denoiser: RoleNetworks) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in denoiser.named_parameters() if parameter.requires_grad]


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_every_trainable_parameter_has_one_owner_and_no_teacher_is_among_them(kind: Kind) -> None:
    denoiser = build(kind)
    recipe = Recipe(teachers=Teachers(specialists={"text": "folder"}), dmd=Dmd(student_steps=4))
    distiller = Distiller(denoiser, recipe, ["t2i/text"])
    student, fake = (roles.trained_parameters(distiller.denoiser, role) for role in (STUDENT, FAKE_SCORE))
    assert student and fake and not student.keys() & fake.keys()
    assert not {id(parameter) for parameter in student.values()} & {id(parameter) for parameter in fake.values()}
    assert {**student, **fake} == dict(trainable(denoiser))
    assert not roles.trained_parameters(distiller.denoiser, SPECIALIST)
    assert len(list(distiller.parameters())) == len(list(denoiser.parameters()))


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_student_and_fake_score_start_as_the_teacher(kind: Kind, condition: Condition, noise: Tensor) -> None:
    denoiser, t = roles.build(SplitTransformer, random_transformer(0), Model(roles=kind)), torch.tensor([0.9, 0.3])
    outputs = [
        denoiser.velocity(denoiser.prefix(condition, role), noise, t, role) for role in (TEACHER, STUDENT, FAKE_SCORE)
    ]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_a_run_may_start_from_an_earlier_student() -> None:
    base, earlier = random_transformer(0), random_transformer(1)
    reference, start = copy.deepcopy(earlier.state_dict()), base.state_dict()
    denoiser = roles.build(SplitTransformer, base, Model(roles="full"), student=earlier)
    for role, expected in ((STUDENT, reference), (FAKE_SCORE, start), (TEACHER, start)):
        merged = roles.merged_state(denoiser, role)
        assert merged.keys() == expected.keys()
        assert all(torch.equal(merged[name], expected[name]) for name in expected)
    with pytest.raises(UserError, match="use roles=full"):
        roles.build(SplitTransformer, base, Model(roles="lora"), student=earlier)
