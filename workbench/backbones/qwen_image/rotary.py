"""Rotary positions of Qwen-Image, cached by layout.

Every image spans a centred height x width grid, the target in frame 0 and each reference in the next. Text begins where
the largest grid ends and advances one position on all three axes; padding comes last, so no position depends on it.
"""

from __future__ import annotations

import torch

from workbench.backbones.rotary import Rotary, angles, cos_sin, diagonal, grid
from workbench.batch import Layout


class RotaryTable:
    """Angles of text and images, cached by layout and device: no host work in a training step."""

    def __init__(self, axes_dims: tuple[int, int, int]) -> None:
        self.axes_dims = axes_dims
        self._joint: dict[tuple[Layout, torch.device], Rotary] = {}

    def joint(self, layout: Layout, device: torch.device) -> Rotary:
        """Angles of text, target and references, (1, L + image tokens, head_dim / 2, 2)."""
        if (layout, device) not in self._joint:
            sizes = [(layout.height, layout.width), *((item.height, item.width) for item in layout.references)]
            start = max(side // 2 for size in sizes for side in size)
            images = [grid(frame, height, width) for frame, (height, width) in enumerate(sizes)]
            positions = torch.cat([diagonal(start, layout.text_tokens), *images]).to(device)
            self._joint[layout, device] = cos_sin(angles(positions, self.axes_dims))[None]
        return self._joint[layout, device]
