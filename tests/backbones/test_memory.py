"""The memory plan against what a run really keeps."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from workbench.backbones import placement, roles
from workbench.backbones.base import RoleNetworks
from workbench.backbones.qwen_image_21.transformer import CachedPrefix, SplitTransformer
from workbench.backbones.roles import STUDENT
from workbench.batch import Condition, Layout, Reference
from workbench.bench import data
from workbench.common.errors import UserError
from workbench.modules.distiller import Distiller
from workbench.recipe.config import Model, Recipe, Trainer
from workbench.runs import plan

BLOCKS = 3


@pytest.fixture
def condition() -> Condition:
    generator = torch.Generator().manual_seed(0)
    layout = Layout(24, 8, 8, (Reference(3, 8, 8, 16),))
    prompt, references = torch.randn(2, 24, 24, generator=generator), torch.randn(2, 64, 8, generator=generator)
    return Condition(prompt, torch.tensor([24, 22]), layout, references)


def build(kind: str, stored: int) -> RoleNetworks:
    base = data.random_transformer(f"blocks={BLOCKS},width=64,heads=4,text=24,channels=8", torch.device("cpu"))
    model = Model(roles=kind, lora_rank=4, gradient_checkpointing=True, stored_blocks=stored)  # type: ignore[arg-type]
    return roles.build(SplitTransformer, base, model)


def activations(denoiser: RoleNetworks, condition: Condition, dtype: torch.dtype) -> int:
    return denoiser.network(STUDENT).activation_bytes(condition, STUDENT, dtype)


def kept_bytes(denoiser: RoleNetworks, condition: Condition) -> int:
    """Bytes behind all tensors that a graded evaluation really saves for its backward pass, weights aside."""
    own = {parameter.untyped_storage()._cdata for parameter in denoiser.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        x_t = torch.randn(2, 64, 8, generator=torch.Generator().manual_seed(1))
        v = denoiser.velocity(denoiser.prefix(condition, STUDENT), x_t, torch.tensor([0.9, 0.3]), STUDENT)
    assert v.requires_grad
    return sum(tensor.untyped_storage().nbytes() for storage, tensor in kept.items() if storage not in own)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_activations_are_those_that_a_run_keeps(kind: str, condition: Condition) -> None:
    denoiser = build(kind, stored=BLOCKS)
    planned = activations(denoiser, condition, torch.float32)
    # The last block's prefix is keys and values alone, and the ends of the network are not counted.
    assert planned == pytest.approx(kept_bytes(denoiser, condition), rel=0.2)


def test_recomputed_blocks_keep_far_less(condition: Condition) -> None:
    counts = [activations(build("lora", stored), condition, torch.float32) for stored in range(BLOCKS + 1)]
    assert counts[1:] == sorted(counts[1:]) and counts[0] < counts[BLOCKS] / 2
    half = activations(build("lora", BLOCKS), condition, torch.bfloat16)
    assert 0.4 * counts[BLOCKS] < half < 0.8 * counts[BLOCKS]


def test_a_prefix_is_its_keys_and_values(condition: Condition) -> None:
    denoiser = build("lora", 0)
    with torch.no_grad():
        prefix = denoiser.prefix(condition, STUDENT)
    assert isinstance(prefix, CachedPrefix)
    held = sum(tensor.numel() * tensor.element_size() for pair in prefix.keys_values for tensor in pair)
    assert denoiser.network(STUDENT).prefix_bytes(condition, torch.float32) == held


def test_state_counts_every_weight_once() -> None:
    denoiser = build("lora", 0)
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    count, student = sum(p.numel() for p in trained), len(trained) * 10
    held = sum(p.numel() * p.element_size() for p in denoiser.parameters())
    # Moments, the gradients of the larger role, the student's average.
    found = placement.state_bytes(denoiser, student, 8.0)
    assert found == held + 8 * count + 4 * (count - student) + 4 * student
    assert found - placement.state_bytes(denoiser, student, 8.0, averaged=False) == 4 * student


def test_the_plan_counts_the_largest_layout_of_a_task() -> None:
    assert plan.largest([("t2i", 2), ("edit", 3), ("t2i", 5), ("t2i", 1)]) == {"t2i": 5, "edit": 3}


def test_state_beyond_a_gpu_is_one_line_before_anything_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = build("full", 0)
    recipe = Recipe(model=Model(roles="full"), trainer=Trainer(accelerator="gpu", devices=2, strategy="fsdp"))
    module = Distiller(networks, recipe, data.CATEGORIES)
    trained = sum(parameter.numel() for parameter in networks.parameters()) / 3
    state = 4 * trained * (1 + 2 + 4 + 1 + 1) / 2
    for size, fits in ((state + 1, True), (state - 1, False)):
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda _, size=size: SimpleNamespace(total_memory=size)
        )
        with nullcontext() if fits else pytest.raises(UserError, match=r"on each of 2 GPU\(s\), and one has"):
            plan.require_memory(recipe, module, networks)
