"""The second judge's network: a vision transformer with the answers of the first, by other means.

Where the CNN pools maps, this one asks: a picture token, a technical token and one token a character travel with the
patches through every block (Dosovitskiy et al. 2021, arXiv 2010.11929) and are read off at the end. Patches come from
strided convolutions, with which transformers train in minutes (Xiao et al. 2021, arXiv 2106.14881).

Symbols: B images, N patches, W width, D = 64 features, P character positions, C characters, heads of K_h classes.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from workbench.evaluation.judges.local_network import JudgeConfig

WIDTH, DEPTH, HEADS = 128, 6, 4
PATCH = 8
"""Pixels."""


class Block(nn.Module):
    """Attention and a perceptron, each around the identity: (B, tokens, W) -> the same."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class TransformerNetwork(nn.Module):
    """(B, 3, S, S) in [-1, 1] -> features (B, 64) and logits: heads (B, K_h), `word` (B, P, C), `technical` (B,)."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        self.patches = nn.Sequential(
            nn.Conv2d(3, WIDTH // 4, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(WIDTH // 4, WIDTH // 2, 3, stride=2, padding=1), nn.GELU(),
            nn.Conv2d(WIDTH // 2, WIDTH, 3, stride=2, padding=1),
        )  # fmt: skip
        self.place = nn.Parameter(torch.randn((config.resolution // PATCH) ** 2, WIDTH) * 0.02)
        self.asking = nn.Parameter(torch.randn(2 + config.max_letters, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.to_features = nn.Linear(2 * WIDTH, config.num_features)
        classes = config.heads
        self.single = nn.ModuleDict({name: nn.Linear(2 * WIDTH, len(classes[name])) for name in config.single_label})
        self.multi = nn.ModuleDict({name: nn.Linear(2 * WIDTH, len(classes[name])) for name in config.multi_label})
        self.multi_local = nn.ModuleDict({name: nn.Linear(WIDTH, len(classes[name])) for name in config.multi_label})
        for head in self.multi.values():
            assert isinstance(head, nn.Linear)
            nn.init.constant_(head.bias, -3.0)  # few objects of many are there
        self.word = nn.Linear(WIDTH, config.num_characters)
        self.technical = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        patches = self.patches(images).flatten(2).mT + self.place
        x = torch.cat([self.asking.expand(len(images), -1, -1).to(patches), patches], dim=1)
        for block in self.blocks:
            x = block(x)
        asked, patches = self.norm(x).split([len(self.asking), patches.shape[1]], dim=1)
        mean = patches.mean(1)
        picture = torch.cat([asked[:, 0], mean], dim=1)
        logits = {name: head(picture) for name, head in self.single.items()}
        for name, head in self.multi.items():
            # An object is there if any patch shows it; the soft maximum lets every patch learn.
            found = self.multi_local[name](patches).float()
            logits[name] = head(picture) + found.logsumexp(dim=1) - math.log(found.shape[1])
        logits["technical"] = self.technical(torch.cat([asked[:, 1], mean], dim=1)).squeeze(1)
        logits["word"] = self.word(asked[:, 2:])
        return self.to_features(picture), logits
