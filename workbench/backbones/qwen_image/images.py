"""Images to packed latents and back, as the stock pipelines normalise and pack them."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLQwenImage
from torch import Tensor

from workbench.backbones.finite import require_finite_values

PACKED = 2
"""Side of the square of latents that one token holds."""


@torch.no_grad()
def encode_images(vae: AutoencoderKLQwenImage, images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3 or 4) -> packed, normalised posterior modes (B, N, C); what is transparent lies on white."""
    pixels = (on_white(images.to(vae.device)).permute(0, 3, 1, 2) * 2 - 1).to(vae.dtype)
    latents = vae.encode(pixels.unsqueeze(2)).latent_dist.mode()
    mean, std = _statistics(vae, latents)
    return pack(((latents - mean) / std)[:, :, 0])


@torch.no_grad()
def decode_latents(vae: AutoencoderKLQwenImage, latents: Tensor, height: int, width: int) -> Tensor:
    """Packed latents (B, N, C) of `height` x `width` tokens -> uint8 (B, H, W, 3)."""
    grid = unpack(latents.to(vae.device, vae.dtype), height, width).unsqueeze(2)
    mean, std = _statistics(vae, grid)
    pixels = vae.decode(grid * std + mean, return_dict=False)[0][:, :, 0].float()
    require_finite_values("the autoencoder", {"the decoded picture": pixels})
    return ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def pack(latents: Tensor) -> Tensor:
    """(B, Z, h, w) -> (B, h w / 4, 4 Z), channels in the order (z, row, column)."""
    squares = latents.unflatten(3, (-1, PACKED)).unflatten(2, (-1, PACKED))
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, height * width, 4 Z) -> (B, Z, 2 height, 2 width), the inverse of `pack`."""
    squares = tokens.unflatten(2, (-1, PACKED, PACKED)).unflatten(1, (height, width))
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def on_white(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3 or 4) -> float32 (B, H, W, 3) in [0, 1]."""
    values = images.float() / 255
    return values if images.shape[-1] == 3 else values[..., :3] * values[..., 3:] + (1 - values[..., 3:])


def _statistics(vae: AutoencoderKLQwenImage, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latent channels, each (1, Z, 1, 1, 1)."""
    statistics = (vae.config.latents_mean, vae.config.latents_std)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1).to(like) for values in statistics)
    return mean, std
