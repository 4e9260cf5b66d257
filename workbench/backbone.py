"""Networks behind one interface: Qwen-Image-2.1 split into prefix and velocity. Qwen only here.

Text and reference tokens (the prefix) are modulated at t = 0 and never see the target, so their keys and values
depend on neither t nor x_t: `prefix` computes them once for a condition and a set of weights, and every `velocity`
evaluation of the target tokens attends to them. Written with the submodules of diffusers' own model, whose unpadded
forward is the reference (`tests/test_backbone.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from diffusers import QwenImage21Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from workbench import lora
from workbench.batch import Condition, Layout
from workbench.errors import UserError
from workbench.rotary import Rotary, RotaryTable, rotate

KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Prefix:
    """Keys and values of text and references of each block, (B or 1, P, heads, head_dim), and what the target needs.

    key_valid: (B or 1, 1, 1, P + N) bool over these and the target's own keys, False at padded text.
    rotary: of the target tokens, (B or 1, N, head_dim / 2, 2).
    """

    keys_values: tuple[KeyValue, ...]
    key_valid: Tensor
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


Modulation = tuple[Tensor, Tensor, Tensor, Tensor]
"""Scale and gate of attention, then of the feed-forward: (B or 1, 1, width) each, all blocks share them."""


class SplitBlock(nn.Module):
    """One transformer block over a run of tokens that may also attend to a context computed before."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, x: Tensor, modulation: Modulation, rotary: Rotary, attend: _Attend | None, role: str | None
    ) -> tuple[Tensor, KeyValue]:
        """x (B, S, width) -> new x, and the keys and values of these S tokens.

        attend: None where only keys and values are wanted; x then comes back as it went in.
        """
        block, attn = self.block, self.block.attn
        scale_1, gate_1, scale_2, gate_2 = modulation

        h = block.img_norm1(x) * scale_1
        heads = (-1, attn.inner_dim // attn.heads)
        key = lora.project(attn.to_k, h, role).unflatten(-1, heads)
        value = lora.project(attn.to_v, h, role).unflatten(-1, heads)
        key = rotate(attn.norm_k(key).to(value.dtype), rotary)
        if attend is None:
            return x, (key, value)
        query = lora.project(attn.to_q, h, role).unflatten(-1, heads)
        query = rotate(attn.norm_q(query).to(value.dtype), rotary)
        h = lora.project(attn.to_out[0], attend(query, key, value).flatten(2), role)
        x = torch.addcmul(x, gate_1, h)

        h, mlp = block.img_norm2(x) * scale_2, block.img_mlp
        h = mlp.activation_fn(lora.project(mlp.gate_layer, h, role)) * lora.project(mlp.proj, h, role)
        return torch.addcmul(x, gate_2, lora.project(mlp.out, h, role)), (key, value)


Segment = tuple[int, int, Tensor | None]
"""(start, end, mask) of a run of prefix tokens; mask (end - start, end) bool for text, None for a reference."""


@dataclass(frozen=True)
class PrefixAttention:
    """Block-causal attention inside the prefix: text is causal, each reference sees itself whole and all before it.

    Padding comes last and later text never looks ahead, so no mask by length is needed here.
    """

    segments: tuple[Segment, ...]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outputs = [
            # Text that starts the sequence is causal from its corner on: no mask to read, and the kernel skips half.
            _attention(query[:, start:end], key[:, :end], value[:, :end], None, is_causal=True)
            if start == 0 and mask is not None
            else _attention(query[:, start:end], key[:, :end], value[:, :end], mask)
            for start, end, mask in self.segments
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


@dataclass(frozen=True)
class TargetAttention:
    """Target tokens see all valid prefix tokens and each other. Text after a shared prefix likewise sees what comes
    before it: then the mask is causal.

    key_valid: bool over context and own keys, as `Prefix` holds it, or (S, P + S).
    """

    context: KeyValue
    key_valid: Tensor | None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        prefix_key, prefix_value = (part.expand(len(query), -1, -1, -1).to(key.dtype) for part in self.context)
        return _attention(
            query, torch.cat([prefix_key, key], dim=1), torch.cat([prefix_value, value], dim=1), self.key_valid
        )


_Attend = PrefixAttention | TargetAttention


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool = False) -> Tensor:
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=is_causal).transpose(1, 2)


class SplitTransformer(nn.Module):
    """`QwenImage21Transformer2DModel` as prefix and velocity, over the model's own parameters."""

    def __init__(self, transformer: QwenImage21Transformer2DModel, gradient_checkpointing: bool = False) -> None:
        super().__init__()
        config = transformer.config
        if not config.causal_condition or config.patch_size != 1:
            raise UserError("only Qwen-Image-2.1 transformers with causal_condition and patch_size 1 can be distilled")
        self.embed = nn.ModuleDict(
            {name: child for name, child in transformer.named_children() if name != "transformer_blocks"}
        )
        self.blocks = nn.ModuleList(SplitBlock(block) for block in transformer.transformer_blocks)
        self.table = RotaryTable(tuple(config.axes_dims_rope))
        self.gradient_checkpointing = gradient_checkpointing
        self._segments: dict[tuple[Layout, torch.device], tuple[Segment, ...]] = {}
        self._whole = (transformer,)

    @property
    def transformer(self) -> QwenImage21Transformer2DModel:
        """The diffusers model whose parameters these are (in a tuple, so that they are not registered twice)."""
        return self._whole[0]

    def prefix(self, condition: Condition, role: str | None, shared: Prefix | None = None) -> Prefix:
        layout, device = condition.layout, condition.prompt.device
        segments = self._segments_of(layout, device)
        # Of a prefix that begins like another one, only the text after the last reference is new.
        start, end, mask = segments[-1] if shared is not None else (0, 0, None)
        x = self._embedded(condition) if shared is None else self._text(condition, end - start)
        modulation, _ = self._modulation(torch.zeros(1, device=device), x.dtype)
        rotary = self.table.prefix(layout, device)[:, start:]
        keys_values = []
        for i, block in enumerate(self.blocks):
            context = (
                None if shared is None else (shared.keys_values[i][0][:, :start], shared.keys_values[i][1][:, :start])
            )
            attend = PrefixAttention(segments) if context is None else TargetAttention(context, mask)
            # Nobody reads what the last block makes of the prefix: its keys and values are all that is left to do.
            last = i == len(self.blocks) - 1
            x, key_value = self._run(block, x, modulation, rotary, None if last else attend, role)
            if context is not None:
                (key, value), (own_key, own_value) = context, key_value
                key_value = torch.cat([key, own_key], dim=1), torch.cat([value, own_value], dim=1)
            keys_values.append(key_value)
        return Prefix(tuple(keys_values), _key_valid(condition), self.table.target(layout, condition.lengths))

    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str | None) -> Tensor:
        x = self.embed["img_in"](x_t.to(self._dtype))
        modulation, temb = self._modulation(t, x.dtype)
        for block, context in zip(self.blocks, prefix.keys_values, strict=True):
            attend = TargetAttention(context, prefix.key_valid)
            x, _ = self._run(block, x, modulation, prefix.rotary, attend, role)
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

    def _run(self, block: SplitBlock, *args: object) -> tuple[Tensor, KeyValue]:
        if self.gradient_checkpointing and torch.is_grad_enabled():
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


def _key_valid(condition: Condition) -> Tensor:
    """(B, 1, 1, P + N) bool: False from each sample's true length to the end of the joined prefix."""
    layout, lengths = condition.layout, condition.lengths
    extra = sum(reference.num_tokens - reference.num_slots for reference in layout.references)
    length = layout.text_tokens + extra
    positions = torch.arange(length + layout.num_target_tokens, device=lengths.device)
    return ((positions < (lengths + extra)[:, None]) | (positions >= length))[:, None, None]
