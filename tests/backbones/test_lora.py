"""Adapters by argument of the forward: identities of one layer, and who gets a gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from workbench.backbones import lora
from workbench.method import rng


def adapted(*roles: str, rank: int = 2, alpha: float = 3.0) -> lora.RoleLinear:
    torch.manual_seed(0)
    layer = lora.RoleLinear(nn.Linear(5, 4))
    for role in roles:
        layer.add_adapter(role, rank, alpha, rng.generator(0, role, 0))
    return layer


def randomise(layer: lora.RoleLinear) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in (*layer.lora_A.parameters(), *layer.lora_B.parameters()):
        nn.init.normal_(parameter, generator=generator)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(2))


def test_a_fresh_adapter_is_the_identity_and_can_learn(x: Tensor) -> None:
    layer = adapted("student")
    y = layer(x, "student")
    assert torch.equal(y, layer.base_layer(x))
    y.square().sum().backward()
    assert layer.lora_B["student"].weight.grad.abs().max() > 0


def test_a_role_sees_its_own_low_rank_update_alone(x: Tensor) -> None:
    layer = adapted("student", "fake_score")
    randomise(layer)
    base = layer.base_layer
    for role in ("student", "fake_score"):
        merged = base.weight + 3.0 / 2 * layer.lora_B[role].weight @ layer.lora_A[role].weight
        torch.testing.assert_close(layer(x, role), nn.functional.linear(x, merged, base.bias))
    for role in ("teacher", None):
        assert torch.equal(layer(x, role), base(x))


def test_only_the_role_that_ran_gets_a_gradient(x: Tensor) -> None:
    layer = adapted("student", "fake_score")
    randomise(layer)
    layer(x, "student").sum().backward()
    with_gradient = {name for name, parameter in layer.named_parameters() if parameter.grad is not None}
    assert with_gradient == {"lora_A.student.weight", "lora_B.student.weight"}


def test_adapters_depend_on_their_generator_alone() -> None:
    first = adapted("student").lora_A["student"].weight
    torch.manual_seed(99)
    again = lora.RoleLinear(nn.Linear(5, 4))
    again.add_adapter("student", 2, 3.0, rng.generator(0, "student", 0))
    assert torch.equal(first, again.lora_A["student"].weight)
    assert not torch.equal(first, adapted("fake_score").lora_A["fake_score"].weight)


def test_install_wraps_every_linear_layer_once(x: Tensor) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 5), nn.Sequential(nn.Tanh(), nn.Linear(5, 5)))
    before = network(x)
    lora.install(network)
    lora.install(network)
    assert [name for name, _ in lora.role_linears(network)] == ["0", "1.1"]
    assert all(isinstance(layer.base_layer, nn.Linear) for _, layer in lora.role_linears(network))
    after = network[1][1](network[1][0](network[0](x, "any")), "any")
    assert torch.equal(before, after)
    assert not any(parameter.requires_grad for parameter in network.parameters())
