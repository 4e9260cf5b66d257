"""Rotary positions on three axes (frame, height, width), and the rotation of queries and keys by them."""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10_000.0
Rotary = Tensor
"""Cosine and sine of the angles, (B or 1, S, head_dim / 2, 2) float32."""


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate neighbouring channel pairs of x (B, S, heads, head_dim) by the angles, in float32."""
    pairs, rotary = x.float().unflatten(-1, (-1, 2)), rotary.unsqueeze(2)
    if torch.compiler.is_compiling():
        # Inductor fuses real arithmetic and falls back on complex.
        (even, odd), (cos, sin) = pairs.unbind(-1), rotary.unbind(-1)
        turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    else:
        # Without compilation one complex product replaces four strided ones, two sums and a concatenation.
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotary))
    return turned.flatten(-2).type_as(x)


def cos_sin(angles: Tensor) -> Rotary:
    """(..., head_dim / 2) angles -> (..., head_dim / 2, 2)."""
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def frequencies(dim: int, device: torch.device) -> Tensor:
    """Angle per position of each of the dim / 2 channel pairs of one axis."""
    exponents = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
    return 1.0 / torch.pow(THETA, exponents)


def angles(positions: Tensor, axes_dims: tuple[int, int, int]) -> Tensor:
    """(S, 3) positions -> (S, head_dim / 2) angles; axes_dims: channels of each axis."""
    parts = [positions[:, axis, None] * frequencies(dim, positions.device) for axis, dim in enumerate(axes_dims)]
    return torch.cat(parts, dim=-1)


def grid(frame: int, height: int, width: int) -> Tensor:
    """(height width, 3) positions of an image: one frame, rows and columns centred at 0."""
    rows = torch.arange(height) - (height - height // 2)
    columns = torch.arange(width) - (width - width // 2)
    places = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.full((len(places), 1), frame), places], dim=1)


def diagonal(start: int, count: int) -> Tensor:
    """(count, 3) positions of text: one further on all axes with every token."""
    return torch.arange(start, start + count)[:, None].expand(-1, 3)
