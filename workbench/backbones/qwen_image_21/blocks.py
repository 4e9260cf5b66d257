"""One transformer block over a run of tokens, its attention to what was computed before, and its compiled form.

The body is a function of tensors: the adapter of a role is looked up before it, so that one compiled body serves all
blocks and roles, and a recomputation sees the weights that its forward saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.backbones import lora
from workbench.backbones.blocks import attention, compiled_body
from workbench.backbones.lora import Projection, project
from workbench.backbones.rotary import Rotary, rotate

KeyValue = tuple[Tensor, Tensor]
Modulation = tuple[Tensor, Tensor, Tensor, Tensor]
"""Scale and gate of attention, then of the feed-forward: (B or 1, 1, width) each, all blocks share them."""
Segment = tuple[int, int, Tensor | None]
"""(start, end, mask) of a run of prefix tokens; mask (end - start, end) bool for text, None for a reference."""


@dataclass(frozen=True)
class PrefixAttention:
    """Block-causal attention inside the prefix: text is causal; a reference sees itself and everything before it.

    Padding comes last and later text never looks ahead, so no mask by length is needed here.
    """

    segments: tuple[Segment, ...]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        outputs = [
            # Text that starts the sequence is causal from its corner on: no mask to read, and the kernel skips half.
            attention(query[:, start:end], key[:, :end], value[:, :end], None, is_causal=True)
            if start == 0 and mask is not None
            else attention(query[:, start:end], key[:, :end], value[:, :end], mask)
            for start, end, mask in self.segments
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)


@dataclass(frozen=True)
class TargetAttention:
    """Target tokens see all valid prefix tokens and each other. Text that follows a shared prefix uses it too, with a
    causal mask.

    context: in parts, one after the other. key_valid: bool over the context's keys and those of the target, as
    `CachedPrefix` holds it, or (S, P + S); None where all are valid.
    """

    context: tuple[KeyValue, ...]
    key_valid: Tensor | None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys = [part.expand(len(query), -1, -1, -1).to(key.dtype) for part, _ in self.context]
        values = [part.expand(len(query), -1, -1, -1).to(key.dtype) for _, part in self.context]
        return attention(query, torch.cat([*keys, key], dim=1), torch.cat([*values, value], dim=1), self.key_valid)


Attend = PrefixAttention | TargetAttention


class Projections(NamedTuple):
    """The linear layers of a block as one role sees them."""

    query: Projection
    key: Projection
    value: Projection
    attention_out: Projection
    gate: Projection
    up: Projection
    down: Projection


class SplitBlock(nn.Module):
    """One transformer block of diffusers' model over a run of tokens that may also attend to a context."""

    block: Any

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        assert isinstance(self.block.img_mlp.activation_fn, nn.SiLU), "the feed-forward is written out with SiLU"
        self._body: Body = body

    def compile_body(self, backend: str) -> None:
        """Run the body compiled from now on; the first call with a new shape compiles, which takes seconds."""
        self._body = compiled_body(body, backend)

    def forward(
        self, x: Tensor, modulation: Modulation, rotary: Rotary, attend: Attend | None, role: str | None
    ) -> tuple[Tensor, KeyValue]:
        """x (B, S, width) -> new x, and the keys and values of these S tokens.

        attend: None where only keys and values are wanted; x then comes back as it went in.
        """
        attn, mlp = self.block.attn, self.block.img_mlp
        linears = (attn.to_q, attn.to_k, attn.to_v, attn.to_out[0], mlp.gate_layer, mlp.proj, mlp.out)
        projections = Projections(*(lora.projection(linear, role, x.dtype) for linear in linears))
        # Keys and values alone are two products: not worth a separate compiled body.
        run = self._body if attend is not None else body
        return run(self.block, projections, x, modulation, rotary, attend)


Body = Callable[[nn.Module, Projections, Tensor, Modulation, Rotary, Attend | None], tuple[Tensor, KeyValue]]


def body(
    block: Any,
    projections: Projections,
    x: Tensor,
    modulation: Modulation,
    rotary: Rotary,
    attend: Attend | None,
) -> tuple[Tensor, KeyValue]:
    """What `SplitBlock` computes; of `block` it reads norms alone."""
    attn = block.attn
    scale_1, gate_1, scale_2, gate_2 = modulation

    h = _times(block.img_norm1(x), scale_1)
    heads = (-1, attn.inner_dim // attn.heads)
    key = project(projections.key, h).unflatten(-1, heads)
    value = project(projections.value, h).unflatten(-1, heads)
    key = rotate(attn.norm_k(key).to(value.dtype), rotary)
    if attend is None:
        return x, (key, value)
    query = project(projections.query, h).unflatten(-1, heads)
    query = rotate(attn.norm_q(query).to(value.dtype), rotary)
    h = project(projections.attention_out, attend(query, key, value).flatten(2))
    x = torch.addcmul(x, gate_1, h)

    h = _times(block.img_norm2(x), scale_2)
    gate = F.silu(project(projections.gate, h), inplace=not torch.is_grad_enabled())
    h = project(projections.down, _times(gate, project(projections.up, h)))
    # x was made in this block, so it may be overwritten.
    x = torch.addcmul(x, gate_2, h) if torch.is_grad_enabled() else x.addcmul_(gate_2, h)
    return x, (key, value)


def _times(x: Tensor, factor: Tensor) -> Tensor:
    """x * factor, in place where no gradient needs x and nothing else holds it: fresh memory costs more than the
    product."""
    return x * factor if torch.is_grad_enabled() or factor.dtype != x.dtype else x.mul_(factor)
