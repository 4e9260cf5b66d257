"""The weights of each role: full copies, or adapters over one shared frozen base."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from workbench.backbones import fp8, lora, lora_files
from workbench.backbones.base import NetworkFactory, RoleNetworks, TransformerDenoiser
from workbench.backbones.lora_files import Adapter
from workbench.backbones.placement import cast_parameters
from workbench.backbones.weight_files import RankTensors
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
    student: nn.Module | Adapter | None = None,
    specialists: Mapping[str, nn.Module | Adapter] | None = None,
    seed: int = 0,
    frozen_dtype: torch.dtype | None = None,
) -> RoleNetworks:
    """Networks of the roles student, fake score, teacher and one per specialist.

    factory: makes the family's denoiser from a transformer.
    base: transformer of the base teacher. student: what the student starts from, if not at the base: a transformer, or
    an adapter, which full copies have added to the base; LoRA roles start from adapters alone.
    specialists: each a transformer, or an adapter over the base teacher's, whose weights it then shares.
    frozen_dtype: storage of frozen weights, cast in place; trained ones keep their dtype, adapters are float32.
    With `model.frozen=fp8` the products of frozen blocks are quantised, after everything has been added to them.
    Only student and fake score are left trainable; the fake score starts at the base, which is a denoiser at every
    noise level, where a few-step student is one at its own times alone.

    Raises:
        UserError: an adapter that does not fit the base or, for the student's start, `model.lora_rank`.
    """

    def network(transformer: nn.Module) -> TransformerDenoiser:
        # Where it is for the run to choose, all are recomputed until it has.
        stored = model.stored_blocks if isinstance(model.stored_blocks, int) else 0
        return factory(transformer, model.gradient_checkpointing, stored)

    networks = {TEACHER: network(base.requires_grad_(False))}
    network_of_role = {TEACHER: TEACHER}
    match model.roles:
        case "full":
            start = student if isinstance(student, nn.Module) else base
            for role, transformer in ((STUDENT, start), (FAKE_SCORE, base)):
                networks[role] = network(copy.deepcopy(transformer).requires_grad_(True))
                network_of_role[role] = role
            if student is not None and not isinstance(student, nn.Module):
                _merge(networks[STUDENT], [(student, 1.0, "model.student")])
            cast_parameters(base, frozen_dtype)
        case "lora":
            if isinstance(student, nn.Module):
                raise UserError(
                    "model.roles=lora starts a student from a LoRA file over the base: name one, or use roles=full"
                )
            cast_parameters(base, frozen_dtype)
            for role in (STUDENT, FAKE_SCORE):
                add_adapter(networks[TEACHER], role, model.lora_rank, model.lora_alpha, seed)
                network_of_role[role] = TEACHER
            if student is not None:
                start_adapter(networks[TEACHER], STUDENT, student, "model.student", "model.lora_rank")
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
    denoiser = RoleNetworks(networks, network_of_role)
    if model.frozen == "fp8":
        quantise(denoiser)
    return denoiser


def quantise(denoiser: RoleNetworks) -> None:
    """Hold the products of every block that no role trains in 8 bits, in place; embeddings, norms, modulation, the
    output layer and adapters stay as they are. Gradients still pass to adapters where a trained role shares the block.

    Raises:
        UserError: a layer whose sides the hardware does not multiply.
    """
    trained = [denoiser.network(role) for role in (STUDENT, FAKE_SCORE)]
    for network in denoiser.transformers():
        adapted = any(True for _ in lora.role_linears(network.blocks))
        if network not in trained or adapted:
            fp8.quantise(network.blocks, network.unquantised, differentiable=network in trained)


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
def start_adapter(network: TransformerDenoiser, role: str, adapter: Adapter, key: str, rank_key: str) -> None:
    """Let the fresh adapter of `role` start as `adapter`, which may have a smaller rank: the rest adds nothing yet.

    key, rank_key: recipe keys that name the adapter and the rank of the fresh one.

    Raises:
        UserError: an adapter of another model, or of a larger rank.
    """
    linears = {name: layer for name, layer in lora.role_linears(network.transformer) if role in layer.scaling}
    shapes = {name: lora_files.shape(layer.base_layer) for name, layer in linears.items()}
    fitted = lora_files.fit(adapter, shapes, network.fused_layers, key, "the blocks, which LoRA roles train")
    rank = max(len(layer.down) for layer in fitted.values())
    for name, layer in fitted.items():
        down, up, r = linears[name].lora_A[role].weight, linears[name].lora_B[role].weight, len(layer.down)
        assert isinstance(down, Tensor) and isinstance(up, Tensor)
        if rank > len(down):
            raise UserError(f"{key} has adapters of rank {rank}: set {rank_key}={rank} or more")
        down[:r] = layer.down
        up[:, :r] = layer.up * (layer.scaling / linears[name].scaling[role])


def merge_loras(network: TransformerDenoiser, loras: Sequence[tuple[Path, float]]) -> None:
    """Add LoRA files to the weights of `network`, each times its strength: W + sum of strength scaling B A, in place.

    Any linear layer of the transformer may be adapted, in a block or not; weights keep their dtype.

    Raises:
        UserError: a file that is no LoRA, or one of another model.
    """
    _merge(network, [(lora_files.read(path), strength, f"the LoRA {path}") for path, strength in loras])


@torch.no_grad()
def _merge(network: TransformerDenoiser, loras: Sequence[tuple[Adapter, float, str]]) -> None:
    """As `merge_loras`, from adapters with their strengths, and what errors call them."""
    linears = lora.base_linears(network.transformer)
    for name, layer in updates_of(network, loras).items():
        weight = linears[name].weight
        weight.copy_(weight.float() + (layer.up @ layer.down).to(weight.device))


def updates_of(network: TransformerDenoiser, loras: Sequence[tuple[Adapter, float, str]]) -> Adapter:
    """The sum of adapters with their strengths, and what errors call them, by layer of `network`, with scaling 1.

    Raises:
        UserError: an adapter of another model.
    """
    linears = lora.base_linears(network.transformer)
    shapes = {name: lora_files.shape(layer) for name, layer in linears.items()}
    fitted = [
        (lora_files.fit(adapter, shapes, network.fused_layers, which, "the base"), strength)
        for adapter, strength, which in loras
    ]
    return lora_files.weighted_sum(fitted)


def trained_parameters(denoiser: nn.Module, role: str) -> dict[str, nn.Parameter]:
    """Trainable parameters of `role` alone, by their names in the denoiser."""
    named = denoiser.named_parameters()
    return {name: parameter for name, parameter in named if parameter.requires_grad and role in name.split(".")}


class MergedState(RankTensors):
    """Weights of `role` under the names of diffusers, adapters merged, unsharded: each is gathered when it is asked
    for, by all ranks together. One without an adapter stays on its device, and may be the weight itself.

    base: under the same names what adapters are merged into, where the network holds it quantised alone, or no values.
    """

    def __init__(self, denoiser: RoleNetworks, role: str, base: Mapping[str, Tensor] | None = None) -> None:
        transformer = denoiser.network(role).transformer
        self.role, self._layers = role, dict(lora.role_linears(transformer))
        # Layers with adapters over them are named with another step.
        state = transformer.state_dict()
        self._names = {name.replace(".base_layer.", "."): name for name in state if ".lora_" not in name}
        self._state, self._base = state, base
        self.is_gathered = any(isinstance(values, DTensor) for values in state.values())
        assert base is not None or not fp8.is_quantised(transformer), "adapters are not merged into quantised weights"

    def __getitem__(self, name: str) -> Tensor:
        stored = self._names[name]
        owner, _, leaf = stored.partition(".base_layer.")
        layer = self._layers.get(owner)
        if layer is None or leaf != "weight" or self.role not in layer.scaling:
            return self._own(name)
        up, down = (_unsharded(halves[self.role].weight).cpu() for halves in (layer.lora_B, layer.lora_A))
        return self._own(name).cpu() + layer.scaling[self.role] * (up @ down)

    def _own(self, name: str) -> Tensor:
        """Without the adapter."""
        return _unsharded(self._state[self._names[name]]) if self._base is None else self._base[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def merged_state(denoiser: RoleNetworks, role: str, base: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """A copy of `MergedState` on the CPU, whatever the weights go on to be (all ranks must call)."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in MergedState(denoiser, role, base).items()}


def _unsharded(tensor: Tensor | nn.Module) -> Tensor:
    assert isinstance(tensor, Tensor)
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
