"""Rotary positions of Qwen-Image-2.1, cached by layout.

Text advances one position on all three axes (frame, height, width). A reference freezes the frame axis at the
position reached, spans a centred height x width grid, and advances the position by its longer side. The target
does the same from the position that each sample's unpadded text reaches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workbench.backbones.rotary import Rotary, angles, cos_sin, diagonal, frequencies, grid
from workbench.batch import Layout


class RotaryTable:
    """Angles of prefix and target tokens. Grids are cached by layout and device: no host work in a training step."""

    def __init__(self, axes_dims: tuple[int, int, int]) -> None:
        self.axes_dims = axes_dims
        self._prefix: dict[tuple[Layout, torch.device], Rotary] = {}
        self._target: dict[tuple[Layout, torch.device], tuple[Rotary, Tensor]] = {}

    def prefix(self, layout: Layout, device: torch.device) -> Rotary:
        """Angles of the joined text and reference tokens, (1, P, head_dim / 2, 2)."""
        if (layout, device) not in self._prefix:
            positions = _prefix_positions(layout).to(device)
            self._prefix[layout, device] = cos_sin(angles(positions, self.axes_dims))[None]
        return self._prefix[layout, device]

    def target(self, layout: Layout, lengths: Tensor) -> Rotary:
        """Angles of the target tokens of samples with `lengths` (B,) valid text positions, (B, N, head_dim / 2, 2)."""
        device = lengths.device
        if (layout, device) not in self._target:
            places = grid(0, layout.height, layout.width).to(device)
            space = cos_sin(angles(places, self.axes_dims)[:, self.axes_dims[0] // 2 :])[None]
            self._target[layout, device] = (space, frequencies(self.axes_dims[0], device))
        space, of_frame = self._target[layout, device]
        skipped = sum(max(item.height, item.width) - item.num_slots for item in layout.references)
        # The frame is the same for all tokens of a sample: sines of (B, 1, .) rather than of (B, N, .).
        frame = cos_sin((lengths + skipped)[:, None, None] * of_frame)
        batch_size, num_tokens = len(lengths), space.shape[1]
        return torch.cat([frame.expand(-1, num_tokens, -1, -1), space.expand(batch_size, -1, -1, -1)], dim=2)


def _prefix_positions(layout: Layout) -> Tensor:
    """(P, 3) frame, height and width position of each joined prefix token."""
    parts, read, position = [], 0, 0
    for reference in layout.references:
        num_text = reference.slot - read
        parts.append(diagonal(position, num_text))
        position += num_text
        parts.append(grid(position, reference.height, reference.width))
        position += max(reference.height, reference.width)
        read = reference.end
    parts.append(diagonal(position, layout.text_tokens - read))
    return torch.cat(parts)
