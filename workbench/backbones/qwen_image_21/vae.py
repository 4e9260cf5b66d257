"""Forward of `AutoencoderKLQwenImage21` for single images: the same weights, fewer passes over memory.

The stock forward carries a time axis of length one and cache bookkeeping, normalises in float32 with eight passes over
each activation, pads before every convolution and repeats channels by reshaping. Here everything is (B, C, H, W), fit
for `channels_last` and bf16 autocast. A test compares both.

The channel-averaging and channel-repeating shortcuts are linear maps, so they become one strided (transposed)
convolution whose constant kernel is read off the stock module by passing it a basis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage21
from diffusers.models.autoencoders.autoencoder_kl_qwenimage21 import (
    QwenImage21AttentionBlock,
    QwenImage21CausalConv3d,
    QwenImage21MidBlock,
    QwenImage21Resample,
    QwenImage21ResidualBlock,
    QwenImage21ResidualDownBlock,
    QwenImage21ResidualUpBlock,
    QwenImage21RMS_norm,
)
from torch import Tensor, nn


class FastVae(nn.Module):
    """Encode and decode images with the weights of `vae`, differentiably.

    Raises:
        ValueError: the autoencoder is not the residual kind (`is_residual=True`).
    """

    def __init__(self, vae: AutoencoderKLQwenImage21) -> None:
        super().__init__()
        if not vae.config.is_residual:
            raise ValueError("FastVae knows the residual blocks alone (is_residual=True)")
        self.vae = vae
        self.patch = vae.config.patch_size or 1
        self.norm_silu = norm_silu
        weight = vae.quant_conv.weight
        for index, block in enumerate(vae.encoder.down_blocks):
            self.register_buffer(f"down_{index}", _average_kernel(block, weight), persistent=False)
        for index, block in enumerate(vae.decoder.up_blocks):
            self.register_buffer(f"up_{index}", _repeat_kernel(block, weight), persistent=False)

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 4, H, W) in [-1, 1] -> posterior mean and log variance, (B, C, H / 16, W / 16) each."""
        x = _fold(images, self.patch)
        encoder = self.vae.encoder
        x = _conv(encoder.conv_in, x)
        for index, block in enumerate(encoder.down_blocks):
            x = self._down(block, x, getattr(self, f"down_{index}"))
        x = self._middle(encoder.mid_block, x)
        x = _conv(encoder.conv_out, self.norm_silu(x, *_norm(encoder.norm_out)))
        mean, log_variance = _conv(self.vae.quant_conv, x).chunk(2, dim=1)
        return mean, log_variance.clamp(-30.0, 20.0)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w), not normalised -> images (B, 4, 16 h, 16 w), not clamped to [-1, 1]."""
        decoder = self.vae.decoder
        x = _conv(decoder.conv_in, _conv(self.vae.post_quant_conv, latents))
        x = self._middle(decoder.mid_block, x)
        for index, block in enumerate(decoder.up_blocks):
            x = self._up(block, x, getattr(self, f"up_{index}"))
        return _unfold(_conv(decoder.conv_out, self.norm_silu(x, *_norm(decoder.norm_out))), self.patch)

    def _down(self, block: QwenImage21ResidualDownBlock, x: Tensor, kernel: Tensor) -> Tensor:
        shortcut = F.conv2d(x, kernel, stride=kernel.shape[-1])
        for resnet in block.resnets:
            x = self._resnet(resnet, x)
        return (_resample(block.downsampler, x) if block.downsampler is not None else x) + shortcut

    def _up(self, block: QwenImage21ResidualUpBlock, x: Tensor, kernel: Tensor | None) -> Tensor:
        shortcut = F.conv_transpose2d(x, kernel, stride=kernel.shape[-1]) if kernel is not None else None
        for resnet in block.resnets:
            x = self._resnet(resnet, x)
        if block.upsampler is not None:
            x = _resample(block.upsampler, x)
        return x + shortcut if shortcut is not None else x

    def _middle(self, block: QwenImage21MidBlock, x: Tensor) -> Tensor:
        x = self._resnet(block.resnets[0], x)
        for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
            x = self._resnet(resnet, _attend(attention, x))
        return x

    def _resnet(self, block: QwenImage21ResidualBlock, x: Tensor) -> Tensor:
        shortcut = x if isinstance(block.conv_shortcut, nn.Identity) else _conv(block.conv_shortcut, x)
        x = _conv(block.conv1, self.norm_silu(x, *_norm(block.norm1)))
        return _conv(block.conv2, self.norm_silu(x, *_norm(block.norm2))) + shortcut


def norm_silu(x: Tensor, gamma: Tensor, scale: float) -> Tensor:
    """silu(x / |x| * scale * gamma), the norm over channels in float32: (B, C, H, W) and (C, 1, 1) -> (B, C, H, W)."""
    return F.silu(_normalise(x, gamma, scale))


def _normalise(x: Tensor, gamma: Tensor, scale: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_min(1e-12)
    return x * (scale / norm).to(x.dtype) * gamma.to(x.dtype)


def _norm(module: QwenImage21RMS_norm) -> tuple[Tensor, float]:
    return module.gamma.view(-1, 1, 1), module.scale


def _conv(module: QwenImage21CausalConv3d, x: Tensor) -> Tensor:
    return F.conv2d(x, module.weight, module.bias, module.stride, padding=module.kernel_size[0] // 2)


def _resample(module: QwenImage21Resample, x: Tensor) -> Tensor:
    """The first frame of a chunk never meets the temporal convolutions."""
    conv = module.resample[1]
    if module.mode.startswith("upsample"):
        return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest-exact"), conv.weight, conv.bias, padding=1)
    return F.conv2d(F.pad(x, (0, 1, 0, 1)), conv.weight, conv.bias, stride=2)


def _attend(block: QwenImage21AttentionBlock, x: Tensor) -> Tensor:
    query, key, value = (
        part.flatten(2).transpose(1, 2).unsqueeze(1)
        for part in block.to_qkv(_normalise(x, *_norm(block.norm))).chunk(3, dim=1)
    )
    attended = F.scaled_dot_product_attention(query, key, value).squeeze(1)
    return block.proj(attended.transpose(1, 2).reshape(x.shape)) + x


def _fold(x: Tensor, patch: int) -> Tensor:
    """Pixel patches into channels in the family's order (c, x, y): pixel_unshuffle with its sub-pixels transposed."""
    if patch == 1:
        return x
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return x.permute(0, 1, 5, 3, 2, 4).reshape(batch, channels * patch**2, height // patch, width // patch)


def _unfold(x: Tensor, patch: int) -> Tensor:
    if patch == 1:
        return x
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels // patch**2, patch, patch, height, width)
    return x.permute(0, 1, 4, 3, 5, 2).reshape(batch, channels // patch**2, height * patch, width * patch)


@torch.no_grad()
def _average_kernel(block: QwenImage21ResidualDownBlock, like: Tensor) -> Tensor:
    """(out, in, s, s) kernel of a down block's shortcut."""
    shortcut = block.avg_shortcut
    side, channels = shortcut.factor_s, shortcut.in_channels
    basis = torch.eye(channels * side**2, device=like.device, dtype=like.dtype).view(-1, channels, 1, side, side)
    return shortcut(basis).flatten(1).T.reshape(-1, channels, side, side).contiguous()


@torch.no_grad()
def _repeat_kernel(block: QwenImage21ResidualUpBlock, like: Tensor) -> Tensor | None:
    """(in, out, s, s) kernel of an up block's shortcut at the first frame, None where it has none."""
    shortcut = block.avg_shortcut
    if shortcut is None:
        return None
    basis = torch.eye(shortcut.in_channels, device=like.device, dtype=like.dtype)
    basis = basis.view(shortcut.in_channels, -1, 1, 1, 1)
    return shortcut(basis, first_chunk=True).squeeze(2).contiguous()
