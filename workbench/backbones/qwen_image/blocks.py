"""One transformer block over the text and the image stream, which meet in attention alone, and its compiled form.

The body is a function of tensors: the adapter of a role is looked up before it, so that one compiled body serves all
blocks and roles, and a recomputation sees the weights that its forward saw.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from workbench.backbones import lora
from workbench.backbones.blocks import attention, compiled_body
from workbench.backbones.lora import Projection, project
from workbench.backbones.rotary import Rotary, rotate

Streams = tuple[Tensor, Tensor]
"""Images (B, S, width), target before references, and text (B, L, width)."""


class Attend(Protocol):
    """Attention over text and images; all tensors (B, L + S, heads, head_dim)."""

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class JointAttention:
    """Every token sees all images and the valid text.

    key_valid: (B or 1, 1, 1, L + S) bool, False at padded text; None where all are valid.
    """

    key_valid: Tensor | None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return attention(query, key, value, self.key_valid)


class Stream(NamedTuple):
    """The linear layers of one stream as one role sees them."""

    modulation: Projection
    query: Projection
    key: Projection
    value: Projection
    attention_out: Projection
    up: Projection
    down: Projection


class DualBlock(nn.Module):
    """One transformer block of diffusers' model."""

    block: Any

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block
        gelu = self.block.img_mlp.net[0]
        assert gelu.approximate == "tanh", "the feed-forward is written out with the tanh form of GELU"
        self._body: Body = body

    def compile_body(self, backend: str) -> None:
        """Run the body compiled from now on; the first call with a new shape compiles, which takes seconds."""
        self._body = compiled_body(body, backend)

    def forward(
        self, images: Tensor, text: Tensor, time: Tensor, num_target: int, rotary: Rotary, attend: Attend, role: str
    ) -> Streams:
        """Both streams after the block.

        time: (B, 1, width) activated embedding of t, or (B, 2, width) where references have a time of their own,
        which comes second. num_target: N, the first tokens of the images.
        """
        block, attn = self.block, self.block.attn
        image_layers = (block.img_mod[1], attn.to_q, attn.to_k, attn.to_v, attn.to_out[0], *_ends(block.img_mlp))
        text_layers = (
            *(block.txt_mod[1], attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, attn.to_add_out),
            *_ends(block.txt_mlp),
        )
        of_images, of_text = (
            Stream(*(lora.projection(layer, role, images.dtype) for layer in layers))
            for layers in (image_layers, text_layers)
        )
        return self._body(block, of_images, of_text, images, text, time, num_target, rotary, attend)


Body = Callable[[nn.Module, Stream, Stream, Tensor, Tensor, Tensor, int, Rotary, Attend], Streams]


def body(
    block: Any,
    of_images: Stream,
    of_text: Stream,
    images: Tensor,
    text: Tensor,
    time: Tensor,
    num_target: int,
    rotary: Rotary,
    attend: Attend,
) -> Streams:
    """What `DualBlock` computes; of `block` it reads norms alone."""
    attn, num_text = block.attn, text.shape[1]
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = project(of_images.modulation, time).chunk(6, dim=-1)
    of_time = project(of_text.modulation, time[:, :1])
    text_shift_1, text_scale_1, text_gate_1, text_shift_2, text_scale_2, text_gate_2 = of_time.chunk(6, dim=-1)

    h = _modulated(block.img_norm1(images), shift_1, scale_1, num_target)
    text_h = _modulated(block.txt_norm1(text), text_shift_1, text_scale_1, num_text)
    query, key, value = (
        torch.cat(pair, dim=1)
        for pair in zip(
            _heads(of_text, text_h, attn, attn.norm_added_q, attn.norm_added_k),
            _heads(of_images, h, attn, attn.norm_q, attn.norm_k),
            strict=True,
        )
    )
    h = attend(rotate(query, rotary), rotate(key, rotary), value).flatten(2)
    images = _gated(images, gate_1, project(of_images.attention_out, h[:, num_text:]), num_target)
    text = _gated(text, text_gate_1, project(of_text.attention_out, h[:, :num_text]), num_text)

    h = _feed_forward(of_images, _modulated(block.img_norm2(images), shift_2, scale_2, num_target))
    images = _gated(images, gate_2, h, num_target)
    h = _feed_forward(of_text, _modulated(block.txt_norm2(text), text_shift_2, text_scale_2, num_text))
    return images, _gated(text, text_gate_2, h, num_text)


def _ends(mlp: Any) -> tuple[nn.Module, nn.Module]:
    """First and last layer of a feed-forward."""
    return mlp.net[0].proj, mlp.net[2]


def _heads(of: Stream, h: Tensor, attn: Any, norm_q: nn.Module, norm_k: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of one stream, (B, S, heads, head_dim) each."""
    query, key, value = (project(layer, h).unflatten(-1, (attn.heads, -1)) for layer in (of.query, of.key, of.value))
    return norm_q(query).to(value.dtype), norm_k(key).to(value.dtype), value


def _feed_forward(of: Stream, h: Tensor) -> Tensor:
    return project(of.down, F.gelu(project(of.up, h), approximate="tanh"))


def _modulated(x: Tensor, shift: Tensor, scale: Tensor, num_first: int) -> Tensor:
    """x (1 + scale) + shift; a second row of either is for the tokens after the first `num_first`."""
    rows = zip(_parts(x, shift, num_first), shift.split(1, 1), scale.split(1, 1), strict=True)
    return _joined([torch.addcmul(b, part, 1 + a) for part, b, a in rows])


def _gated(x: Tensor, gate: Tensor, h: Tensor, num_first: int) -> Tensor:
    """x + gate h; a second row of the gate is for the tokens after the first `num_first`."""
    rows = zip(_parts(x, gate, num_first), gate.split(1, 1), _parts(h, gate, num_first), strict=True)
    return _joined([torch.addcmul(part, factor, new) for part, factor, new in rows])


def _parts(x: Tensor, modulation: Tensor, num_first: int) -> tuple[Tensor, ...]:
    """x (B, S, width) by the rows of a modulation (B, 1 or 2, width)."""
    return (x,) if modulation.shape[1] == 1 else (x[:, :num_first], x[:, num_first:])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
