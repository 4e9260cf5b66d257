"""The two-stream forward against diffusers' own: every sample of a padded batch equals its own unpadded stock forward,
in its velocity and in the gradient of every weight, and so does every role over a shared base."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn
from two_streams import CHANNELS, random_condition, random_transformer

from workbench.backbones import lora, roles
from workbench.backbones.base import RoleNetworks
from workbench.backbones.qwen_image.transformer import DualTransformer
from workbench.backbones.roles import FAKE_SCORE, STUDENT, TEACHER
from workbench.batch import Condition, Layout, Reference
from workbench.common.errors import UserError
from workbench.recipe.config import Model

TIMES = torch.tensor([1.0, 0.7, 0.05])
LAYOUTS = {
    "t2i": Layout(11, 4, 6),
    "t2i, odd sides": Layout(7, 3, 5),
    "one reference": Layout(15, 4, 4, (Reference(3, 4, 4, 4),)),
    "two references of other sizes": Layout(24, 6, 4, (Reference(2, 2, 4, 2), Reference(7, 4, 10, 6))),
    "three references": Layout(16, 4, 4, (Reference(2, 4, 2, 2), Reference(6, 3, 3, 2), Reference(9, 6, 4, 1))),
}
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
zero_cond_t = pytest.mark.parametrize("zero_cond_t", [False, True], ids=["2509", "2511"])


def padded_condition(layout: Layout, seed: int = 0) -> Condition:
    """Three samples of 0, 1 and 3 tokens of padding."""
    return random_condition(layout, [layout.text_tokens - padding for padding in (0, 1, 3)], seed)


def noise_of(layout: Layout) -> Tensor:
    return torch.randn(3, layout.num_target_tokens, CHANNELS, generator=torch.Generator().manual_seed(1))


def single(transformer: QwenImageTransformer2DModel, role: str = TEACHER, checkpointing: bool = False) -> RoleNetworks:
    return RoleNetworks({role: DualTransformer(transformer, checkpointing)}, {role: role})


def velocity(networks: RoleNetworks, condition: Condition, role: str = TEACHER) -> Tensor:
    return networks.velocity(networks.prefix(condition, role), noise_of(condition.layout), TIMES, role)


def stock_velocity(transformer: QwenImageTransformer2DModel, condition: Condition) -> Tensor:
    """Every sample alone and unpadded, as the pipelines call the model."""
    layout, x_t = condition.layout, noise_of(condition.layout)
    shapes = [(1, layout.height, layout.width), *((1, item.height, item.width) for item in layout.references)]
    outputs = []
    for row, length in enumerate(condition.lengths.tolist()):
        references = condition.references[row : row + 1] if condition.references is not None else x_t[:1, :0]
        output = transformer(
            hidden_states=torch.cat([x_t[row : row + 1], references], dim=1),
            encoder_hidden_states=condition.prompt[row : row + 1, :length],
            encoder_hidden_states_mask=torch.ones(1, length, dtype=torch.long),
            timestep=TIMES[row : row + 1],
            img_shapes=[shapes],
            return_dict=False,
        )[0]
        outputs.append(output[:, : layout.num_target_tokens])
    return torch.cat(outputs)


def gradients(output: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    found = torch.autograd.grad(output.square().sum(), list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To 1e-4 of the largest entry of each tensor; what rounding leaves of a zero is nothing."""
    largest = max(float(tensor.detach().abs().max()) for tensor in expected.values())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        bound = 1e-4 * float(tensor.detach().abs().max()) + 1e-6 * largest
        assert float((found[name] - tensor).detach().abs().max()) <= bound, name


@zero_cond_t
@layouts
def test_padded_batch_equals_each_unpadded_stock_forward(layout: Layout, zero_cond_t: bool) -> None:
    transformer, condition = random_transformer(zero_cond_t), padded_condition(layout)
    parameters = dict(transformer.named_parameters())
    ours, stock = velocity(single(transformer), condition), stock_velocity(transformer, condition)
    assert_same({"velocity": ours}, {"velocity": stock})
    assert_same(gradients(ours, parameters), gradients(stock, parameters))


def test_references_read_at_t_zero_are_another_network() -> None:
    condition = padded_condition(LAYOUTS["one reference"])
    both = [velocity(single(random_transformer(zero)), condition) for zero in (False, True)]
    assert (both[0] - both[1]).abs().max() > 1e-2
    alone = [velocity(single(random_transformer(zero)), padded_condition(LAYOUTS["t2i"])) for zero in (False, True)]
    assert torch.equal(*alone)


@torch.no_grad()
def test_a_prefix_serves_every_time_and_one_of_one_row_serves_many() -> None:
    networks, condition = single(random_transformer()), padded_condition(LAYOUTS["one reference"])
    assert condition.references is not None
    first = replace(
        condition, prompt=condition.prompt[:1], lengths=condition.lengths[:1], references=condition.references[:1]
    )
    many = replace(
        condition,
        prompt=first.prompt.expand(3, -1, -1),
        lengths=first.lengths.expand(3),
        references=condition.references[:1].expand(3, -1, -1),
    )
    expected = velocity(networks, many)
    shared = networks.prefix(first, TEACHER)
    for _ in range(2):
        found = networks.velocity(shared, noise_of(condition.layout), TIMES, TEACHER)
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_neither_the_content_of_padding_nor_a_mask_without_padding_matters() -> None:
    networks, layout = single(random_transformer()), LAYOUTS["one reference"]
    condition = padded_condition(layout)
    before = velocity(networks, condition)
    condition.prompt[2, -3:] = 100.0
    torch.testing.assert_close(velocity(networks, condition), before)
    full = replace(condition, lengths=torch.full((3,), layout.text_tokens))
    unmasked = replace(full, layout=replace(layout, padded=False))
    assert networks.prefix(unmasked, TEACHER).key_valid is None  # type: ignore[attr-defined]
    torch.testing.assert_close(velocity(networks, unmasked), velocity(networks, full))


@torch.no_grad()
def test_a_prefix_is_rebuilt_from_its_tensors() -> None:
    """As a recorded evaluation does it: another condition's velocity with that one's tensors."""
    networks, layout = single(random_transformer()), LAYOUTS["one reference"]
    one, other = (networks.prefix(padded_condition(layout, seed), TEACHER) for seed in (0, 1))
    expected = velocity(networks, padded_condition(layout, 1))
    found = networks.velocity(one.over(other.tensors()), noise_of(layout), TIMES, TEACHER)
    assert torch.equal(found, expected)
    assert not torch.equal(networks.velocity(one, noise_of(layout), TIMES, TEACHER), expected)


@torch.no_grad()
def test_prompt_and_empty_prompt_are_what_each_is_alone() -> None:
    networks = single(random_transformer())
    cond, uncond = (padded_condition(LAYOUTS["one reference"], seed) for seed in (0, 1))
    prefixes = networks.prefixes(cond, uncond, TEACHER)
    for prefix, condition in zip(prefixes, (cond, uncond), strict=True):
        assert prefix is not None
        assert all(map(torch.equal, prefix.tensors(), networks.prefix(condition, TEACHER).tensors()))


@zero_cond_t
@pytest.mark.parametrize("checkpointing", [False, True], ids=["stored", "recomputed"])
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_every_role_is_a_stock_network_of_its_merged_weights(kind: str, checkpointing: bool, zero_cond_t: bool) -> None:
    """Velocity of each, and the student's gradient with the others run in between; an adapter's follows from that of
    its layer by the chain rule."""
    model = Model(roles=kind, lora_rank=3, lora_alpha=2.0, gradient_checkpointing=checkpointing)  # type: ignore[arg-type]
    networks = roles.build(DualTransformer, random_transformer(zero_cond_t), model)
    generator, condition = torch.Generator().manual_seed(2), padded_condition(LAYOUTS["one reference"])
    with torch.no_grad():
        for parameter in networks.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    plain = {role: random_transformer(zero_cond_t) for role in (STUDENT, FAKE_SCORE, TEACHER)}
    for role, transformer in plain.items():
        transformer.load_state_dict(roles.merged_state(networks, role))
    expected = {role: stock_velocity(transformer, condition) for role, transformer in plain.items()}

    student = velocity(networks, condition, STUDENT)
    others = {role: velocity(networks, condition, role) for role in (FAKE_SCORE, TEACHER)}
    assert_same({STUDENT: student, **others}, expected)
    assert all((others[role] - student).abs().max() > 1e-2 for role in others)
    named = networks.network(STUDENT).transformer.named_parameters()
    found = gradients(student, {n: p for n, p in named if p.requires_grad and FAKE_SCORE not in n.split(".")})
    stock = gradients(expected[STUDENT], dict(plain[STUDENT].named_parameters()))
    linears = dict(lora.role_linears(networks.network(STUDENT).transformer))
    assert len(linears) == (2 * 14 if kind == "lora" else 0)
    assert_same(found, of_adapters(linears, stock) if linears else stock)


def of_adapters(linears: dict[str, lora.RoleLinear], of_weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the student's adapters by the chain rule: W + scaling up down."""
    found = {}
    for name, layer in linears.items():
        update, gradient = layer.update(STUDENT, torch.float32), of_weights[f"{name}.weight"]
        found[f"{name}.lora_A.{STUDENT}.weight"] = update.scaling * update.up.detach().T @ gradient
        found[f"{name}.lora_B.{STUDENT}.weight"] = update.scaling * gradient @ update.down.detach().T
    return found


@pytest.mark.parametrize("option", ["guidance_embeds", "use_additional_t_cond", "use_layer3d_rope"])
def test_options_of_other_pipelines_are_refused_by_name(option: str) -> None:
    with pytest.raises(UserError, match=option):
        DualTransformer(random_transformer(**{option: True}))
