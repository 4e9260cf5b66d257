"""An exported student in stock diffusers, on the noise that this project's own sampler draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from diffusers.schedulers import scheduling_flow_match_euler_discrete

from workbench.backbones.base import RoleDenoiser
from workbench.backbones.family import PipelineModel
from workbench.backbones.load import single_role
from workbench.backbones.qwen_image_21.model import QwenImage21Model
from workbench.method import rng
from workbench.method.rollout import Sampling
from workbench.sampling.sampler import NOISE_STREAM, Request, Sampler


def own_and_stock(student: QwenImage21Model, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (N, C) of a request at 64 x 64 pixels, as the student's folder says to sample."""
    how = student.default_sampling()
    (ours,) = Sampler(student, RoleDenoiser(single_role(student), "teacher"))([request], how).latents
    return ours, stock_latents(student, request, how, as_stored=True)


def stock_latents(student: QwenImage21Model, request: Request, how: Sampling, as_stored: bool = False) -> torch.Tensor:
    """What the stock pipeline makes of it: over the times of `how` if it has some, or those that the folder stores."""
    fresh = [noise(student, request, f"{NOISE_STREAM}/fresh{k}") for k in range(how.steps - 1)]
    start = noise(student, request, NOISE_STREAM)
    with renoised_by([*fresh, torch.zeros_like(start)]):
        return student.pipeline(
            request.prompt,
            image=list(request.sources) or None,
            height=64,
            width=64,
            output_resolution=64,
            latents=start,
            sigmas=list(how.times) if how.times and not as_stored else None,
            output_type="latent",
        ).images[0]


def noise(student: PipelineModel, request: Request, stream: str, num_tokens: int = 16) -> torch.Tensor:
    config: Any = student.transformer.config
    shape, rows = (num_tokens, config.in_channels), torch.tensor([0])
    return rng.normal(shape, rows, seed=request.seed, stream=stream, step=request.row, num_rows=1)


@contextmanager
def renoised_by(numbers: list[torch.Tensor]) -> Iterator[None]:
    """The scheduler takes these in place of its own noise, if it takes any."""
    remaining = iter(numbers)
    with patch.object(scheduling_flow_match_euler_discrete, "randn_tensor", lambda *_, **__: next(remaining)):
        yield
