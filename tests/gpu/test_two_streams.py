"""Blocks of Qwen-Image at their real width: as fast as diffusers' own, with the memory that is planned, and the same
compiled or replayed."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

from workbench.backbones import roles
from workbench.backbones.base import RoleNetworks
from workbench.backbones.qwen_image.transformer import DualTransformer
from workbench.backbones.roles import STUDENT
from workbench.batch import Condition, Layout, Reference
from workbench.engine.graphs import GraphedStep
from workbench.recipe.config import Model

pytestmark = pytest.mark.gpu

BLOCKS, CHANNELS, PROMPT_WIDTH = 3, 64, 3584
LAYOUTS = {
    "t2i": Layout(256, 64, 64, padded=False),
    "t2i, padded": Layout(256, 64, 64),
    "edit, padded": Layout(512, 64, 64, (Reference(64, 64, 64, 196),)),
}


def build(heads: int, device: str, dtype: torch.dtype) -> RoleNetworks:
    """A LoRA student over `BLOCKS` blocks of `heads` heads; 24 make the real width."""
    with torch.device(device):
        base = QwenImageTransformer2DModel(num_layers=BLOCKS, num_attention_heads=heads, zero_cond_t=True).eval()
    generator = torch.Generator(device).manual_seed(0)
    for parameter in base.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.5 * parameter.shape[-1] ** -0.5, generator=generator)
    model = Model(roles="lora", lora_rank=32, gradient_checkpointing=False)
    networks = roles.build(DualTransformer, base, model, frozen_dtype=dtype)
    with torch.no_grad():
        for name, parameter in roles.trained_parameters(networks, STUDENT).items():
            if "lora_B" in name:
                parameter.normal_(0, 0.01, generator=generator)
    return networks


def inputs(layout: Layout, device: str) -> tuple[Condition, Tensor, Tensor]:
    """Two samples, the second with a quarter of its text as padding where the layout has any; at times that bfloat16
    holds, to which diffusers rounds them."""
    generator = torch.Generator().manual_seed(1)
    full = layout.text_tokens
    num_references = sum(item.num_tokens for item in layout.references)
    prompt, references, x_t = (
        torch.randn(2, count, width, generator=generator)
        for count, width in (
            *((full, PROMPT_WIDTH), (num_references, CHANNELS)),
            (layout.num_target_tokens, CHANNELS),
        )
    )
    lengths = torch.tensor([full, full - full // 4 if layout.padded else full])
    condition = Condition(prompt, lengths, layout, references if layout.references else None)
    return condition.to(torch.device(device)), x_t.to(device), torch.tensor([0.875, 0.25], device=device)


def stock_forward(stock: QwenImageTransformer2DModel, condition: Condition, x_t: Tensor, t: Tensor) -> Tensor:
    layout, dtype = condition.layout, stock.dtype
    shapes = [(1, layout.height, layout.width), *((1, item.height, item.width) for item in layout.references)]
    images = x_t if condition.references is None else torch.cat([x_t, condition.references], dim=1)
    valid = torch.arange(layout.text_tokens, device=x_t.device) < condition.lengths[:, None]
    output = stock(
        hidden_states=images.to(dtype),
        encoder_hidden_states=condition.prompt.to(dtype),
        encoder_hidden_states_mask=valid if layout.padded else None,
        timestep=t,
        img_shapes=[shapes] * len(t),
        return_dict=False,
    )[0]
    return output[:, : layout.num_target_tokens]


def seconds(run: Callable[[], object], repeats: int = 10) -> float:
    """The fastest of `repeats`, after three to warm up."""
    found = []
    for _ in range(3 + repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found[3:])


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_blocks_are_as_fast_as_diffusers_own(name: str) -> None:
    """bfloat16 without gradient, as a teacher is evaluated."""
    dtype = torch.bfloat16
    networks, (condition, x_t, t) = build(24, "cuda", dtype), inputs(LAYOUTS[name], "cuda")
    stock = QwenImageTransformer2DModel.from_config(networks.network(STUDENT).transformer.config)
    stock.load_state_dict(roles.merged_state(networks, "teacher"))
    stock = stock.to("cuda", dtype).eval()
    prefix = networks.prefix(condition, "teacher")

    def ours() -> Tensor:
        return networks.velocity(prefix, x_t, t, "teacher")

    expected, found = stock_forward(stock, condition, x_t, t).float(), ours()
    assert (found - expected).norm() < 0.02 * expected.norm()
    times = {"diffusers": seconds(lambda: stock_forward(stock, condition, x_t, t)), "eager": seconds(ours)}
    networks.compile_blocks()
    times["compiled"] = seconds(ours)
    print(f"{name}: " + ", ".join(f"{key} {1e3 * value / BLOCKS:.2f} ms a block" for key, value in times.items()))
    assert times["eager"] < 1.05 * times["diffusers"] and times["compiled"] < times["eager"]


def gradients(networks: RoleNetworks, condition: Condition, x_t: Tensor, t: Tensor) -> dict[str, Tensor]:
    trained = roles.trained_parameters(networks, STUDENT)
    loss = networks.velocity(networks.prefix(condition, STUDENT), x_t, t, STUDENT).square().mean()
    # What nothing reads has no gradient in eager blocks and one of zeros in compiled ones.
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(trained, found, strict=True))


@pytest.mark.parametrize("name", LAYOUTS)
def test_compiled_blocks_give_the_gradients_of_eager_ones(name: str) -> None:
    networks, batch = build(4, "cuda", torch.float32), inputs(LAYOUTS[name], "cuda")
    expected = gradients(networks, *batch)
    networks.compile_blocks()
    for key, found in gradients(networks, *batch).items():
        assert (found - expected[key]).abs().max() <= 1e-3 * expected[key].abs().max() + 1e-9, key


@pytest.mark.parametrize("name", LAYOUTS)
def test_activations_are_those_that_are_planned(name: str) -> None:
    dtype = torch.bfloat16
    networks, (condition, x_t, t) = build(24, "cuda", dtype), inputs(LAYOUTS[name], "cuda")
    gradients(networks, condition, x_t, t)
    before = torch.cuda.memory_allocated()
    output = networks.velocity(networks.prefix(condition, STUDENT), x_t, t, STUDENT)
    kept = torch.cuda.memory_allocated() - before
    planned = networks.network(STUDENT).activation_bytes(condition, STUDENT, dtype)
    print(f"{name}: planned {planned / 2**30:.2f} GiB, kept {kept / 2**30:.2f} GiB for {BLOCKS} blocks")
    assert output.requires_grad and planned == pytest.approx(kept, rel=0.15)


@torch.no_grad()
def test_a_replayed_evaluation_is_the_eager_one_bit_for_bit() -> None:
    networks, layout = build(4, "cuda", torch.bfloat16), LAYOUTS["edit, padded"]
    condition, x_t, t = inputs(layout, "cuda")
    prefix = networks.prefix(condition, STUDENT)
    step = GraphedStep(lambda tensors: [networks.velocity(prefix.over(tensors[2:]), tensors[0], tensors[1], STUDENT)])
    for scale in (1.0, 0.9, 0.8, 0.7, 0.6):
        (replayed,) = step([scale * x_t, scale * t, *prefix.tensors()])
        assert torch.equal(replayed, networks.velocity(prefix, scale * x_t, scale * t, STUDENT))
