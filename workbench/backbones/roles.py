"""The weights of each role: full copies, or adapters over one shared frozen base."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from workbench.backbones import lora, lora_files
from workbench.backbones.base import NetworkFactory, RoleNetworks, TransformerDenoiser
from workbench.backbones.lora_files import Adapter
from workbench.backbones.placement import cast_parameters
from workbench.common.errors import UserError
from workbench.method import rng
from workbench.recipe.config import Model, Teachers

STUDENT = "student"
FAKE_SCORE = "fake_score"
TEACHER = "teacher"


def teacher_roles(teachers: Teachers) -> tuple[str, ...]:
    """The base teacher, then the specialists in the order of the lambda table's columns."""
    return (TEACHER, *(f"{TEACHER}_{name}" for name in teachers.specialists))


def build(
    factory: NetworkFactory,
    base: nn.Module,
    model: Model,
    *,
    student: nn.Module | None = None,
    specialists: Mapping[str, nn.Module | Adapter] | None = None,
    seed: int = 0,
    frozen_dtype: torch.dtype | None = None,
) -> RoleNetworks:
    """Networks of the roles student, fake score, teacher and one per specialist.

    factory: makes the family's denoiser from a transformer.
    base: transformer of the base teacher. student: one that the student starts from, if not at the base.
    specialists: each a transformer, or an adapter over the base teacher's, whose weights it then shares.
    frozen_dtype: storage of frozen weights, cast in place; trained ones keep their dtype, adapters are float32.
    Only student and fake score are left trainable; the fake score starts at the base, which is a denoiser at every
    noise level, where a few-step student is one at its own times alone.

    Raises:
        UserError: LoRA roles that start elsewhere than at the base teacher, or an adapter that does not fit it.
    """

    def network(transformer: nn.Module) -> TransformerDenoiser:
        return factory(transformer, model.gradient_checkpointing, model.stored_blocks)

    networks = {TEACHER: network(base.requires_grad_(False))}
    network_of_role = {TEACHER: TEACHER}
    match model.roles:
        case "full":
            for role, start in ((STUDENT, base if student is None else student), (FAKE_SCORE, base)):
                networks[role] = network(copy.deepcopy(start).requires_grad_(True))
                network_of_role[role] = role
            cast_parameters(base, frozen_dtype)
        case "lora":
            if student is not None:
                raise UserError(
                    "model.roles=lora starts at the base teacher: leave model.student out, or use roles=full"
                )
            cast_parameters(base, frozen_dtype)
            for role in (STUDENT, FAKE_SCORE):
                add_adapter(networks[TEACHER], role, model.lora_rank, model.lora_alpha, seed)
                network_of_role[role] = TEACHER
    for name, specialist in (specialists or {}).items():
        role = f"{TEACHER}_{name}"
        match specialist:
            case nn.Module():
                cast_parameters(specialist, frozen_dtype)
                networks[role] = network(specialist.requires_grad_(False))
                network_of_role[role] = role
            case _:
                adapt(networks[TEACHER], role, specialist)
                network_of_role[role] = TEACHER
    return RoleNetworks(networks, network_of_role)


def add_adapter(network: TransformerDenoiser, role: str, rank: int, alpha: float, seed: int) -> None:
    """Give the blocks of `network` a fresh trainable adapter for `role`; the layers that it adapts are frozen."""
    lora.install(network.blocks)
    generator = rng.generator(seed, f"lora/{role}", 0)
    for _, layer in lora.role_linears(network.blocks):
        layer.add_adapter(role, rank, alpha, generator)


def adapt(network: TransformerDenoiser, role: str, adapter: Adapter) -> None:
    """Give `network` a frozen adapter under the name of `role`.

    Raises:
        UserError: the adapter is of another model.
    """
    lora.install(network.blocks)
    linears, adapted = lora.base_linears(network.transformer), dict(lora.role_linears(network.transformer))
    known = {name: lora_files.shape(layer) for name, layer in linears.items() if name in {*adapted, *network.adaptable}}
    which, base = f"the LoRA of {role}", "the base teacher's blocks or embeddings"
    fitted = lora_files.fit(adapter, known, network.fused_layers, which, base)
    for name in fitted.keys() - adapted.keys():
        lora.wrap(linears[name], network, network.transformer)
    adapted = dict(lora.role_linears(network.transformer))
    for name, layer in fitted.items():
        adapted[name].load_adapter(role, layer.down, layer.up, layer.scaling)


@torch.no_grad()
def merge_loras(network: TransformerDenoiser, loras: Sequence[tuple[Path, float]]) -> None:
    """Add LoRA files to the weights of `network`, each times its strength: W + sum of strength scaling B A, in place.

    Any linear layer of the transformer may be adapted, in a block or not; weights keep their dtype.

    Raises:
        UserError: a file that is no LoRA, or one of another model.
    """
    linears = lora.base_linears(network.transformer)
    shapes = {name: lora_files.shape(layer) for name, layer in linears.items()}
    fitted = [
        (lora_files.fit(lora_files.read(path), shapes, network.fused_layers, f"the LoRA {path}", "the base"), strength)
        for path, strength in loras
    ]
    for name, layer in lora_files.weighted_sum(fitted).items():
        weight = linears[name].weight
        weight.copy_(weight.float() + (layer.up @ layer.down).to(weight.device))


def trained_parameters(denoiser: nn.Module, role: str) -> dict[str, nn.Parameter]:
    """Trainable parameters of `role` alone, by their names in the denoiser."""
    named = denoiser.named_parameters()
    return {name: parameter for name, parameter in named if parameter.requires_grad and role in name.split(".")}


@torch.no_grad()
def merged_state(denoiser: RoleNetworks, role: str) -> dict[str, Tensor]:
    """Weights of `role` under the names of diffusers, adapters merged, unsharded, on the CPU (all ranks must call)."""
    network = denoiser.network(role)
    linears = dict(lora.role_linears(network.transformer))
    state = {}
    for name, tensor in network.transformer.state_dict().items():
        owner, _, leaf = name.partition(".base_layer.")
        if owner in linears and leaf == "weight" and role in linears[owner].scaling:
            layer = linears[owner]
            up, down = _unsharded(layer.lora_B[role].weight), _unsharded(layer.lora_A[role].weight)
            state[f"{owner}.weight"] = _unsharded(tensor) + layer.scaling[role] * (up @ down)
        elif ".lora_" not in name:
            state[name.replace(".base_layer.", ".")] = _unsharded(tensor)
    return state


def _unsharded(tensor: Tensor | nn.Module) -> Tensor:
    assert isinstance(tensor, Tensor)
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    # A copy even on the CPU: the caller may go on to change the weights.
    return full.detach().to("cpu", copy=True)
