"""The small network on the fake score's features that tells data from samples of the student."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 256


class Classifier(nn.Module):
    """Features (B, N, num_features) -> logits (B,), 0 at the start: each token is read alone, then their mean is, so
    that pictures of any size have one logit. Computed in float32."""

    def __init__(self, num_features: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_features)
        self.hidden = nn.Linear(num_features, WIDTH)
        self.out = nn.Linear(WIDTH, 1)
        bound = 1 / math.sqrt(num_features)
        for parameter in self.hidden.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            of_tokens = F.silu(self.hidden(self.norm(features.float())))
            logits: Tensor = self.out(of_tokens.mean(dim=1)).squeeze(-1)
        return logits
