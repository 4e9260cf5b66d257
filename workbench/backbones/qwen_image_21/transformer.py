"""Qwen-Image-2.1 as a denoiser in two parts.

Text and reference tokens (the prefix) are modulated at t = 0 and never see the target, so their keys and values
depend on neither t nor x_t: they are computed once for a condition and a set of weights, and every `velocity`
evaluation of the target tokens attends to them. Written with the submodules of diffusers' model, whose unpadded
forward is the reference (`tests/backbones/qwen_image_21/test_transformer.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from diffusers import QwenImage21Transformer2DModel
from torch import Tensor, nn

from workbench.backbones import lora
from workbench.backbones.base import Prefix, TransformerDenoiser
from workbench.backbones.lora_keys import FusedLayers
from workbench.backbones.qwen_image_21 import memory, sequence
from workbench.backbones.qwen_image_21.blocks import (
    KeyValue,
    Modulation,
    PrefixAttention,
    Segment,
    SplitBlock,
    TargetAttention,
)
from workbench.backbones.qwen_image_21.rotary import RotaryTable
from workbench.backbones.rotary import Rotary
from workbench.batch import Condition, Layout
from workbench.common.errors import UserError


@dataclass(frozen=True)
class CachedPrefix(Prefix):
    """Keys and values of text and references in each block, (B or 1, P, heads, head_dim), and what the target needs.

    before: of the first tokens in each block, where another prefix holds them, which begins alike; keys_values are then
    those of the tokens after.
    key_valid: (B or 1, 1, 1, P + N) bool over these keys and the target's, False at padded text; None where the
    layout has no padding, which leaves attention its fastest kernels.
    rotary: of the target tokens, (B or 1, N, head_dim / 2, 2).
    """

    keys_values: tuple[KeyValue, ...]
    key_valid: Tensor | None
    rotary: Rotary
    before: tuple[KeyValue, ...] = ()

    def map(self, change: Callable[[Tensor], Tensor]) -> CachedPrefix:
        before, keys_values = (
            tuple((change(key), change(value)) for key, value in pairs) for pairs in (self.before, self.keys_values)
        )
        key_valid = None if self.key_valid is None else change(self.key_valid)
        return CachedPrefix(keys_values, key_valid, change(self.rotary), before)

    def first(self, count: int) -> tuple[KeyValue, ...]:
        """Keys and values of the first `count` tokens in each block, none of them copied."""
        return tuple((key[:, :count], value[:, :count]) for key, value in self.keys_values)

    def contexts(self) -> Iterator[tuple[KeyValue, ...]]:
        """What the target attends to in each block, in parts."""
        return zip(self.before, self.keys_values, strict=True) if self.before else zip(self.keys_values, strict=True)


class SplitTransformer(TransformerDenoiser):
    """`QwenImage21Transformer2DModel` as prefix and velocity, over the same parameters."""

    # ComfyUI: gate, up = gate_up(x).chunk(2); out(silu(gate) * up)
    fused_layers: ClassVar[FusedLayers] = {"img_mlp.gate_up": ("img_mlp.gate_layer", "img_mlp.proj")}
    adaptable: ClassVar[tuple[str, ...]] = (
        *("img_in", "txt_in.in_layer", "txt_in.out_layer", "modulation.1", "norm_out.linear", "proj_out"),
        *(f"time_text_embed.timestep_embedder.linear_{i}" for i in (1, 2)),
    )

    def __init__(
        self, transformer: QwenImage21Transformer2DModel, gradient_checkpointing: bool = False, stored_blocks: int = 0
    ) -> None:
        """See `NetworkFactory`."""
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
        self.num_channels, self.prompt_width = config.in_channels, config.context_in_dim
        self.num_features = transformer.inner_dim
        self.compiled = False
        self._segments: dict[tuple[Layout, torch.device], tuple[Segment, ...]] = {}
        # In a tuple, so that its parameters are not registered a second time.
        self._transformer = (transformer,)

    @property
    def transformer(self) -> QwenImage21Transformer2DModel:
        return self._transformer[0]

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile one body for all blocks; see `SplitBlock.compile_body`."""
        self.compiled = True
        for block in self.blocks:
            assert isinstance(block, SplitBlock)
            block.compile_body(backend)

    def prefixes(
        self, cond: Condition, uncond: Condition | None, role: str
    ) -> tuple[CachedPrefix, CachedPrefix | None]:
        """Where both begin alike, the second reuses the keys and values up to the end of the last reference."""
        prefix = self._prefix(cond, role, None)
        if uncond is None:
            return prefix, None
        return prefix, self._prefix(uncond, role, prefix if sequence.begin_alike(cond, uncond) else None)

    def _prefix(self, condition: Condition, role: str, shared: CachedPrefix | None) -> CachedPrefix:
        """shared: prefix of another condition that begins alike; then only the text after the last reference is new."""
        layout, device = condition.layout, condition.prompt.device
        segments = self._segments_of(layout, device)
        start, end, mask = segments[-1] if shared is not None else (0, 0, None)
        text = self._text(condition, role, None if shared is None else end - start)
        x = self.graded(self._embedded(condition, text, role) if shared is None else text)
        modulation, _ = self._modulation(torch.zeros(1, device=device), x.dtype, role)
        rotary = self.table.prefix(layout, device)[:, start:]
        keys_values, before = [], () if shared is None else shared.first(start)
        for i in range(len(self.blocks)):
            attend = TargetAttention((before[i],), mask) if before else PrefixAttention(segments)
            # The last block computes keys and values alone: nothing reads its output.
            last = i == len(self.blocks) - 1
            x, key_value = self.run_block(i, x, modulation, rotary, None if last else attend, role)
            keys_values.append(key_value)
        rotary_of_target = self.table.target(layout, condition.lengths)
        return CachedPrefix(tuple(keys_values), sequence.key_valid(condition), rotary_of_target, before)

    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> Tensor:
        return self._evaluated(prefix, x_t, t, role)[0]

    def velocity_and_features(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> tuple[Tensor, Tensor]:
        return self._evaluated(prefix, x_t, t, role)

    def _evaluated(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> tuple[Tensor, Tensor]:
        """The velocity, and the target tokens after the first half of the blocks."""
        assert isinstance(prefix, CachedPrefix)
        x = self.graded(lora.apply(self.embed["img_in"], x_t.to(self._dtype), role))
        features, last_of_half = x, (len(self.blocks) - 1) // 2
        modulation, temb = self._modulation(t, x.dtype, role)
        for i, context in enumerate(prefix.contexts()):
            attend = TargetAttention(context, prefix.key_valid)
            x, _ = self.run_block(i, x, modulation, prefix.rotary, attend, role)
            features = x if i == last_of_half else features
        norm: Any = self.embed["norm_out"]
        scale = lora.apply(norm.linear, norm.silu(temb).to(x.dtype), role)
        x = norm.norm(x) * (1 + scale.unsqueeze(1))
        return lora.apply(self.embed["proj_out"], x, role).to(x_t.dtype), features

    def activation_bytes(self, condition: Condition, role: str, dtype: torch.dtype) -> int:
        return memory.activation_bytes(self.blocks, self.num_recomputed, condition, role, dtype)

    def prefix_bytes(self, condition: Condition, dtype: torch.dtype) -> int:
        numbers = 2 * len(self.blocks) * self.transformer.inner_dim
        return len(condition.lengths) * sequence.num_prefix_tokens(condition.layout) * numbers * dtype.itemsize

    def pair_bytes(self, cond: Condition, uncond: Condition | None, dtype: torch.dtype) -> int:
        found = super().pair_bytes(cond, uncond, dtype)
        if uncond is None or not sequence.begin_alike(cond, uncond):
            return found
        until_text = replace(cond.layout, text_tokens=cond.layout.references[-1].end)
        return found - self.prefix_bytes(replace(cond, layout=until_text), dtype)

    def _text(self, condition: Condition, role: str, last: int | None) -> Tensor:
        """Embedded text, (B, L, width), or the last tokens of it."""
        prompt = condition.prompt if last is None else condition.prompt[:, -last:]
        text: Any = self.embed["txt_in"]
        hidden = text.act(lora.apply(text.in_layer, text.text_norm(prompt.to(self._dtype)), role))
        return lora.apply(text.out_layer, hidden, role)

    def _embedded(self, condition: Condition, text: Tensor, role: str) -> Tensor:
        """Text and references in one sequence, (B, P, width)."""
        references = None
        if condition.references is not None:
            references = lora.apply(self.embed["img_in"], condition.references.to(self._dtype), role)
        return sequence.join(text, references, condition.layout)

    def _segments_of(self, layout: Layout, device: torch.device) -> tuple[Segment, ...]:
        """Built once for a layout and device, so that a captured step builds no masks."""
        if (layout, device) not in self._segments:
            self._segments[layout, device] = tuple(
                (
                    start,
                    end,
                    torch.ones(end - start, end, dtype=torch.bool, device=device).tril(start) if text else None,
                )
                for start, end, text in sequence.runs(layout)
            )
        return self._segments[layout, device]

    @property
    def _dtype(self) -> torch.dtype:
        """Present dtype of the weights: bfloat16 inside a sharded forward that computes in it."""
        return lora.projection(self.embed["img_in"], None, torch.float32).weight.dtype

    def _modulation(self, t: Tensor, dtype: torch.dtype, role: str) -> tuple[Modulation, Tensor]:
        time: Any = self.embed["time_text_embed"]
        embedder, modulation = time.timestep_embedder, self.embed["modulation"]
        hidden = embedder.act(lora.apply(embedder.linear_1, time.time_proj(t.float()).to(dtype), role))
        temb = lora.apply(embedder.linear_2, hidden, role)
        activation, linear = modulation.children()
        scale_1, gate_1, scale_2, gate_2 = lora.apply(linear, activation(temb), role).unsqueeze(1).chunk(4, dim=-1)
        return (1 + scale_1, gate_1.tanh(), 1 + scale_2, gate_2.tanh()), temb
