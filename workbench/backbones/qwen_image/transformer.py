"""Qwen-Image and Qwen-Image-Edit as denoisers.

Text, target and references attend to each other in every block and are all modulated by t, so that a prefix holds what
precedes the blocks: embedded text and references, their positions and which text is valid. Written with the submodules
of diffusers' model, whose unpadded forward is the reference (`tests/backbones/qwen_image/test_transformer.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

from workbench.backbones import lora
from workbench.backbones.base import Prefix, TransformerDenoiser
from workbench.backbones.qwen_image import memory, sequence
from workbench.backbones.qwen_image.blocks import DualBlock, JointAttention
from workbench.backbones.qwen_image.rotary import RotaryTable
from workbench.backbones.rotary import Rotary
from workbench.batch import Condition
from workbench.common.errors import UserError

_REFUSED = {
    "guidance_embeds": "embeds the guidance scale",
    "use_additional_t_cond": "is a layered one",
    "use_layer3d_rope": "is a layered one",
}
"""Options of the transformer that no text-to-image or editing pipeline of the family uses, and what they make of it."""


@dataclass(frozen=True)
class EmbeddedPrefix(Prefix):
    """What enters the first block besides the target.

    text: (B or 1, L, width). references: (B or 1, R, width) or None. key_valid: see `sequence.key_valid`.
    rotary: of text, target and references, (1, L + N + R, head_dim / 2, 2).
    """

    text: Tensor
    references: Tensor | None
    key_valid: Tensor | None
    rotary: Rotary

    def map(self, change: Callable[[Tensor], Tensor]) -> EmbeddedPrefix:
        references = None if self.references is None else change(self.references)
        key_valid = None if self.key_valid is None else change(self.key_valid)
        return EmbeddedPrefix(change(self.text), references, key_valid, change(self.rotary))


class DualTransformer(TransformerDenoiser):
    """`QwenImageTransformer2DModel` as prefix and velocity, over the same parameters."""

    # Products of one row a sample, and the scale of everything else.
    unquantised: ClassVar[tuple[str, ...]] = ("img_mod.1", "txt_mod.1")
    adaptable: ClassVar[tuple[str, ...]] = (
        *("img_in", "txt_in", "norm_out.linear", "proj_out"),
        *(f"time_text_embed.timestep_embedder.linear_{i}" for i in (1, 2)),
    )

    def __init__(
        self, transformer: QwenImageTransformer2DModel, gradient_checkpointing: bool = False, stored_blocks: int = 0
    ) -> None:
        """See `NetworkFactory`.

        Raises:
            UserError: a transformer with options that are not supported.
        """
        super().__init__()
        config = transformer.config
        for option, meaning in _REFUSED.items():
            if config[option]:
                raise UserError(f"a Qwen-Image transformer with {option} {meaning}, which cannot be distilled here")
        if config.patch_size**2 * transformer.out_channels != config.in_channels:
            raise UserError("only Qwen-Image transformers with as many channels out as in can be distilled")
        self.embed = nn.ModuleDict(
            {name: child for name, child in transformer.named_children() if name != "transformer_blocks"}
        )
        self.blocks = nn.ModuleList(DualBlock(block) for block in transformer.transformer_blocks)
        self.table = RotaryTable(tuple(config.axes_dims_rope))
        # Stored activations of the last blocks are gone by the time that the first ones are recomputed.
        self.num_recomputed = max(0, len(self.blocks) - stored_blocks) if gradient_checkpointing else 0
        self.num_channels, self.prompt_width = config.in_channels, config.joint_attention_dim
        self.num_features = transformer.inner_dim
        self.compiled = False
        # In a tuple, so that its parameters are not registered a second time.
        self._transformer = (transformer,)

    @property
    def transformer(self) -> QwenImageTransformer2DModel:
        return self._transformer[0]

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile one body for all blocks; see `DualBlock.compile_body`."""
        self.compiled = True
        for block in self.blocks:
            assert isinstance(block, DualBlock)
            block.compile_body(backend)

    def prefixes(
        self, cond: Condition, uncond: Condition | None, role: str
    ) -> tuple[EmbeddedPrefix, EmbeddedPrefix | None]:
        """References are embedded for each: one small product, against sixty blocks for every evaluation."""
        return self._prefix(cond, role), None if uncond is None else self._prefix(uncond, role)

    def _prefix(self, condition: Condition, role: str) -> EmbeddedPrefix:
        prompt, references = condition.prompt.to(self._dtype), condition.references
        return EmbeddedPrefix(
            lora.apply(self.embed["txt_in"], self.embed["txt_norm"](prompt), role),
            None if references is None else lora.apply(self.embed["img_in"], references.to(self._dtype), role),
            sequence.key_valid(condition),
            self.table.joint(condition.layout, prompt.device),
        )

    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> Tensor:
        return self._evaluated(prefix, x_t, t, role)[0]

    def velocity_and_features(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> tuple[Tensor, Tensor]:
        return self._evaluated(prefix, x_t, t, role)

    def _evaluated(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> tuple[Tensor, Tensor]:
        """The velocity, and the target tokens after the first half of the blocks."""
        assert isinstance(prefix, EmbeddedPrefix)
        batch_size, num_target = x_t.shape[:2]
        images = lora.apply(self.embed["img_in"], x_t.to(self._dtype), role)
        if prefix.references is not None:
            images = torch.cat([images, _rows(prefix.references, batch_size)], dim=1)
        images, text = self.graded(images), self.graded(_rows(prefix.text, batch_size))
        time = self._time(t, images.dtype, role)
        times = time
        if self._num_times(prefix.references is not None) == 2:
            at_zero = self._time(torch.zeros(1, device=t.device), images.dtype, role)
            times = torch.cat([time, at_zero.expand_as(time)], dim=1)
        attend, features = JointAttention(prefix.key_valid), images
        for i in range(len(self.blocks)):
            images, text = self.run_block(i, images, text, times, num_target, prefix.rotary, attend, role)
            features = images if i == (len(self.blocks) - 1) // 2 else features
        norm: Any = self.embed["norm_out"]
        scale, shift = lora.apply(norm.linear, time, role).chunk(2, dim=-1)
        x = torch.addcmul(shift, norm.norm(images[:, :num_target]), 1 + scale)
        return lora.apply(self.embed["proj_out"], x, role).to(x_t.dtype), features[:, :num_target]

    def activation_bytes(self, condition: Condition, role: str, dtype: torch.dtype) -> int:
        num_times = self._num_times(bool(condition.layout.references))
        return memory.activation_bytes(self.blocks, self.num_recomputed, num_times, condition, role, dtype)

    def prefix_bytes(self, condition: Condition, dtype: torch.dtype) -> int:
        layout = condition.layout
        num_tokens = layout.text_tokens + sequence.num_image_tokens(layout) - layout.num_target_tokens
        return len(condition.lengths) * num_tokens * self.num_features * dtype.itemsize

    def _time(self, t: Tensor, dtype: torch.dtype, role: str) -> Tensor:
        """Activated embedding of t (B,), (B, 1, width), from which every modulation is one product."""
        time: Any = self.embed["time_text_embed"]
        embedder = time.timestep_embedder
        hidden = embedder.act(lora.apply(embedder.linear_1, time.time_proj(t.float()).to(dtype), role))
        return nn.functional.silu(lora.apply(embedder.linear_2, hidden, role)).unsqueeze(1)

    def _num_times(self, with_references: bool) -> int:
        """Embeddings of time of each sample: Qwen-Image-Edit-2511 modulates references as at t = 0."""
        return 2 if self.transformer.config.zero_cond_t and with_references else 1

    @property
    def _dtype(self) -> torch.dtype:
        """Present dtype of the weights: bfloat16 inside a sharded forward that computes in it."""
        return lora.projection(self.embed["img_in"], None, torch.float32).weight.dtype


def _rows(x: Tensor, batch_size: int) -> Tensor:
    """x (B or 1, S, width) for every sample, in the memory layout that all blocks are compiled for."""
    return x.expand(batch_size, -1, -1).contiguous()
