"""The local judge's network: one small CNN that names what it sees, reads a text and rates technical quality.

Symbols: B images, D = 64 features, P character positions, C characters, heads of K_h classes.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LETTERS = string.ascii_uppercase
BLANK = len(LETTERS)
"""Class of a position behind the end of the text."""
SPACE = BLANK + 1
NUM_CHARACTERS = SPACE + 1


def spelled(classes: Iterable[int]) -> str:
    """The text whose characters have these classes, up to the first BLANK."""
    characters = takewhile(lambda character: character != BLANK, classes)
    return "".join(" " if character == SPACE else LETTERS[character] for character in characters)


def classes_of(text: str) -> list[int]:
    """The inverse of `spelled`, for capitals and spaces, without the BLANK."""
    return [SPACE if character == " " else LETTERS.index(character) for character in text]


@dataclass(frozen=True)
class JudgeConfig:
    """The vocabulary and the widths: all that is needed to rebuild a judge.

    heads: single-label heads and multi-label ones, each with its class names; the text is not among them.
    max_letters: characters that a text may have, spaces included; num_characters: classes of each of them.
    widths, rating_width: of the CNN alone; the latter of the features that only the technical rating uses, 0: it uses
    the shared ones.
    """

    heads: dict[str, tuple[str, ...]]
    multi_label: tuple[str, ...] = ("objects",)
    max_letters: int = 13
    num_characters: int = NUM_CHARACTERS
    resolution: int = 128
    widths: tuple[int, int, int, int] = (32, 64, 96, 144)
    num_features: int = 64
    rating_width: int = 32
    architecture: Literal["cnn", "transformer"] = "cnn"

    @property
    def title(self) -> str:
        return {"cnn": "CNN", "transformer": "vision transformer"}[self.architecture]

    @property
    def single_label(self) -> tuple[str, ...]:
        return tuple(name for name in self.heads if name not in self.multi_label)


class Residual(nn.Module):
    """Two 3 x 3 convolutions around the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Reader(nn.Module):
    """Reads up to P characters: each position attends over the map where it finds its own (B, W, h, w) -> (B, P, C).

    One self-attention layer over the coarse map lets a position know how many letters come before it.
    """

    def __init__(
        self, fine: int, coarse: int, max_letters: int, num_characters: int, cells: int, width: int = 96
    ) -> None:
        super().__init__()
        self.from_fine, self.from_coarse = nn.Conv2d(fine, width, 1), nn.Conv2d(coarse, width, 1)
        self.letters = Residual(width)
        self.place = nn.Parameter(torch.randn(1, cells * cells, width) * 0.02)
        self.norm, self.attend = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)
        self.order = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        self.where = nn.Conv2d(2 * width, max_letters, 1)
        self.classify = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, num_characters))
        self.position = nn.Parameter(torch.zeros(max_letters, 2 * width))

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        coarse = self.from_coarse(coarse)
        letters = self.letters(self.from_fine(fine) + F.interpolate(coarse, scale_factor=2.0, mode="nearest"))
        tokens = F.avg_pool2d(letters, 2).flatten(2).mT + coarse.flatten(2).mT + self.place
        normed = self.norm(tokens)
        tokens = tokens + self.attend(normed, normed, normed, need_weights=False)[0]
        tokens = tokens + self.order(tokens)
        order = F.interpolate(tokens.mT.unflatten(2, coarse.shape[2:]), scale_factor=2.0, mode="nearest")
        both = torch.cat([letters, order], dim=1)
        weights = self.where(both).flatten(2).softmax(dim=2)  # (B, P, cells)
        return self.classify(weights @ both.flatten(2).mT + self.position)


class Rating(nn.Module):
    """Technical quality from fine local evidence, beyond the shared features: stages 1 to 3 -> logit (B,).

    A faint second contour or a wavering outline shows at few positions, and only by comparison with the others. So the
    rating sees the mean of the evidence, its spread, and what each of `queries` finds where it attends.
    """

    def __init__(self, widths: tuple[int, int, int, int], width: int, queries: int = 4) -> None:
        super().__init__()
        w1, w2, w3, _ = widths
        self.from_finest = nn.Conv2d(w1, width, 3, stride=2, padding=1)
        self.from_fine, self.from_coarse = nn.Conv2d(w2, width, 1), nn.Conv2d(w3, width, 1)
        self.cells = Residual(width)
        self.where = nn.Conv2d(width, queries, 1)
        self.rate = nn.Sequential(nn.Linear((2 + queries) * width, 3 * width), nn.SiLU(), nn.Linear(3 * width, 1))
        last = self.rate[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, stage1: Tensor, stage2: Tensor, stage3: Tensor) -> Tensor:
        coarse = F.interpolate(self.from_coarse(stage3), scale_factor=2.0, mode="nearest")
        cells = F.silu(self.cells(self.from_finest(F.silu(stage1)) + self.from_fine(stage2) + coarse)).float()
        weights = self.where(cells).flatten(2).softmax(dim=2)  # (B, queries, cells)
        found = (weights @ cells.flatten(2).mT).flatten(1)
        spread = cells.var((2, 3), unbiased=False).add(1e-6).sqrt()
        return self.rate(torch.cat([cells.mean((2, 3)), spread, found], dim=1)).squeeze(1)


class JudgeNetwork(nn.Module):
    """(B, 3, S, S) in [-1, 1] -> features (B, 64) and logits: heads (B, K_h), `word` (B, P, C), `technical` (B,)."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        self.config = config
        w1, w2, w3, w4 = config.widths
        self.stage1 = nn.Sequential(nn.Conv2d(3, w1, 5, stride=2, padding=2), Residual(w1))
        self.stage2 = nn.Sequential(nn.Conv2d(w1, w2, 3, stride=2, padding=1), Residual(w2), Residual(w2))
        self.stage3 = nn.Sequential(nn.Conv2d(w2, w3, 3, stride=2, padding=1), Residual(w3), Residual(w3))
        self.stage4 = nn.Sequential(nn.Conv2d(w3, w4, 3, stride=2, padding=1), Residual(w4))
        self.to_features = nn.Linear(2 * sum(config.widths), config.num_features)
        self.reader = Reader(w2, w3, config.max_letters, config.num_characters, config.resolution // 8)
        self.single = nn.ModuleDict(
            {name: nn.Linear(config.num_features, len(config.heads[name])) for name in config.single_label}
        )
        self.multi = nn.ModuleDict(
            {name: nn.Linear(config.num_features, len(config.heads[name])) for name in config.multi_label}
        )
        self.multi_local = nn.ModuleDict(
            {name: nn.Conv2d(w3 + w4, len(config.heads[name]), 1) for name in config.multi_label}
        )
        for bias in (p for name, p in self.multi.named_parameters() if name.endswith("bias")):
            nn.init.constant_(bias, -3.0)  # few objects of many are there
        self.technical = nn.Linear(config.num_features, 1)
        self.rating = Rating(config.widths, config.rating_width) if config.rating_width else None

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        stage1 = self.stage1(images)
        stage2 = self.stage2(stage1)
        stage3 = self.stage3(stage2)
        stage4 = self.stage4(stage3)
        pooled = [pool for x in (stage1, stage2, stage3, stage4) for pool in (x.mean((2, 3)), x.amax((2, 3)))]
        features = self.to_features(torch.cat(pooled, dim=1))
        active = F.silu(features)
        logits = {name: head(active) for name, head in self.single.items()}
        local = torch.cat([stage3, F.interpolate(stage4, scale_factor=2.0, mode="nearest")], dim=1)
        for name, head in self.multi.items():
            # An object is there if any position sees it; the soft maximum lets every position learn.
            cells = self.multi_local[name](F.silu(local)).flatten(2).float()
            logits[cells_of(name)] = cells.unflatten(2, local.shape[2:])
            logits[name] = head(active) + cells.logsumexp(dim=2) - torch.tensor(float(cells.shape[2])).log()
        logits["word"] = self.reader(stage2, stage3)
        logits["technical"] = self.technical(active).squeeze(1)
        if self.rating is not None:
            logits["technical"] = logits["technical"] + self.rating(stage1, stage2, stage3)
        return features, logits


def cells_of(name: str) -> str:
    """Key of the map (B, K_h, h, w) of logits from which a multi-label attribute was recognised."""
    return f"{name}_cells"


def preprocess(images: Tensor, resolution: int) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, resolution, resolution) in [-1, 1]; other sizes are resized, antialiased."""
    pixels = images.permute(0, 3, 1, 2).float() / 127.5 - 1
    if pixels.shape[2:] == (resolution, resolution):
        return pixels
    return F.interpolate(pixels, size=(resolution, resolution), mode="bilinear", antialias=True, align_corners=False)
