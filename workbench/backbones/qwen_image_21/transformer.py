"""Networks behind one interface: Qwen-Image-2.1 split into prefix and velocity. Qwen only here.

Text and reference tokens (the prefix) are modulated at t = 0 and never see the target, so their keys and values
depend on neither t nor x_t: `prefix` computes them once for a condition and a set of weights, and every `velocity`
evaluation of the target tokens attends to them. Written with the submodules of diffusers' own model, whose unpadded
forward is the reference (`tests/backbones/qwen_image_21/test_transformer.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from diffusers import QwenImage21Transformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from workbench.backbones.qwen_image_21.blocks import (
    KeyValue,
    Modulation,
    PrefixAttention,
    Segment,
    SplitBlock,
    TargetAttention,
)
from workbench.backbones.qwen_image_21.rotary import Rotary, RotaryTable
from workbench.batch import Condition, Layout
from workbench.common.errors import UserError


@dataclass(frozen=True)
class Prefix:
    """Keys and values of text and references of each block, (B or 1, P, heads, head_dim), and what the target needs.

    key_valid: (B or 1, 1, 1, P + N) bool over these and the target's own keys, False at padded text; None where the
    layout has no padding, which leaves attention its fastest kernels.
    rotary: of the target tokens, (B or 1, N, head_dim / 2, 2).
    """

    keys_values: tuple[KeyValue, ...]
    key_valid: Tensor | None
    rotary: Rotary

    def detach(self) -> Prefix:
        """The same prefix for evaluations without gradient."""
        return replace(self, keys_values=tuple((k.detach(), v.detach()) for k, v in self.keys_values))


class Denoiser(Protocol):
    """A velocity network in two parts over C = num_channels; `role` says whose weights."""

    num_channels: int

    def prefix(self, condition: Condition, role: str, shared: Prefix | None = None) -> Prefix:
        """All that depends on neither t nor x_t.

        shared: this role's prefix of another condition that is alike up to the end of the last reference.
        """

    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> Tensor:
        """Velocity of the target tokens: (B, N, C), (B,) -> (B, N, C)."""


class SplitTransformer(nn.Module):
    """`QwenImage21Transformer2DModel` as prefix and velocity, over the model's own parameters."""

    def __init__(
        self, transformer: QwenImage21Transformer2DModel, gradient_checkpointing: bool = False, stored_blocks: int = 0
    ) -> None:
        """stored_blocks: how many blocks, the last ones, keep their activations although the others recompute them."""
        super().__init__()
        config = transformer.config
        if not config.causal_condition or config.patch_size != 1:
            raise UserError("only Qwen-Image-2.1 transformers with causal_condition and patch_size 1 can be distilled")
        self.embed = nn.ModuleDict(
            {name: child for name, child in transformer.named_children() if name != "transformer_blocks"}
        )
        self.blocks = nn.ModuleList(SplitBlock(block) for block in transformer.transformer_blocks)
        self.table = RotaryTable(tuple(config.axes_dims_rope))
        # Stored activations of the last blocks are gone by the time that the first ones are recomputed.
        self.num_recomputed = max(0, len(self.blocks) - stored_blocks) if gradient_checkpointing else 0
        self.compiled = False
        self._segments: dict[tuple[Layout, torch.device], tuple[Segment, ...]] = {}
        self._whole = (transformer,)

    @property
    def transformer(self) -> QwenImage21Transformer2DModel:
        """The diffusers model whose parameters these are (in a tuple, so that they are not registered twice)."""
        return self._whole[0]

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks, one body for all of them; see `SplitBlock.compile_body`."""
        self.compiled = True
        for block in self.blocks:
            assert isinstance(block, SplitBlock)
            block.compile_body(backend)

    def prefix(self, condition: Condition, role: str | None, shared: Prefix | None = None) -> Prefix:
        layout, device = condition.layout, condition.prompt.device
        segments = self._segments_of(layout, device)
        # Of a prefix that begins like another one, only the text after the last reference is new.
        start, end, mask = segments[-1] if shared is not None else (0, 0, None)
        x = self._graded(self._embedded(condition) if shared is None else self._text(condition, end - start))
        modulation, _ = self._modulation(torch.zeros(1, device=device), x.dtype)
        rotary = self.table.prefix(layout, device)[:, start:]
        keys_values = []
        for i in range(len(self.blocks)):
            context: KeyValue | None = None
            if shared is not None:
                key, value = shared.keys_values[i]
                context = key[:, :start], value[:, :start]
            attend = PrefixAttention(segments) if context is None else TargetAttention(context, mask)
            # Nobody reads what the last block makes of the prefix: its keys and values are all that is left to do.
            last = i == len(self.blocks) - 1
            x, key_value = self._run(i, x, modulation, rotary, None if last else attend, role)
            if context is not None:
                key_value = _joined(context, key_value)
            keys_values.append(key_value)
        return Prefix(tuple(keys_values), _key_valid(condition), self.table.target(layout, condition.lengths))

    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str | None) -> Tensor:
        x = self._graded(self.embed["img_in"](x_t.to(self._dtype)))
        modulation, temb = self._modulation(t, x.dtype)
        for i, context in enumerate(prefix.keys_values):
            attend = TargetAttention(context, prefix.key_valid)
            x, _ = self._run(i, x, modulation, prefix.rotary, attend, role)
        return self.embed["proj_out"](self.embed["norm_out"](x, temb)).to(x_t.dtype)

    def _text(self, condition: Condition, last: int | None = None) -> Tensor:
        """Embedded text, (B, L, width), or the last tokens of it."""
        prompt = condition.prompt if last is None else condition.prompt[:, -last:]
        return self.embed["txt_in"](prompt.to(self._dtype))

    def _embedded(self, condition: Condition) -> Tensor:
        """Text and references in one sequence, (B, P, width)."""
        references = None
        if condition.references is not None:
            references = self.embed["img_in"](condition.references.to(self._dtype))
        return _join(self._text(condition), references, condition.layout)

    def _segments_of(self, layout: Layout, device: torch.device) -> tuple[Segment, ...]:
        """Built once a layout and device, so that a captured step builds no masks."""
        if (layout, device) not in self._segments:
            self._segments[layout, device] = tuple(
                (
                    start,
                    end,
                    torch.ones(end - start, end, dtype=torch.bool, device=device).tril(start) if text else None,
                )
                for start, end, text in _runs(layout)
            )
        return self._segments[layout, device]

    @property
    def _dtype(self) -> torch.dtype:
        """What the weights are in right now: bfloat16 inside a sharded forward that computes in it."""
        weight = self.embed["img_in"].weight
        assert isinstance(weight, Tensor)
        return weight.dtype

    def _modulation(self, t: Tensor, dtype: torch.dtype) -> tuple[Modulation, Tensor]:
        time = self.embed["time_text_embed"]
        temb = time.timestep_embedder(time.time_proj(t.float()).to(dtype))
        scale_1, gate_1, scale_2, gate_2 = self.embed["modulation"](temb).unsqueeze(1).chunk(4, dim=-1)
        return (1 + scale_1, gate_1.tanh(), 1 + scale_2, gate_2.tanh()), temb

    def _graded(self, x: Tensor) -> Tensor:
        """Under a frozen embedding the first block alone would see an input without gradient, and be compiled apart."""
        return x.detach().requires_grad_() if self.compiled and torch.is_grad_enabled() and not x.requires_grad else x

    def _run(self, i: int, *args: object) -> tuple[Tensor, KeyValue]:
        block = self.blocks[i]
        if i < self.num_recomputed and torch.is_grad_enabled():
            # No block draws random numbers, and saving their state is what a CUDA graph cannot hold.
            return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)
        return block(*args)


class QwenImage21(nn.Module):
    """A `Denoiser` whose roles share networks or not: role -> network by name, adapters inside a shared one."""

    def __init__(self, networks: Mapping[str, SplitTransformer], network_of_role: Mapping[str, str]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(networks)
        self.network_of_role = dict(network_of_role)
        self.num_channels = next(iter(networks.values())).transformer.config.in_channels

    def network(self, role: str) -> SplitTransformer:
        """The network that `role` runs through."""
        network = self.networks[self.network_of_role[role]]
        assert isinstance(network, SplitTransformer)
        return network

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile the blocks of every network."""
        for network in self.networks.values():
            assert isinstance(network, SplitTransformer)
            network.compile_blocks(backend)

    def prefix(self, condition: Condition, role: str, shared: Prefix | None = None) -> Prefix:
        """See `Denoiser`."""
        return self.network(role).prefix(condition, role, shared)

    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> Tensor:
        """See `Denoiser`."""
        return self.network(role).velocity(prefix, x_t, t, role)


def single_role(transformer: QwenImage21Transformer2DModel, role: str = "teacher") -> QwenImage21:
    """One network, one role: for sampling."""
    return QwenImage21({role: SplitTransformer(transformer)}, {role: role})


@dataclass(frozen=True)
class RoleDenoiser:
    """A denoiser with its role filled in. Not a module: holding one registers no parameters."""

    denoiser: Denoiser
    role: str

    @property
    def num_channels(self) -> int:
        return self.denoiser.num_channels

    def prefix(self, condition: Condition, shared: Prefix | None = None) -> Prefix:
        """See `Denoiser`."""
        return self.denoiser.prefix(condition, self.role, shared)

    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor) -> Tensor:
        """See `Denoiser`."""
        return self.denoiser.velocity(prefix, x_t, t, self.role)


def _runs(layout: Layout) -> list[tuple[int, int, bool]]:
    """(start, end, is_text) of the runs of tokens that make up the joined prefix."""
    runs, read, length = [], 0, 0
    for reference in layout.references:
        for count, is_text in ((reference.slot - read, True), (reference.num_tokens, False)):
            if count:
                runs.append((length, length + count, is_text))
                length += count
        read = reference.slot + reference.num_slots
    if layout.text_tokens > read:
        runs.append((length, length + layout.text_tokens - read, True))
    return runs


def _join(text: Tensor, references: Tensor | None, layout: Layout) -> Tensor:
    """Text with each reference's tokens in the place of its slots."""
    parts, read, used = [], 0, 0
    for reference in layout.references:
        assert references is not None
        parts += [text[:, read : reference.slot], references[:, used : used + reference.num_tokens]]
        read, used = reference.slot + reference.num_slots, used + reference.num_tokens
    return torch.cat([*parts, text[:, read:]], dim=1) if parts else text


def _joined(context: KeyValue, own: KeyValue) -> KeyValue:
    """Keys and values of the tokens before, then of those after."""
    return torch.cat([context[0], own[0]], dim=1), torch.cat([context[1], own[1]], dim=1)


def _key_valid(condition: Condition) -> Tensor | None:
    """(B, 1, 1, P + N) bool: False from each sample's true length to the end of the joined prefix."""
    layout, lengths = condition.layout, condition.lengths
    if not layout.padded:
        return None
    length = layout.num_prefix_tokens
    extra = length - layout.text_tokens
    positions = torch.arange(length + layout.num_target_tokens, device=lengths.device)
    return ((positions < (lengths + extra)[:, None]) | (positions >= length))[:, None, None]
