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

    key_valid: (B or 1, P) bool, False at padded text. rotary: of the target tokens, (B or 1, N, head_dim / 2) each.
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

    def prefix(self, condition: Condition, role: str) -> Prefix:
        """All that depends on neither t nor x_t."""

    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> Tensor:
        """Velocity of the target tokens: (B, N, C), (B,) -> (B, N, C)."""


class SplitBlock(nn.Module):
    """One transformer block over a run of tokens that may also attend to a context computed before."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, x: Tensor, modulation: Tensor, rotary: Rotary, attend: _Attend, role: str | None
    ) -> tuple[Tensor, KeyValue]:
        """x (B, S, width), modulation (B or 1, 4 width) -> new x, and the keys and values of these S tokens."""
        block, attn = self.block, self.block.attn
        scale_1, gate_1, scale_2, gate_2 = modulation.unsqueeze(1).chunk(4, dim=-1)

        h = block.img_norm1(x) * (1 + scale_1)
        heads = (-1, attn.inner_dim // attn.heads)
        query = lora.project(attn.to_q, h, role).unflatten(-1, heads)
        key = lora.project(attn.to_k, h, role).unflatten(-1, heads)
        value = lora.project(attn.to_v, h, role).unflatten(-1, heads)
        query = rotate(attn.norm_q(query).to(value.dtype), rotary)
        key = rotate(attn.norm_k(key).to(value.dtype), rotary)
        h = lora.project(attn.to_out[0], attend(query, key, value).flatten(2), role)
        x = x + gate_1.tanh() * h

        h, mlp = block.img_norm2(x) * (1 + scale_2), block.img_mlp
        h = mlp.activation_fn(lora.project(mlp.gate_layer, h, role)) * lora.project(mlp.proj, h, role)
        x = x + gate_2.tanh() * lora.project(mlp.out, h, role)
        return x, (key, value)


@dataclass(frozen=True)
class PrefixAttention:
    """Block-causal attention inside the prefix: text is causal, each reference sees itself whole and all before it.

    Padding comes last and later text never looks ahead, so no mask by length is needed here.
    """

    segments: tuple[tuple[int, int, bool], ...]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outputs = []
        for start, end, is_text in self.segments:
            mask = torch.ones(end - start, end, dtype=torch.bool, device=query.device).tril(start) if is_text else None
            outputs.append(_attention(query[:, start:end], key[:, :end], value[:, :end], mask))
        return torch.cat(outputs, dim=1)


@dataclass(frozen=True)
class TargetAttention:
    """Target tokens see all valid prefix tokens and each other."""

    context: KeyValue
    key_valid: Tensor

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch_size, num_tokens = query.shape[:2]
        prefix_key, prefix_value = (part.expand(batch_size, -1, -1, -1).to(key.dtype) for part in self.context)
        valid = F.pad(self.key_valid.expand(batch_size, -1), (0, num_tokens), value=True)
        return _attention(
            query,
            torch.cat([prefix_key, key], dim=1),
            torch.cat([prefix_value, value], dim=1),
            valid[:, None, None, :],
        )


_Attend = PrefixAttention | TargetAttention


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)


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
        self._whole = (transformer,)

    @property
    def transformer(self) -> QwenImage21Transformer2DModel:
        """The diffusers model whose parameters these are (in a tuple, so that they are not registered twice)."""
        return self._whole[0]

    def prefix(self, condition: Condition, role: str | None) -> Prefix:
        layout, dtype = condition.layout, self._dtype
        text = self.embed["txt_in"](condition.prompt.to(dtype))
        references = None
        if condition.references is not None:
            references = self.embed["img_in"](condition.references.to(dtype))
        x, segments = _join(text, references, layout)
        modulation, _ = self._modulation(torch.zeros(1, device=x.device), x.dtype)
        rotary = self.table.prefix(layout, x.device)
        attend = PrefixAttention(segments)
        keys_values = []
        for block in self.blocks:
            x, key_value = self._run(block, x, modulation, rotary, attend, role)
            keys_values.append(key_value)
        return Prefix(tuple(keys_values), _key_valid(condition, segments), self.table.target(layout, condition.lengths))

    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str | None) -> Tensor:
        x = self.embed["img_in"](x_t.to(self._dtype))
        modulation, temb = self._modulation(t, x.dtype)
        for block, context in zip(self.blocks, prefix.keys_values, strict=True):
            attend = TargetAttention(context, prefix.key_valid)
            x, _ = self._run(block, x, modulation, prefix.rotary, attend, role)
        return self.embed["proj_out"](self.embed["norm_out"](x, temb)).to(x_t.dtype)

    @property
    def _dtype(self) -> torch.dtype:
        """What the weights are in right now: bfloat16 inside a sharded forward that computes in it."""
        weight = self.embed["img_in"].weight
        assert isinstance(weight, Tensor)
        return weight.dtype

    def _modulation(self, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        time = self.embed["time_text_embed"]
        temb = time.timestep_embedder(time.time_proj(t.float()).to(dtype))
        return self.embed["modulation"](temb), temb

    def _run(self, block: SplitBlock, *args: object) -> tuple[Tensor, KeyValue]:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False)
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

    def prefix(self, condition: Condition, role: str) -> Prefix:
        """See `Denoiser`."""
        return self.network(role).prefix(condition, role)

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

    def prefix(self, condition: Condition) -> Prefix:
        """See `Denoiser`."""
        return self.denoiser.prefix(condition, self.role)

    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor) -> Tensor:
        """See `Denoiser`."""
        return self.denoiser.velocity(prefix, x_t, t, self.role)


def _join(text: Tensor, references: Tensor | None, layout: Layout) -> tuple[Tensor, tuple[tuple[int, int, bool], ...]]:
    """Text with each reference's tokens in the place of its slots, and the (start, end, is_text) runs of the result."""
    parts, segments, read, used, length = [], [], 0, 0, 0

    def append(part: Tensor, is_text: bool) -> None:
        nonlocal length
        if part.shape[1]:
            parts.append(part)
            segments.append((length, length + part.shape[1], is_text))
            length += part.shape[1]

    for reference in layout.references:
        assert references is not None
        append(text[:, read : reference.slot], True)
        append(references[:, used : used + reference.num_tokens], False)
        read, used = reference.slot + reference.num_slots, used + reference.num_tokens
    append(text[:, read:], True)
    return torch.cat(parts, dim=1), tuple(segments)


def _key_valid(condition: Condition, segments: tuple[tuple[int, int, bool], ...]) -> Tensor:
    """(B, P) bool over the joined prefix: False from each sample's true length on."""
    num_slots = sum(reference.num_slots for reference in condition.layout.references)
    num_tokens = sum(reference.num_tokens for reference in condition.layout.references)
    positions = torch.arange(segments[-1][1], device=condition.prompt.device)
    return positions[None] < (condition.lengths - num_slots + num_tokens)[:, None]
