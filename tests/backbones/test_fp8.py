"""Frozen blocks in 8-bit floats: the arithmetic, what adapters over them learn, and what leaves the run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from workbench.backbones import fp8, lora, placement, roles
from workbench.backbones.base import RoleNetworks
from workbench.backbones.load import load_for_training, load_roles
from workbench.backbones.qwen_image_21.transformer import SplitTransformer
from workbench.backbones.roles import FAKE_SCORE, STUDENT, TEACHER
from workbench.batch import Condition, Layout, Reference
from workbench.bench import data, mkfolder
from workbench.common.errors import UserError
from workbench.recipe.config import Model, Recipe, Teachers, Trainer

CPU = torch.device("cpu")
SIZES = "blocks=3,width=64,heads=2,text=24,channels=8"
FEW_PER_CENT = 0.05
"""e4m3 keeps three bits after the first: a number is off by up to 1 in 16, a sum of products by about 1 in 27."""
Frozen = Literal["auto", "fp8"]


def relative(found: Tensor, expected: Tensor) -> float:
    return float(((found.double() - expected.double()).norm() / expected.double().norm()).detach())


def exact(codes: Tensor, scale: Tensor) -> Tensor:
    return codes.double() * scale.double()


def test_products_are_those_of_the_quantised_numbers_and_near_the_exact_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = nn.Linear(96, 64)
    # Rows and columns of very different size, as gradients and activations have.
    x = torch.randn(2, 40, 96, generator=generator) * torch.logspace(-3, 3, 40)[:, None]
    gradient = torch.randn(2, 40, 64, generator=generator) * torch.logspace(-9, -3, 40)[:, None]
    x.requires_grad_()
    layer = fp8.Fp8Linear(plain, differentiable=True)
    y = layer(x)
    (found,) = torch.autograd.grad(y, x, gradient)

    weight = exact(layer.weight, layer.scale.T)
    rows = exact(*fp8.quantise_rows(x.detach().flatten(0, 1)))
    assert relative(y.flatten(0, 1), rows @ weight.T + plain.bias) < 1e-3
    folded = exact(*fp8.quantise_rows((gradient * layer.scale).flatten(0, 1)))
    assert relative(found.flatten(0, 1), folded @ layer.weight.double()) < 1e-3
    for a, b in ((y - plain.bias, plain(x) - plain.bias), (found, gradient @ plain.weight)):
        errors = [relative(one, other) for one, other in zip(a.flatten(0, 1), b.flatten(0, 1), strict=True)]
        assert 0.01 < sum(errors) / len(errors) < FEW_PER_CENT


def build(frozen: Frozen, *, checkpointing: bool = False, kind: Literal["full", "lora"] = "lora") -> RoleNetworks:
    """Roles with trained adapters, in bfloat16 but for these."""
    base = data.random_transformer(SIZES, CPU)
    model = Model(roles=kind, lora_rank=4, gradient_checkpointing=checkpointing, frozen=frozen)
    denoiser = roles.build(SplitTransformer, base, model, frozen_dtype=torch.bfloat16 if kind == "lora" else None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return denoiser


@pytest.fixture
def condition() -> Condition:
    generator = torch.Generator().manual_seed(4)
    return Condition(
        prompt=torch.randn(2, 9, 24, generator=generator),
        lengths=torch.tensor([9, 7]),
        layout=Layout(9, 4, 4, (Reference(3, 2, 4, 2),)),
        references=torch.randn(2, 8, 8, generator=generator),
    )


def gradients(denoiser: RoleNetworks, condition: Condition) -> tuple[Tensor, dict[str, Tensor]]:
    """Velocity and gradients of the student, while the other roles run before its backward pass."""
    noise, t = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(5)), torch.tensor([0.9, 0.3])
    v = denoiser.velocity(denoiser.prefix(condition, STUDENT), noise, t, STUDENT)
    for role in (FAKE_SCORE, TEACHER):
        with torch.no_grad():
            denoiser.velocity(denoiser.prefix(condition, role), noise, t, role)
    denoiser.velocity(denoiser.prefix(condition, FAKE_SCORE), noise, t, FAKE_SCORE)
    v.square().mean().backward()
    found = {name: p.grad for name, p in denoiser.named_parameters() if p.grad is not None}
    return v.detach(), found


def test_adapters_get_the_gradient_of_bfloat16_within_a_few_per_cent(condition: Condition) -> None:
    expected_v, expected = gradients(build("auto"), condition)
    quantised = build("fp8")
    v, found = gradients(quantised, condition)
    assert relative(v, expected_v) < 2 * FEW_PER_CENT
    assert found.keys() == expected.keys() == roles.trained_parameters(quantised, STUDENT).keys()
    together = [torch.cat([of[name].flatten() for name in sorted(of)]) for of in (found, expected)]
    assert 0 < relative(*together) < 3 * FEW_PER_CENT, "the errors of three blocks"


def test_recomputing_changes_no_gradient(condition: Condition) -> None:
    expected_v, expected = gradients(build("fp8"), condition)
    v, found = gradients(build("fp8", checkpointing=True), condition)
    assert torch.equal(v, expected_v)
    for name, gradient in expected.items():
        assert relative(found[name], gradient) < 1e-6, name


def test_a_layer_with_an_adapter_compiles_whole() -> None:
    layer = lora.RoleLinear(nn.Linear(32, 48))
    layer.add_adapter(STUDENT, 2, 2.0, torch.Generator().manual_seed(0))
    layer.base_layer = fp8.Fp8Linear(nn.Linear(32, 48), differentiable=True)
    x = torch.randn(2, 5, 32, requires_grad=True)
    compiled = torch.compile(lora.project, backend="aot_eager", fullgraph=True)
    given = lora.projection(layer, STUDENT, x.dtype)
    found, expected = (run(given, x) for run in (compiled, lora.project))
    torch.testing.assert_close(found, expected)
    of_compiled, of_eager = (torch.autograd.grad(y.square().sum(), x, retain_graph=True) for y in (found, expected))
    torch.testing.assert_close(of_compiled, of_eager)


@torch.library.custom_op("tests::product_without_derivative", mutates_args=())
def product_without_derivative(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
    return (a.float() @ b.float().t()) * a_scale * b_scale


@product_without_derivative.register_fake
def _(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor) -> Tensor:
    return a.new_empty(len(a), len(b), dtype=torch.float32)


def test_compiled_layers_pass_gradients_through_products_that_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the product of a GPU has none: dynamo of torch 2.11 took the layer for a constant."""

    def multiply(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
        product: Tensor = product_without_derivative(a, a_scale, b, b_scale)
        return product.to(dtype)

    monkeypatch.setattr(fp8, "_multiply", multiply)
    layer, x = fp8.Fp8Linear(nn.Linear(32, 48), differentiable=True), torch.randn(5, 32, requires_grad=True)
    compiled = torch.compile(fp8.linear, backend="aot_eager", fullgraph=True)
    found, expected = (run(x, layer.quantised(x.dtype), None) for run in (compiled, fp8.linear))
    assert torch.equal(found, expected)
    of_compiled, of_eager = (torch.autograd.grad(y.square().sum(), x)[0] for y in (found, expected))
    assert torch.equal(of_compiled, of_eager) and of_eager.abs().min() > 0


def test_what_is_quantised_and_what_it_weighs() -> None:
    plain, quantised = build("auto"), build("fp8")
    kept = {name: p.dtype for name, p in quantised.named_parameters() if not p.requires_grad}
    codes = {name for name, dtype in kept.items() if dtype == fp8.E4M3}
    assert codes == {name for name in kept if "base_layer" in name and name.endswith("weight")} and len(codes) == 21
    assert {kept[name] for name in kept.keys() - codes} == {torch.bfloat16}
    scales = 4 * sum(
        linear.base_layer.out_features for _, linear in lora.role_linears(quantised.network(STUDENT).blocks)
    )
    assert placement.state_bytes(quantised, 0, 8.0) == placement.state_bytes(plain, 0, 8.0) + scales

    teacher = build("fp8", kind="full")
    halved = {name: p for name, p in teacher.named_parameters() if p.dtype == fp8.E4M3}
    assert len(halved) == 21 and all(f".{TEACHER}." in f".{name}" for name in halved)
    saved = placement.state_bytes(build("auto", kind="full"), 0, 8.0) - placement.state_bytes(teacher, 0, 8.0)
    assert saved == 3 * sum(p.numel() for p in halved.values()) - scales


def test_adapters_are_merged_into_weights_as_the_folder_has_them() -> None:
    base = data.random_transformer(SIZES, CPU)
    placement.cast_parameters(base, torch.bfloat16)
    merged = roles.merged_state(build("fp8"), STUDENT, base.state_dict())
    expected = roles.merged_state(build("auto"), STUDENT)
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)


def test_weights_are_quantised_one_by_one_as_they_are_read(tmp_path: Path) -> None:
    """The base with its adapters and a specialist; nothing of the blocks is there before."""
    for seed, name in enumerate(("base", "other")):
        mkfolder.make(tmp_path / name, mkfolder.Options(seed=seed))
    for part in ("text_encoder", "vae"):
        shutil.copytree(tmp_path / "base" / part, tmp_path / "other" / part, dirs_exist_ok=True)
    recipe = Recipe(
        model=Model(folder=str(tmp_path / "base"), roles="lora", lora_rank=2, frozen="fp8"),
        teachers=Teachers(specialists={"other": str(tmp_path / "other")}),
        trainer=Trainer(precision="bf16-mixed"),
    )
    whole = replace(recipe, model=replace(recipe.model, frozen="auto"))
    found, expected = (
        load_roles(given, load_for_training(given, given.model.folder), torch.bfloat16) for given in (recipe, whole)
    )
    roles.quantise(expected)
    assert all(parameter.is_meta or parameter.requires_grad for parameter in found.parameters())
    assert placement.state_bytes(found, 0, 8.0) == placement.state_bytes(expected, 0, 8.0)
    placement.fill(found, CPU)
    for of in (RoleNetworks.named_parameters, RoleNetworks.named_buffers):
        values, wanted = dict(of(found)), dict(of(expected))
        assert values.keys() == wanted.keys()
        assert all(torch.equal(values[name].float(), wanted[name].float()) for name in wanted)


def test_odd_sides_are_refused() -> None:
    with pytest.raises(UserError, match="multiples of 16"):
        fp8.Fp8Linear(nn.Linear(24, 64), differentiable=True)
