"""Rotary positions of Qwen-Image-2.1, cached by layout.

Text advances one position on all three axes (frame, height, width). A reference freezes the frame axis at the
position reached, spans a centred height x width grid, and advances the position by its longer side. The target
does the same from the position that each sample's unpadded text reaches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.batch import Layout

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


class RotaryTable:
    """Angles of prefix and target tokens. Grids are cached by layout and device: no host work in a training step."""

    def __init__(self, axes_dims: tuple[int, int, int]) -> None:
        self.axes_dims = axes_dims
        self._prefix: dict[tuple[Layout, torch.device], Rotary] = {}
        self._target: dict[tuple[Layout, torch.device], tuple[Rotary, Tensor]] = {}

    def prefix(self, layout: Layout, device: torch.device) -> Rotary:
        """Angles of the joined text and reference tokens, (1, P, head_dim / 2, 2)."""
        if (layout, device) not in self._prefix:
            angles = self._angles(_prefix_positions(layout).to(device))
            self._prefix[layout, device] = _cos_sin(angles)[None]
        return self._prefix[layout, device]

    def target(self, layout: Layout, lengths: Tensor) -> Rotary:
        """Angles of the target tokens of samples with `lengths` (B,) valid text positions, (B, N, head_dim / 2, 2)."""
        device = lengths.device
        if (layout, device) not in self._target:
            grid = _grid(0, layout.height, layout.width).to(device)
            space = _cos_sin(self._angles(grid)[:, self.axes_dims[0] // 2 :])[None]
            self._target[layout, device] = (space, self._frequencies(self.axes_dims[0], device))
        space, frequencies = self._target[layout, device]
        skipped = sum(max(item.height, item.width) - item.num_slots for item in layout.references)
        # The frame is the same for all tokens of a sample: sines of (B, 1, .) rather than of (B, N, .).
        frame = _cos_sin((lengths + skipped)[:, None, None] * frequencies)
        batch_size, num_tokens = len(lengths), space.shape[1]
        return torch.cat([frame.expand(-1, num_tokens, -1, -1), space.expand(batch_size, -1, -1, -1)], dim=2)

    def _angles(self, positions: Tensor) -> Tensor:
        """(S, 3) positions -> (S, head_dim / 2) angles."""
        return torch.cat(
            [
                positions[:, axis, None] * self._frequencies(dim, positions.device)
                for axis, dim in enumerate(self.axes_dims)
            ],
            dim=-1,
        )

    def _frequencies(self, dim: int, device: torch.device) -> Tensor:
        exponents = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
        return 1.0 / torch.pow(THETA, exponents)


def _cos_sin(angles: Tensor) -> Rotary:
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def _grid(frame: int, height: int, width: int) -> Tensor:
    rows = torch.arange(height) - (height - height // 2)
    columns = torch.arange(width) - (width - width // 2)
    grid = torch.cartesian_prod(rows, columns)
    return torch.cat([torch.full((len(grid), 1), frame), grid], dim=1)


def _prefix_positions(layout: Layout) -> Tensor:
    """(P, 3) frame, height and width position of each joined prefix token."""
    parts, read, position = [], 0, 0
    for reference in layout.references:
        num_text = reference.slot - read
        parts.append(torch.arange(position, position + num_text)[:, None].expand(-1, 3))
        position += num_text
        parts.append(_grid(position, reference.height, reference.width))
        position += max(reference.height, reference.width)
        read = reference.end
    parts.append(torch.arange(position, position + layout.text_tokens - read)[:, None].expand(-1, 3))
    return torch.cat(parts)
