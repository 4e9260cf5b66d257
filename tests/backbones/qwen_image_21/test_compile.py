"""Compiled blocks, recomputed blocks and a bfloat16 base change nothing but speed and memory.

On the CPU blocks are captured and split into forward and backward as on a GPU, but run by torch's own kernels: building
inductor's would take a minute and a half. The GPU runs all of the compiler.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import pytest
import torch
from diffusers import QwenImage21Transformer2DModel
from torch import Tensor, nn
from torch._dynamo.utils import counters

from workbench.backbones import placement, roles
from workbench.backbones.base import RoleDenoiser, RoleNetworks
from workbench.backbones.lora_files import AdapterLayer
from workbench.backbones.qwen_image_21.transformer import SplitTransformer
from workbench.backbones.roles import FAKE_SCORE, STUDENT, TEACHER
from workbench.batch import Condition, Layout, Reference
from workbench.bench import data
from workbench.recipe.config import Model, Recipe, Trainer

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
needs_gpu = pytest.mark.skipif(not CUDA, reason="inductor builds C++ kernels for a minute and a half on a CPU")
BACKENDS = ["aot_eager", pytest.param("inductor", marks=needs_gpu)]
SPECIALIST = f"{TEACHER}_text"
SIZES = "blocks=3,width=32,heads=2,text=24,channels=8"


def build(
    kind: Literal["full", "lora"], *, checkpointing: bool = False, stored: int = 0, dtype: torch.dtype | None = None
) -> RoleNetworks:
    """Roles that differ from each other, the specialist low-rank."""
    base = data.random_transformer(SIZES, DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return 0.3 * torch.randn(shape, generator=generator, device=DEVICE)

    adapter = {
        f"transformer_blocks.{name}": AdapterLayer(drawn(2, layer.in_features), drawn(layer.out_features, 2), 0.7)
        for name, layer in base.transformer_blocks.named_modules()
        if isinstance(layer, nn.Linear)
    }
    model = Model(roles=kind, lora_rank=2, lora_alpha=1.4, gradient_checkpointing=checkpointing, stored_blocks=stored)
    denoiser = roles.build(SplitTransformer, base, model, specialists={"text": adapter}, frozen_dtype=dtype)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                parameter.add_(drawn(*parameter.shape) / 3)
    return denoiser


@pytest.fixture
def condition() -> Condition:
    return make_condition(padded=False)


def make_condition(*, padded: bool) -> Condition:
    generator = torch.Generator().manual_seed(4)
    lengths = torch.tensor([9, 7 if padded else 9])
    layout = Layout(9, 4, 4, (Reference(3, 2, 4, 2),), padded=padded)
    prompt, references = torch.randn(2, 9, 24, generator=generator), torch.randn(2, 8, 8, generator=generator)
    return Condition(prompt, lengths, layout, references).to(DEVICE)


def gradients(denoiser: RoleNetworks, condition: Condition) -> dict[str, Tensor]:
    """Of a loss on student and fake score in turns, other roles' evaluations between the forwards and the backward."""
    x_t = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    t = torch.tensor([0.9, 0.3], device=DEVICE)
    losses = []
    for role in (STUDENT, FAKE_SCORE):
        network = RoleDenoiser(denoiser, role)
        prefix = network.prefix(condition)
        with torch.no_grad():
            x_t = x_t - 0.1 * network.velocity(prefix.detach(), x_t, t)
        losses.append(network.velocity(prefix, x_t, t).square().mean())
        with torch.no_grad():
            for other in (TEACHER, SPECIALIST, FAKE_SCORE):
                denoiser.velocity(denoiser.prefix(condition, other), x_t, t, other)
    for loss in losses:
        loss.backward()
    return {name: p.grad.float() for name, p in denoiser.named_parameters() if p.grad is not None}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    assert left.keys() == right.keys() and left
    for name, gradient in left.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(
            right[name], gradient, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "padded"), [("full", True), ("lora", True), ("lora", False)])
def test_compiled_blocks_give_the_gradients_of_eager_ones(
    kind: Literal["full", "lora"], padded: bool, backend: str
) -> None:
    """And one compiled body serves every block and role: of adapters six graphs, prefix and velocity with gradient,
    without it and without an adapter, whatever the depth, the roles, what is recomputed and the prompts."""
    condition = make_condition(padded=padded)
    expected = gradients(build(kind), condition)
    torch._dynamo.reset()
    counters.clear()
    for stored in (0, 1, 3):
        compiled = build(kind, checkpointing=True, stored=stored)
        compiled.compile_blocks(backend)
        assert_same(expected, gradients(compiled, condition), 1e-4)
    gradients(compiled, replace(condition, prompt=condition.prompt.flip(0)))
    assert kind == "full" or counters["stats"]["unique_graphs"] == 6


def test_a_prefix_that_shares_references_is_the_same_compiled(condition: Condition) -> None:
    other = replace(condition, prompt=torch.cat([condition.prompt[:, :5], condition.prompt[:, 5:].flip(1)], dim=1))
    eager, compiled = build("lora"), build("lora")
    compiled.compile_blocks("aot_eager")
    with torch.no_grad():
        unshared = eager.prefix(other, TEACHER)
        _, shared = compiled.prefixes(condition, other, TEACHER)
        assert shared is not None
        x_t = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(5)).to(DEVICE)
        t = torch.tensor([0.9, 0.3], device=DEVICE)
        found, expected = compiled.velocity(shared, x_t, t, TEACHER), eager.velocity(unshared, x_t, t, TEACHER)
    torch.testing.assert_close(found, expected)


def test_shapes_beyond_the_limit_run_uncompiled(condition: Condition) -> None:
    """Data of very many layouts are slower, and train on."""
    torch._dynamo.reset()
    denoiser = build("lora")
    denoiser.compile_blocks("aot_eager")
    counters.clear()
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
        prefix = denoiser.prefix(condition, TEACHER)
    assert counters["stats"]["unique_graphs"] == 1
    with torch._dynamo.config.patch(recompile_limit=1), torch.no_grad():
        x_t = torch.ones(2, 16, 8, device=DEVICE)
        found = denoiser.velocity(prefix, x_t, x_t[:, 0, 0], TEACHER)
    assert counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(found, build("lora").velocity(prefix, x_t, x_t[:, 0, 0], TEACHER))


def recomputations(denoiser: RoleNetworks, condition: Condition) -> int:
    """How often a backward pass runs a block again."""
    calls: list[bool] = []
    network = denoiser.network(STUDENT)
    for block in network.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(True))
    x_t = torch.zeros(2, 16, 8, device=DEVICE)
    loss = network.velocity(network.prefix(condition, STUDENT), x_t, torch.ones(2, device=DEVICE), STUDENT).mean()
    forward = len(calls)
    assert forward == 2 * len(network.blocks)
    loss.backward()
    return len(calls) - forward


@pytest.mark.parametrize(("stored", "expected"), [(0, 6), (1, 4), (3, 0), (9, 0)])
def test_stored_blocks_are_not_run_again(stored: int, expected: int, condition: Condition) -> None:
    assert recomputations(build("lora", checkpointing=True, stored=stored), condition) == expected


def test_text_without_padding_needs_no_mask(condition: Condition) -> None:
    masked = replace(condition, layout=replace(condition.layout, padded=True))
    denoiser = build("lora")
    assert denoiser.prefix(condition, STUDENT).key_valid is None
    assert_same(gradients(denoiser, condition), gradients(build("lora"), masked), 1e-5)


@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_a_bfloat16_base_is_left_alone_and_its_adapters_learn_in_float32(
    backend: str | None, condition: Condition
) -> None:
    denoiser = build("lora", checkpointing=True, dtype=torch.bfloat16)
    if backend:
        denoiser.compile_blocks(backend)
    before = {name: parameter.detach().clone() for name, parameter in denoiser.named_parameters()}
    trained = {name: p for name, p in denoiser.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for name, p in denoiser.named_parameters() if name not in trained} == {torch.bfloat16}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-6, weight_decay=0.0)
    found = gradients(denoiser, condition)
    assert set(found) == set(trained)
    optimizer.step()
    for name, parameter in denoiser.named_parameters():
        moved = not torch.equal(parameter, before[name])
        assert moved == (name in trained), name
    # A step far below bfloat16's resolution arrives in the masters.
    largest = max(float((p.detach() - before[name]).abs().max()) for name, p in trained.items())
    assert 0 < largest < 2e-6


def test_a_bfloat16_base_gives_about_the_gradients_of_a_float32_one(condition: Condition) -> None:
    rounded = build("lora", dtype=torch.bfloat16)
    expected, found = gradients(build("lora"), condition), gradients(rounded, condition)
    assert expected.keys() == found.keys()
    left, right = (torch.cat([grads[name].flatten() for name in expected]) for grads in (expected, found))
    assert torch.nn.functional.cosine_similarity(left, right, dim=0) > 0.99


def test_tables_of_a_cast_network_stay_float32() -> None:
    network: QwenImage21Transformer2DModel = build("lora", dtype=torch.bfloat16).network(TEACHER).transformer
    assert network.time_text_embed.time_proj.freqs.dtype == torch.float32


LORA, FULL = Model(roles="lora"), Model()


@pytest.mark.parametrize(
    ("model", "strategy", "held", "lightning"),
    [
        (LORA, "auto", torch.bfloat16, "32-true"),
        (LORA, "fsdp", torch.bfloat16, "32-true"),
        (FULL, "fsdp", torch.bfloat16, "32-true"),
        (FULL, "auto", None, "bf16-mixed"),
    ],
)
def test_autocast_is_left_to_full_weights_on_one_device(
    model: Model, strategy: Literal["auto", "fsdp"], held: torch.dtype | None, lightning: str
) -> None:
    recipe = Recipe(model=model, trainer=Trainer(strategy=strategy, precision="bf16-mixed"))
    assert (placement.frozen_dtype(recipe), placement.trainer_precision(recipe)) == (held, lightning)
    single = replace(recipe, trainer=Trainer(strategy=strategy, precision="32-true"))
    assert (placement.frozen_dtype(single), placement.trainer_precision(single)) == (None, "32-true")


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_tf32_is_float32_whose_products_are_rounded(kind: Literal["full", "lora"]) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for name, products in (("tf32", "high"), ("32-true", "highest")):
            recipe = Recipe(model=Model(roles=kind), trainer=Trainer(precision=name))  # type: ignore[arg-type]
            assert (placement.frozen_dtype(recipe), placement.trainer_precision(recipe)) == (None, "32-true")
            assert torch.get_float32_matmul_precision() == products
    finally:
        torch.set_float32_matmul_precision(before)
