"""Images to packed latents and back, as the stock pipeline normalises them."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLQwenImage21
from torch import Tensor

from workbench.backbones.finite import require_finite_values
from workbench.backbones.qwen_image_21.vae import FastVae


@torch.no_grad()
def encode_images(vae: AutoencoderKLQwenImage21, images: Tensor, fast: FastVae | None = None) -> Tensor:
    """uint8 (B, H, W, 3 or 4) -> packed, normalised posterior modes (B, N, C), as the pipeline encodes references.

    fast: the same autoencoder with fewer passes over memory.
    """
    if images.shape[-1] == 3:
        images = torch.cat([images, images.new_full((*images.shape[:-1], 1), 255)], dim=-1)
    pixels = (images.to(vae.device).permute(0, 3, 1, 2).float() / 255 * 2 - 1).to(vae.dtype)
    if fast is None:
        latents = vae.encode(pixels.unsqueeze(2)).latent_dist.mode()
    else:
        latents = fast.encode(pixels.contiguous(memory_format=torch.channels_last))[0].float().unsqueeze(2)
    mean, std = _statistics(vae, latents)
    return ((latents - mean) / std).flatten(2).transpose(1, 2)


@torch.no_grad()
def decode_latents(
    vae: AutoencoderKLQwenImage21, latents: Tensor, height: int, width: int, fast: FastVae | None = None
) -> Tensor:
    """Packed latents (B, N, C) of `height` x `width` latent tokens -> uint8 (B, H, W, 3); alpha is dropped.

    fast: the same autoencoder with fewer passes over memory.
    """
    grid = latents.to(vae.device, vae.dtype).transpose(1, 2).unflatten(2, (1, height, width))
    mean, std = _statistics(vae, grid)
    grid = grid * std + mean
    if fast is None:
        pixels = vae.decode(grid, return_dict=False)[0][:, :3, 0].float()
    else:
        pixels = fast.decode(grid[:, :, 0].contiguous(memory_format=torch.channels_last))[:, :3].float()
    require_finite_values("the autoencoder", {"the decoded picture": pixels})
    return ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def _statistics(vae: AutoencoderKLQwenImage21, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latent channels, each (1, C, 1, 1, 1)."""
    statistics = (vae.config.latents_mean, vae.config.latents_std)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1).to(like) for values in statistics)
    return mean, std
