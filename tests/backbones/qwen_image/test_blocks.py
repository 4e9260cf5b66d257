"""Compiled and recomputed blocks give the gradients of eager ones, and keep the memory that is planned."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from two_streams import random_condition, random_transformer

from workbench.backbones import roles
from workbench.backbones.base import RoleNetworks
from workbench.backbones.fp8 import Fp8Linear
from workbench.backbones.qwen_image.transformer import DualTransformer
from workbench.backbones.roles import FAKE_SCORE, STUDENT, TEACHER
from workbench.batch import Condition, Layout, Reference
from workbench.recipe.config import Model

BLOCKS = 3
Kind = Literal["full", "lora"]


def build(
    kind: Kind, stored: int = BLOCKS, dtype: torch.dtype | None = None, frozen: Literal["auto", "fp8"] = "auto"
) -> RoleNetworks:
    """Roles that differ, the references read at t = 0."""
    base = random_transformer(zero_cond_t=True, num_layers=BLOCKS, heads=4, std=0.1)
    model = Model(roles=kind, lora_rank=4, gradient_checkpointing=True, stored_blocks=stored, frozen=frozen)
    generator = torch.Generator().manual_seed(0)
    networks = roles.build(DualTransformer, base, model, frozen_dtype=dtype)
    with torch.no_grad():
        for parameter in networks.parameters():
            if parameter.requires_grad:
                parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    return networks


@pytest.fixture
def condition() -> Condition:
    return make_condition(padded=True)


def make_condition(padded: bool) -> Condition:
    layout = Layout(24, 8, 8, (Reference(3, 8, 6, 16),), padded=padded)
    return random_condition(layout, [24, 21 if padded else 24])


def evaluate(networks: RoleNetworks, condition: Condition, role: str = STUDENT) -> Tensor:
    x_t = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(2))
    return networks.velocity(networks.prefix(condition, role), x_t, torch.tensor([0.9, 0.3]), role)


def gradients(networks: RoleNetworks, condition: Condition) -> dict[str, Tensor]:
    """Of both trained roles, whose backward passes come after everybody's forward."""
    losses = [evaluate(networks, condition, role).float().square().mean() for role in (STUDENT, FAKE_SCORE)]
    with torch.no_grad():
        evaluate(networks, condition, TEACHER)
    sum(losses, torch.zeros(())).backward()
    return {name: p.grad for name, p in networks.named_parameters() if p.grad is not None}


def without_gradient(networks: RoleNetworks) -> set[str]:
    return {name for name, p in networks.named_parameters() if p.requires_grad and p.grad is None}


@pytest.mark.parametrize(("kind", "padded"), [("full", True), ("lora", False)])
def test_compiled_and_recomputed_blocks_give_the_gradients_of_eager_ones(kind: Kind, padded: bool) -> None:
    """And one compiled body serves every block and role: with gradient and adapter, and without either."""
    condition = make_condition(padded)
    expected = gradients(build(kind), condition)
    compiled = build(kind, stored=1)
    compiled.compile_blocks("aot_eager")
    torch._dynamo.reset()
    counters.clear()
    found = gradients(compiled, condition)
    assert counters["stats"]["unique_graphs"] == 2
    # What nothing reads has no gradient in eager blocks and one of zeros in compiled ones.
    assert expected.keys() <= found.keys()
    assert not any(found[name].any() for name in found.keys() - expected.keys())
    for name, gradient in expected.items():
        difference = float((found[name] - gradient).abs().max())
        assert difference <= 1e-4 * float(gradient.abs().max()), name


def test_the_last_text_alone_learns_nothing(condition: Condition) -> None:
    """Nothing reads what the last block makes of the text, in diffusers' model either; all else is trained, over a
    bfloat16 base in float32."""
    networks = build("lora", dtype=torch.bfloat16)
    found = gradients(networks, condition)
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    last = f"blocks.{BLOCKS - 1}.block."
    unread = (f"{last}{name}" for name in ("attn.to_add_out", "txt_mlp"))
    expected = {name for part in unread for name, _ in networks.named_parameters() if part in name and ".lora_" in name}
    assert without_gradient(networks) == expected


def test_products_in_8_bits_give_about_the_same_gradients_and_keep_as_much(condition: Condition) -> None:
    plain, quantised = (build("lora", dtype=torch.bfloat16, frozen=frozen) for frozen in ("auto", "fp8"))
    layers = [name for name, module in quantised.named_modules() if isinstance(module, Fp8Linear)]
    assert len(layers) == BLOCKS * 12 and not any("_mod." in name for name in layers)
    expected, found = gradients(plain, condition), gradients(quantised, condition)
    assert expected.keys() == found.keys()
    left, right = (torch.cat([grads[name].flatten() for name in expected]) for grads in (expected, found))
    assert torch.nn.functional.cosine_similarity(left, right, dim=0) > 0.99
    planned = [n.network(STUDENT).activation_bytes(condition, STUDENT, torch.bfloat16) for n in (plain, quantised)]
    assert planned[0] == planned[1]


def kept_bytes(networks: RoleNetworks, condition: Condition) -> int:
    """Bytes behind all tensors that a graded evaluation really saves for its backward pass, weights aside."""
    own = {parameter.untyped_storage()._cdata for parameter in networks.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        assert evaluate(networks, condition).requires_grad
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in own)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_activations_are_those_that_a_run_keeps(kind: Kind, condition: Condition) -> None:
    networks = build(kind)
    planned = networks.network(STUDENT).activation_bytes(condition, STUDENT, torch.float32)
    assert planned == pytest.approx(kept_bytes(networks, condition), rel=0.15)


def test_recomputed_blocks_keep_far_less(condition: Condition) -> None:
    def planned(stored: int, dtype: torch.dtype = torch.float32) -> int:
        return build("lora", stored).network(STUDENT).activation_bytes(condition, STUDENT, dtype)

    counts = [planned(stored) for stored in range(BLOCKS + 1)]
    assert counts[1:] == sorted(counts[1:]) and counts[0] < counts[BLOCKS] / 2
    assert 0.4 * counts[BLOCKS] < planned(BLOCKS, torch.bfloat16) < 0.8 * counts[BLOCKS]


@torch.no_grad()
def test_a_prefix_is_embedded_text_and_references(condition: Condition) -> None:
    networks = build("lora")
    prefix = networks.prefix(condition, STUDENT)
    held = sum(t.numel() * t.element_size() for t in prefix.tensors() if t.shape[-1] == networks.num_features)
    assert networks.network(STUDENT).prefix_bytes(condition, torch.float32) == held
