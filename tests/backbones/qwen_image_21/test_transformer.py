"""The split forward against diffusers' own: every sample of a padded batch equals its own unpadded stock forward."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import QwenImage21Transformer2DModel
from single_network import single_role
from torch import Tensor

from workbench.backbones.base import RoleNetworks
from workbench.backbones.qwen_image_21.transformer import CachedPrefix, SplitTransformer
from workbench.batch import Condition, Layout, Reference

LAYOUTS = {
    "t2i": Layout(11, 4, 6),
    "t2i, odd": Layout(7, 2, 2),
    "edit": Layout(15, 4, 4, (Reference(3, 4, 4, 4),)),
    "edit, two references of other sizes": Layout(24, 6, 4, (Reference(2, 2, 4, 2), Reference(7, 4, 6, 6))),
    "edit, touching references": Layout(16, 4, 4, (Reference(2, 4, 4, 4), Reference(6, 2, 4, 2))),
}


@pytest.fixture(scope="module")
def transformer() -> QwenImage21Transformer2DModel:
    torch.manual_seed(0)
    model = QwenImage21Transformer2DModel(
        in_channels=8,
        out_channels=8,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=24,
        axes_dims_rope=(4, 6, 6),
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def random_condition(layout: Layout, lengths: list[int], seed: int = 0) -> Condition:
    generator = torch.Generator().manual_seed(seed)
    num_reference_tokens = sum(item.num_tokens for item in layout.references)
    references = torch.randn(len(lengths), num_reference_tokens, 8, generator=generator)
    return Condition(
        prompt=torch.randn(len(lengths), layout.text_tokens, 24, generator=generator),
        lengths=torch.tensor(lengths),
        layout=layout,
        references=references if layout.references else None,
    )


def stock_forward(transformer, condition: Condition, row: int, x_t: Tensor, t: Tensor) -> Tensor:
    """One sample alone and unpadded through the stock model."""
    layout, length = condition.layout, int(condition.lengths[row])
    img_mask = torch.zeros(1, length + layout.num_target_tokens // 4, dtype=torch.bool)
    img_mask[:, length:] = True
    for reference in layout.references:
        img_mask[:, reference.slot : reference.end] = True
    hidden = x_t[row : row + 1]
    if condition.references is not None:
        hidden = torch.cat([condition.references[row : row + 1], hidden], dim=1)
    shapes = [(1, item.height, item.width) for item in layout.references] + [(1, layout.height, layout.width)]
    output = transformer(
        hidden_states=hidden,
        encoder_hidden_states=condition.prompt[row : row + 1, :length],
        timestep=t[row : row + 1],
        img_shapes=[shapes],
        img_mask=img_mask,
        return_dict=False,
    )[0]
    return output[:, -layout.num_target_tokens :]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@torch.no_grad()
def test_padded_batch_equals_each_unpadded_stock_forward(transformer, layout: Layout) -> None:
    floor = max((item.end for item in layout.references), default=0) + 1
    lengths = [layout.text_tokens, layout.text_tokens - 1, max(floor, layout.text_tokens - 3)]
    condition = random_condition(layout, lengths)
    x_t = torch.randn(3, layout.num_target_tokens, 8, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([1.0, 0.7, 0.05])
    network = single_role(transformer)

    ours = network.velocity(network.prefix(condition, "teacher"), x_t, t, "teacher")

    stock = torch.cat([stock_forward(transformer, condition, row, x_t, t) for row in range(3)])
    assert (ours - stock).abs().max() < 1e-4 * stock.abs().max()


def test_gradients_equal_stock(transformer) -> None:
    layout = LAYOUTS["edit"]
    condition = random_condition(layout, [layout.text_tokens])
    x_t, t = torch.randn(1, 16, 8), torch.tensor([0.6])

    def gradients(output: Tensor) -> list[Tensor]:
        return torch.autograd.grad(output.square().sum(), list(transformer.parameters()), allow_unused=True)

    network = single_role(transformer)
    ours = gradients(network.velocity(network.prefix(condition, "teacher"), x_t, t, "teacher"))
    stock = gradients(stock_forward(transformer, condition, 0, x_t, t))
    for left, right in zip(ours, stock, strict=True):
        left = torch.zeros(1) if left is None else left
        right = torch.zeros(1) if right is None else right
        assert (left - right).abs().max() <= 1e-4 * max(1.0, float(right.abs().max()))


def test_one_prefix_serves_every_time_and_a_batch_of_one_serves_many(transformer) -> None:
    layout = LAYOUTS["t2i"]
    network = single_role(transformer)
    one = random_condition(layout, [5])
    many = Condition(one.prompt.expand(3, -1, -1), one.lengths.expand(3), layout)
    x_t, t = torch.randn(3, layout.num_target_tokens, 8), torch.tensor([0.9, 0.5, 0.1])
    shared = network.velocity(network.prefix(one, "teacher"), x_t, t, "teacher")
    separate = network.velocity(network.prefix(many, "teacher"), x_t, t, "teacher")
    torch.testing.assert_close(shared, separate)


@torch.no_grad()
def test_the_content_of_padding_does_not_matter(transformer) -> None:
    layout = LAYOUTS["edit"]
    condition = random_condition(layout, [10, 12])
    network = single_role(transformer)
    x_t, t = torch.randn(2, 16, 8), torch.tensor([0.3, 0.8])
    before = network.velocity(network.prefix(condition, "teacher"), x_t, t, "teacher")
    condition.prompt[0, 10:] = 100.0
    after = network.velocity(network.prefix(condition, "teacher"), x_t, t, "teacher")
    torch.testing.assert_close(before, after)


def test_checkpointing_changes_nothing(transformer) -> None:
    layout = LAYOUTS["edit"]
    condition = random_condition(layout, [12, 15])
    x_t, t = torch.randn(2, 16, 8), torch.tensor([0.3, 0.8])
    results = []
    for checkpointing in (False, True):
        network = RoleNetworks({"a": SplitTransformer(transformer, checkpointing)}, {"a": "a"})
        output = network.velocity(network.prefix(condition, "a"), x_t, t, "a")
        results.append(torch.autograd.grad(output.square().sum(), list(transformer.transformer_blocks.parameters())))
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right)


@torch.no_grad()
def test_prompt_and_empty_prompt_share_what_precedes_the_text_after_equal_slots(transformer) -> None:
    """Bit for bit the same beginning, which is computed once; the rest is that of the empty prompt alone."""
    network, reference = single_role(transformer), Reference(3, 4, 4, 4)
    cond = random_condition(Layout(15, 4, 4, (reference,)), [15, 14])
    uncond = random_condition(Layout(9, 4, 4, (reference,)), [9, 9], seed=1)
    uncond = replace(
        uncond, prompt=torch.cat([cond.prompt[:, :3], uncond.prompt[:, 3:]], 1), references=cond.references
    )
    prefix, shared = network.prefixes(cond, uncond, "teacher")
    alone = network.prefix(uncond, "teacher")
    assert isinstance(prefix, CachedPrefix) and isinstance(shared, CachedPrefix) and isinstance(alone, CachedPrefix)
    for parts, (whole,), (first,) in zip(shared.contexts(), alone.contexts(), prefix.contexts(), strict=True):
        for j in range(2):
            joined = torch.cat([part[j] for part in parts], dim=1)
            torch.testing.assert_close(joined, whole[j])
            assert torch.equal(joined[:, :19], first[j][:, :19])
            assert parts[0][j].data_ptr() == first[j].data_ptr(), "no copy"
    x_t, t = torch.randn(2, 16, 8), torch.tensor([0.7, 0.2])
    velocities = [network.velocity(one, x_t, t, "teacher") for one in (shared, alone)]
    torch.testing.assert_close(*velocities)
    taken = {tensor.untyped_storage()._cdata: tensor for tensor in (*prefix.tensors(), *shared.tensors())}
    of_tokens = sum(tensor.untyped_storage().nbytes() for tensor in taken.values() if tensor.shape[2:] == (2, 16))
    assert network.network("teacher").pair_bytes(cond, uncond, torch.float32) == of_tokens


@pytest.mark.parametrize(
    "other",
    [Layout(9, 4, 4, (Reference(2, 4, 4, 4),)), Layout(7, 4, 4, (Reference(3, 4, 4, 4),)), Layout(9, 4, 4)],
    ids=["other slots", "no text after the reference", "no reference"],
)
@torch.no_grad()
def test_conditions_that_begin_otherwise_share_nothing(transformer, other: Layout) -> None:
    network = single_role(transformer)
    cond = random_condition(Layout(15, 4, 4, (Reference(3, 4, 4, 4),)), [15, 14])
    uncond = random_condition(other, [other.text_tokens] * 2, seed=1)
    _, found = network.prefixes(cond, uncond, "teacher")
    assert found is not None
    assert all(map(torch.equal, found.tensors(), network.prefix(uncond, "teacher").tensors()))


@torch.no_grad()
def test_a_prefix_is_rebuilt_from_its_tensors(transformer) -> None:
    """As a recorded evaluation does it: the same velocity, and another condition's with that one's tensors."""
    network, layout = single_role(transformer), LAYOUTS["edit"]
    one, other = (network.prefix(random_condition(layout, [15, 14], seed), "teacher") for seed in (0, 1))
    x_t, t = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([0.4, 0.7])
    expected = network.velocity(other, x_t, t, "teacher")
    assert torch.equal(network.velocity(one.over(other.tensors()), x_t, t, "teacher"), expected)
    assert not torch.equal(network.velocity(one, x_t, t, "teacher"), expected)
