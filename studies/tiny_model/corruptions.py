"""Graded damage to clean images, from which the local judge learns what technical quality is.

Every corruption maps images (B, 3, S, S) in [0, 1] and severities s (B,) in [0, 1] to damaged images; s = 0 is the
identity and s = 1 plainly broken. Lengths are in pixels of a 128 x 128 image and scale with S. The quality label of a
damaged image is 1 - s.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Corruption = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator, device=generator.device)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Separable Gaussian blur, one sigma (B,) in pixels for each image."""
    radius = max(1, int(3 * float(sigma.max()) + 0.5))
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(images.shape[1], 0)[:, None]
    groups = kernel.shape[0]
    flat = F.pad(images.reshape(1, groups, *images.shape[2:]), (radius,) * 4, mode="reflect")
    flat = F.conv2d(F.conv2d(flat, kernel[:, :, None, :], groups=groups), kernel[:, :, :, None], groups=groups)
    return flat.reshape(images.shape)


def blur(images: Tensor, s: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian blur, sigma = 3 s."""
    return gaussian_blur(images, 3.0 * s * images.shape[-1] / 128)


def noise(images: Tensor, s: Tensor, generator: torch.Generator) -> Tensor:
    """White noise of standard deviation 0.25 s."""
    return (images + 0.25 * s[:, None, None, None] * _normal(images, generator)).clamp(0, 1)


def _resample(images: Tensor, flow: Tensor) -> Tensor:
    """Images looked up at x + flow, flow (B, S, S, 2) in pixels."""
    size = images.shape[-1]
    axis = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) * 2 / size - 1
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1) + flow * 2 / size
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def ghost(images: Tensor, s: Tensor, generator: torch.Generator) -> Tensor:
    """A second exposure of weight 0.5 s, moved by 4 to 10 pixels in any direction."""
    count, scale = len(images), images.shape[-1] / 128
    angle = _uniform(count, 0, 2 * torch.pi, generator)
    length = _uniform(count, 4, 10, generator) * scale
    shift = torch.stack([length * angle.cos(), length * angle.sin()], dim=1)
    moved = _resample(images, shift[:, None, None, :].expand(-1, images.shape[2], images.shape[3], -1))
    return torch.lerp(images, moved, 0.5 * s[:, None, None, None])


def smear(images: Tensor, s: Tensor, generator: torch.Generator) -> Tensor:
    """Detail lost as by a weak autoencoder: averaged down by 1 + 4 s and interpolated up again."""
    size, levels = images.shape[-1], (s * 16).round().long()
    out = images.clone()
    for level in levels.unique().tolist():
        if level > 0:
            rows = (levels == level).nonzero().squeeze(1)
            small = max(4, round(size / (1 + 4 * level / 16)))
            down = F.interpolate(images[rows], size=(small, small), mode="bilinear", antialias=True)
            out[rows] = F.interpolate(down, size=(size, size), mode="bicubic").clamp(0, 1)
    return out


def block(images: Tensor, s: Tensor, generator: torch.Generator) -> Tensor:
    """Blockiness: mixed with its own 8 x 8 block means with weight 0.9 s."""
    side = max(2, images.shape[-1] // 16)
    means = F.interpolate(F.avg_pool2d(images, side), scale_factor=float(side), mode="nearest")
    return torch.lerp(images, means, 0.9 * s[:, None, None, None])


def residue(images: Tensor, s: Tensor, generator: torch.Generator) -> Tensor:
    """Residual noise on flat areas alone: blotches of standard deviation 0.12 s, 0.6 to 2 pixels wide."""
    edges = gaussian_blur((images - gaussian_blur(images, torch.ones(len(images), device=images.device))).abs(),
                          torch.full((len(images),), 2.0, device=images.device))  # fmt: skip
    flat = torch.exp(-edges.mean(1, keepdim=True) / 0.01)
    blotches = gaussian_blur(_normal(images, generator), _uniform(len(images), 0.6, 2.0, generator))
    blotches = blotches / blotches.std((1, 2, 3), keepdim=True)
    return (images + 0.12 * s[:, None, None, None] * flat * blotches).clamp(0, 1)


def _displaced(images: Tensor, nodes: int, length: Tensor, generator: torch.Generator) -> Tensor:
    """Moved by a smooth random field with `nodes` nodes an edge, of root mean square length (B,) in pixels where there
    are edges to be moved and zero mean there: changes of flat areas and shifts of the picture are no damage."""
    size = images.shape[-1]
    shape = (len(images), 2, nodes, nodes)
    coarse = torch.randn(shape, generator=generator, device=images.device, dtype=images.dtype)
    flow = F.interpolate(coarse, size=(size, size), mode="bicubic")
    edges = (images - gaussian_blur(images, torch.ones(len(images), device=images.device))).abs().mean(1)
    weight = edges / edges.sum((1, 2), keepdim=True).clamp(min=1e-6)
    flow = flow - (flow * weight[:, None]).sum((2, 3), keepdim=True)
    rms = (flow.square().sum(1) * weight).sum((1, 2)).sqrt()
    flow = flow * (length / rms.clamp(min=1e-6))[:, None, None, None]
    return _resample(images, flow.permute(0, 2, 3, 1))


def warp(images: Tensor, s: Tensor, generator: torch.Generator) -> Tensor:
    """Broken geometry: displaced by 4 s pixels, smoothly over a tenth of the image."""
    return _displaced(images, 10, 4.0 * s * images.shape[-1] / 128, generator)


def wobble(images: Tensor, s: Tensor, generator: torch.Generator) -> Tensor:
    """Crooked outlines, as of an unsure hand: displaced by 2.5 s pixels, otherwise every five."""
    return _displaced(images, 26, 2.5 * s * images.shape[-1] / 128, generator)


CORRUPTIONS: dict[str, Corruption] = {
    "blur": blur,
    "noise": noise,
    "ghost": ghost,
    "smear": smear,
    "block": block,
    "residue": residue,
    "warp": warp,
    "wobble": wobble,
}


def corrupt(images: Tensor, kinds: Tensor, s: Tensor, generator: torch.Generator) -> Tensor:
    """Each image damaged by the corruption that kinds (B,) indexes, -1 for none."""
    out = images.clone()
    for index, corruption in enumerate(CORRUPTIONS.values()):
        rows = (kinds == index).nonzero().squeeze(1)
        if len(rows):
            out[rows] = corruption(images[rows], s[rows], generator)
    return out


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Harmless variation, so that the judge rates generated images and not only renders: moved by up to 3 pixels,
    contrast, brightness and each colour channel changed by a few per cent."""
    count, scale = len(images), images.shape[-1] / 128
    shift = torch.stack([_uniform(count, -3, 3, generator), _uniform(count, -3, 3, generator)], dim=1).round() * scale
    images = _resample(images, shift[:, None, None, :].expand(-1, images.shape[2], images.shape[3], -1))
    gain = _uniform(count * 3, 0.95, 1.05, generator).reshape(count, 3, 1, 1)
    offset = _uniform(count, -0.03, 0.03, generator).reshape(count, 1, 1, 1)
    return (images * gain + offset).clamp(0, 1)
