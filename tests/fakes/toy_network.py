"""A family unlike the shipped one: its text depends on t, so a prefix holds embedded text and references alone, and an
image has as many text slots as it likes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workbench.backbones import lora
from workbench.backbones.base import Prefix, TransformerDenoiser
from workbench.batch import Condition

CHANNELS, PROMPT_WIDTH, WIDTH = 4, 6, 16


class ToyBlock(nn.Module):
    """Text reads the mean of the image, then the image reads the mean of the text; both with the embedded time."""

    def __init__(self) -> None:
        super().__init__()
        self.to_text, self.to_image, self.mlp = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, text: Tensor, image: Tensor, valid: Tensor, time: Tensor, role: str) -> tuple[Tensor, Tensor]:
        def linear(layer: nn.Module, x: Tensor) -> Tensor:
            return lora.project(lora.projection(layer, role, x.dtype), x)

        text = text + torch.tanh(linear(self.to_text, image.mean(dim=1, keepdim=True) + time))
        text_mean = (text * valid).sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True)
        image = image + torch.tanh(linear(self.to_image, text_mean + time))
        return text, image + linear(self.mlp, torch.tanh(image))


class ToyTransformer(nn.Module):
    """What the toy family's folders would hold."""

    def __init__(self, seed: int = 0, num_blocks: int = 2) -> None:
        super().__init__()
        self.txt_in, self.img_in = nn.Linear(PROMPT_WIDTH, WIDTH), nn.Linear(CHANNELS, WIDTH)
        self.time_in, self.proj_out = nn.Linear(1, WIDTH), nn.Linear(WIDTH, CHANNELS)
        self.transformer_blocks = nn.ModuleList(ToyBlock() for _ in range(num_blocks))
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)


@dataclass(frozen=True)
class ToyPrefix(Prefix):
    """text: (B, L, WIDTH). valid: (B, L, 1), 0 at padding. references: (B, R, WIDTH) or None."""

    text: Tensor
    valid: Tensor
    references: Tensor | None

    def map(self, change: Callable[[Tensor], Tensor]) -> ToyPrefix:
        references = None if self.references is None else change(self.references)
        return ToyPrefix(change(self.text), change(self.valid), references)


class ToyDenoiser(TransformerDenoiser):
    num_channels, prompt_width, num_features = CHANNELS, PROMPT_WIDTH, WIDTH

    def __init__(
        self, transformer: ToyTransformer, gradient_checkpointing: bool = False, stored_blocks: int = 0
    ) -> None:
        super().__init__()
        self.stock = transformer
        self.blocks = transformer.transformer_blocks
        self.num_recomputed, self.compiled = 0, False

    @property
    def transformer(self) -> ToyTransformer:
        return self.stock

    def prefixes(self, cond: Condition, uncond: Condition | None, role: str) -> tuple[ToyPrefix, ToyPrefix | None]:
        return self._prefix(cond), None if uncond is None else self._prefix(uncond)

    def velocity(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> Tensor:
        return self._evaluated(prefix, x_t, t, role)[0]

    def velocity_and_features(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> tuple[Tensor, Tensor]:
        return self._evaluated(prefix, x_t, t, role)

    def _evaluated(self, prefix: Prefix, x_t: Tensor, t: Tensor, role: str) -> tuple[Tensor, Tensor]:
        assert isinstance(prefix, ToyPrefix)
        text, image, stock = prefix.text, self.stock.img_in(x_t), self.stock
        if prefix.references is not None:
            image = torch.cat([image, prefix.references], dim=1)
        time = stock.time_in(t[:, None, None])
        features = image
        for i, block in enumerate(self.blocks):
            text, image = block(text, image, prefix.valid, time, role)
            features = image if i == 0 else features
        return stock.proj_out(image[:, : x_t.shape[1]]), features[:, : x_t.shape[1]]

    def compile_blocks(self, backend: str = "inductor") -> None:
        self.compiled = True

    def activation_bytes(self, condition: Condition, role: str, dtype: torch.dtype) -> int:
        return len(condition.lengths) * condition.layout.num_target_tokens * WIDTH * len(self.blocks) * dtype.itemsize

    def prefix_bytes(self, condition: Condition, dtype: torch.dtype) -> int:
        return condition.prompt.shape[0] * condition.prompt.shape[1] * WIDTH * dtype.itemsize

    def _prefix(self, condition: Condition) -> ToyPrefix:
        positions = torch.arange(condition.layout.text_tokens, device=condition.lengths.device)
        valid = (positions < condition.lengths[:, None])[..., None].to(condition.prompt.dtype)
        references = condition.references
        return ToyPrefix(
            self.stock.txt_in(condition.prompt), valid, None if references is None else self.stock.img_in(references)
        )
