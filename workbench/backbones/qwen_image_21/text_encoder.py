"""Qwen3-VL as a trainable text encoder over batches of one layout: no loops over samples, no host synchronisation.

Computes what `QwenImage21Pipeline` reads, the last decoder layer's output before the final norm, with the submodules of
transformers. Right padding is exact here: attention is causal, so no valid token sees it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_position_ids

TEMPORAL_PATCH = 2
"""Qwen3-VL reads a still image as two equal frames."""


@dataclass(frozen=True)
class ImageSlots:
    """Where one image sits in the token sequence, and its grid in merged patches (slots)."""

    start: int
    height: int
    width: int

    @property
    def stop(self) -> int:
        return self.start + self.height * self.width


def embed(
    encoder: Qwen3VLForConditionalGeneration, token_ids: Tensor, images: Tensor | None, slots: ImageSlots | None
) -> Tensor:
    """Hidden states (B, S, D) of token_ids (B, S), right-padded, with one image (B, H, W, 3) uint8 a sample or none."""
    language = encoder.model.language_model
    hidden = language.embed_tokens(token_ids)
    deepstack: list[Tensor] = []
    if images is not None:
        assert slots is not None
        merged, deepstack = _vision(encoder.model.visual, images, slots)
        hidden = torch.cat([hidden[:, : slots.start], merged.to(hidden.dtype), hidden[:, slots.stop :]], dim=1)
    positions = _positions(token_ids.shape[1], slots, token_ids.device)
    rotary = language.rotary_emb(hidden, positions)
    for index, layer in enumerate(language.layers):
        hidden = layer(hidden, attention_mask=None, position_embeddings=rotary)
        if index < len(deepstack):
            assert slots is not None
            after = token_ids.shape[1] - slots.stop
            hidden = hidden + F.pad(deepstack[index].to(hidden.dtype), (0, 0, slots.start, after))
    return hidden


def patches(images: Tensor, patch_size: int, merge_size: int) -> Tensor:
    """uint8 (B, H, W, 3) -> (B, P, 3 * 2 * patch * patch) in [-1, 1], in the order of Qwen's image processor."""
    batch_size, height, width, channels = images.shape
    rows, columns = height // patch_size // merge_size, width // patch_size // merge_size
    x = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    x = x.reshape(batch_size, channels, rows, merge_size, patch_size, columns, merge_size, patch_size)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(1, 4)
    return x.unsqueeze(3).expand(-1, -1, -1, TEMPORAL_PATCH, -1, -1).flatten(2)


def _vision(visual: nn.Module, images: Tensor, slots: ImageSlots) -> tuple[Tensor, list[Tensor]]:
    """Merged image tokens (B, slots, D) and the deepstack features of the same shape."""
    config, batch_size = visual.config, len(images)
    dtype = visual.patch_embed.proj.weight.dtype
    x = patches(images, config.patch_size, config.spatial_merge_size).to(dtype)
    num_patches = x.shape[1]
    positions, indices, weights = _vision_grid(
        slots.height,
        slots.width,
        config.spatial_merge_size,
        visual.num_grid_per_side,
        visual.interpolation_mode,
        visual.interpolation_align_corners,
        images.device,
    )
    embedded = visual.pos_embed(indices) * weights[:, :, None].to(dtype)
    x = visual.patch_embed(x.flatten(0, 1)).unflatten(0, (batch_size, num_patches)) + embedded.sum(1)
    cos, sin = (part.repeat(batch_size, 1) for part in visual.rotary_pos_emb(x, positions))
    deepstack = []
    for index, block in enumerate(visual.blocks):
        x = x + _vision_attention(block.attn, block.norm1(x), cos, sin)
        x = x + block.mlp(block.norm2(x))
        if index in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(index)]
            deepstack.append(merger(x.flatten(0, 1)).unflatten(0, (batch_size, -1)))
    return visual.merger(x.flatten(0, 1)).unflatten(0, (batch_size, -1)), deepstack


@cache
def _vision_grid(
    height: int,
    width: int,
    merge_size: int,
    num_grid_per_side: int,
    mode: str,
    align_corners: bool,
    device: torch.device,
) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of an image's patches, and which learned positions they interpolate: made once, not in every step."""
    grid = torch.tensor([[1, height * merge_size, width * merge_size]])
    indices, weights = get_vision_interpolation_indices_and_weights(
        grid,
        num_grid_per_side=num_grid_per_side,
        mode=mode,
        align_corners=align_corners,
        spatial_merge_size=merge_size,
        kwargs={},
    )
    positions = get_vision_position_ids(grid, merge_size, kwargs={})
    return positions.to(device), indices.to(device), weights.to(device)


def _vision_attention(attn: nn.Module, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    batch_size, num_patches, _ = x.shape
    query, key, value = attn.qkv(x).reshape(batch_size * num_patches, 3, attn.num_heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, cos, sin)
    query, key, value = (
        part.unflatten(0, (batch_size, num_patches)).transpose(1, 2).to(x.dtype) for part in (query, key, value)
    )
    return attn.proj(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


def _positions(length: int, slots: ImageSlots | None, device: torch.device) -> Tensor:
    """(3, 1, S) time, height and width positions: text advances all three, an image spans a grid."""
    text = torch.arange(length, device=device).expand(3, -1)
    if slots is None:
        return text[:, None]
    rows = torch.arange(slots.height, device=device).repeat_interleave(slots.width)
    columns = torch.arange(slots.width, device=device).repeat(slots.height)
    image = torch.stack([torch.zeros_like(rows), rows, columns]) + slots.start
    resumed = slots.start + max(slots.height, slots.width)
    after = torch.arange(length - slots.stop, device=device).expand(3, -1) + resumed
    return torch.cat([text[:, : slots.start], image, after], dim=1)[:, None]
