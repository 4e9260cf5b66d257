"""The interface of a velocity network, in two parts: one per condition and one per evaluation.

`prefixes` reads conditions, `velocity` evaluates the target tokens given the result. How much work the first part does
is the family's choice: nearly all that concerns text and references where these never see t, little where they do.
Symbols as in `workbench.batch`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.backbones.lora_keys import FusedLayers
from workbench.backbones.stored_weights import WeightSource
from workbench.batch import Condition
from workbench.method import rollout


class Prefix(ABC):
    """Everything computed from a condition that depends on neither t nor x_t; opaque to all but its family.

    Two prefixes of one network whose tensors agree in number, shape and dtype differ in these tensors alone, so that a
    recorded evaluation of one can be replayed on the other.
    """

    @abstractmethod
    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same prefix with every tensor changed, always visited in the same order."""

    def tensors(self) -> list[Tensor]:
        """All tensors, in the order of `map`."""
        found: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            found.append(tensor)
            return tensor

        self.map(keep)
        return found

    def over(self, tensors: Sequence[Tensor]) -> Self:
        """The same prefix over other tensors, given in the order of `tensors`."""
        remaining = iter(tensors)
        return self.map(lambda _: next(remaining))

    def detach(self) -> Self:
        """The same prefix for evaluations without gradient."""
        return self.map(Tensor.detach)


class Denoiser(nn.Module, ABC):
    """A velocity network over num_channels = C latent channels. Every call names the `role` whose weights it uses, so
    that interleaved and recomputed evaluations always see the right ones.

    prompt_width: D of the prompt embeddings that it reads.
    num_features: width of the features that `velocity_and_features` gives; 0 where the family has none.
    """

    num_channels: int
    prompt_width: int
    num_features: int = 0

    @abstractmethod
    def prefixes(self, cond: Condition, uncond: Condition | None, role: str) -> tuple[Prefix, Prefix | None]:
        """Prefixes of a condition and, where it is given, of the same samples under the empty prompt. The family may
        compute once what both share."""

    @abstractmethod
    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> Tensor:
        """Velocity of the target tokens: (B, N, C), (B,) -> (B, N, C). A prefix of one row serves all rows of x_t."""

    def velocity_and_features(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> tuple[Tensor, Tensor]:
        """`velocity`, and what the target tokens are half-way through the network, (B, N, num_features). Optional: the
        adversarial term alone reads them."""
        raise NotImplementedError

    def prefix(self, condition: Condition, role: str) -> Prefix:
        """The prefix of one condition alone."""
        return self.prefixes(condition, None, role)[0]

    def transformers(self) -> Iterable[TransformerDenoiser]:
        """The networks inside, to be sharded and compiled; a closed form has none."""
        return ()


class TransformerDenoiser(Denoiser):
    """A denoiser over one transformer of diffusers, with what roles, adapters, sharding and planning need of it.

    blocks: the repeated part of the network: sharded, compiled and recomputed block by block; LoRA adapts its linear
    layers. num_recomputed: how many of the blocks, the first ones, recompute their activations in the
    backward pass. compiled: whether the blocks run compiled. fused_layers: layers that LoRA files of other programs
    adapt as one. adaptable: linear layers outside the blocks that a LoRA file may adapt too, since the network looks up
    the role's adapter there. source: where the values come from of a network that was built without any, once it is
    sharded. unquantised: linear layers inside the blocks, by the ends of their names, that are never held in 8 bits.
    """

    fused_layers: ClassVar[FusedLayers] = {}
    adaptable: ClassVar[tuple[str, ...]] = ()
    unquantised: ClassVar[tuple[str, ...]] = ()
    blocks: nn.ModuleList
    num_recomputed: int
    compiled: bool
    source: WeightSource | None = None

    @property
    @abstractmethod
    def transformer(self) -> nn.Module:
        """The model of diffusers that holds the parameters; its `state_dict` has the names of a pipeline folder."""

    @abstractmethod
    def compile_blocks(self, backend: str = "inductor") -> None:
        """Run the blocks compiled from now on."""

    @abstractmethod
    def activation_bytes(self, condition: Condition, role: str, dtype: torch.dtype) -> int:
        """Bytes that one evaluation with gradient, computed in `dtype`, keeps for its backward pass."""

    @abstractmethod
    def prefix_bytes(self, condition: Condition, dtype: torch.dtype) -> int:
        """Bytes of one prefix of `condition` without gradient."""

    def pair_bytes(self, cond: Condition, uncond: Condition | None, dtype: torch.dtype) -> int:
        """Bytes of what `prefixes` gives, without gradient."""
        return sum(self.prefix_bytes(one, dtype) for one in (cond, uncond) if one is not None)

    def transformers(self) -> Iterable[TransformerDenoiser]:
        return (self,)

    def run_block(self, i: int, *args: object) -> Any:
        """What block i gives for `args`; its activations are computed again in the backward pass where that is due."""
        if i < self.num_recomputed and torch.is_grad_enabled():
            # No block draws random numbers, and saving their state is what a CUDA graph cannot hold.
            return checkpoint(self.blocks[i], *args, use_reentrant=False, preserve_rng_state=False)
        return self.blocks[i](*args)

    def graded(self, x: Tensor) -> Tensor:
        """x with gradient for compiled blocks: under a frozen embedding the first block would otherwise get an input
        without gradient, and need a compilation of its own."""
        return x.detach().requires_grad_() if self.compiled and torch.is_grad_enabled() and not x.requires_grad else x


class NetworkFactory(Protocol):
    """Makes the denoiser of a family from a transformer as diffusers loads it."""

    def __call__(
        self, transformer: nn.Module, gradient_checkpointing: bool = False, stored_blocks: int = 0
    ) -> TransformerDenoiser:
        """stored_blocks: blocks, the last ones, that keep their activations although the others recompute them."""


class RoleNetworks(Denoiser):
    """Networks by name, and which of them each role uses; roles that share a network differ in their adapters."""

    def __init__(self, networks: Mapping[str, TransformerDenoiser], network_of_role: Mapping[str, str]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        self.network_of_role = dict(network_of_role)
        some = next(iter(networks.values()))
        self.num_channels, self.prompt_width = some.num_channels, some.prompt_width
        self.num_features = some.num_features
        # The same networks again: to a type checker the values of a ModuleDict are plain modules.
        self.by_name = dict(networks)

    def network(self, role: str) -> TransformerDenoiser:
        """The network that `role` runs through."""
        return self.by_name[self.network_of_role[role]]

    def transformers(self) -> Iterable[TransformerDenoiser]:
        return self.by_name.values()

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks of every network."""
        for network in self.transformers():
            network.compile_blocks(backend)

    def prefixes(self, cond: Condition, uncond: Condition | None, role: str) -> tuple[Prefix, Prefix | None]:
        return self.network(role).prefixes(cond, uncond, role)

    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> Tensor:
        return self.network(role).velocity(prefix, x_t, t, role)

    def velocity_and_features(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> tuple[Tensor, Tensor]:
        return self.network(role).velocity_and_features(prefix, x_t, t, role)


@dataclass(frozen=True)
class RoleDenoiser:
    """A denoiser with its role filled in. Not a module: holding one registers no parameters."""

    denoiser: Denoiser
    role: str

    @property
    def num_channels(self) -> int:
        return self.denoiser.num_channels

    @property
    def prompt_width(self) -> int:
        return self.denoiser.prompt_width

    @property
    def num_features(self) -> int:
        return self.denoiser.num_features

    def prefixes(self, cond: Condition, uncond: Condition | None) -> tuple[Prefix, Prefix | None]:
        """See `Denoiser`."""
        return self.denoiser.prefixes(cond, uncond, self.role)

    def prefix(self, condition: Condition) -> Prefix:
        """See `Denoiser`."""
        return self.denoiser.prefix(condition, self.role)

    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor) -> Tensor:
        """See `Denoiser`."""
        return self.denoiser.velocity(prefix, x_t, t, self.role)

    def velocity_and_features(self, prefix: Prefix, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `Denoiser`."""
        return self.denoiser.velocity_and_features(prefix, x_t, t, self.role)

    @torch.no_grad()
    def sample(
        self,
        cond: Condition,
        uncond: Condition | None,
        noise: Tensor,
        times: Tensor,
        cfg_scale: float = 1.0,
        fresh: rollout.Fresh | None = None,
        cfg_rescale: float = 0.0,
    ) -> Tensor:
        """x0 (B, N, C) over `times` from 1 to 0, guided where `uncond` is given and cfg_scale is not 1.

        fresh: see `rollout.sample`. cfg_rescale: see `rollout.Sampling`.
        """
        prompted = partial(self.velocity, self.prefix(cond))
        empty = partial(self.velocity, self.prefix(uncond)) if cfg_scale != 1 and uncond is not None else None
        velocity = rollout.guided(prompted, empty, cfg_scale, cfg_rescale)
        return rollout.sample(velocity, noise, times.to(noise.device), fresh)
