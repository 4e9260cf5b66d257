"""Stock diffusers, with a real torchvision, draws what our sampler draws: the shipped folder and a student."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import QwenImage21Pipeline
from PIL import Image

from workbench.backbones import families, folders
from workbench.backbones.base import RoleDenoiser
from workbench.backbones.load import single_role
from workbench.method import rng
from workbench.method.rollout import Sampling
from workbench.sampling.sampler import NOISE_STREAM, Request, Sampler

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(find_spec("torchvision") is None, reason="stock diffusers needs torchvision"),
]


SIDE, PROMPT, SEED = 128, 'a sign that says "CAT"', 5
HOW = Sampling(4, 3.0)


def source() -> Image.Image:
    return Image.effect_mandelbrot((SIDE, SIDE), (-2, -1, 1, 1), 20).convert("RGB")


@pytest.mark.parametrize("task", ["t2i", "edit"])
@pytest.mark.parametrize("which", ["shipped", "student"])
@torch.no_grad()
def test_the_stock_pipeline_draws_our_picture(which: str, task: str, replayed: Path) -> None:
    folder = families.resolve("tiny") if which == "shipped" else replayed / "student"
    images = (source(),) if task == "edit" else ()
    model = families.load(str(folder), "cuda")
    sampler = Sampler(model, RoleDenoiser(single_role(model), "teacher"))
    ours = sampler([Request(PROMPT, seed=SEED, sources=images, height=SIDE, width=SIDE)], HOW)

    channels = sampler.denoiser.num_channels
    shape = ((SIDE // model.pixels_per_token) ** 2, channels)
    rows = torch.zeros(1, dtype=torch.int64)
    noise = rng.normal(shape, rows, seed=SEED, stream=NOISE_STREAM, step=0, num_rows=1).cuda()
    pipeline = QwenImage21Pipeline.from_pretrained(folder, torch_dtype=torch.float32).to("cuda")
    # A student's folder holds its grid; the teacher's is told.
    grid = {} if which == "student" else {"sigmas": folders.sample_sigmas(HOW.grid())}
    arguments = {"image": list(images) or None, "output_resolution": SIDE, **grid}
    latents = pipeline(PROMPT, latents=noise.clone(), output_type="latent", **arguments).images
    error = (latents[0].cpu() - ours.latents[0]).norm() / latents[0].cpu().norm()
    # The sampler multiplies in TensorFloat-32, whose factors have 10 bits.
    assert error < 0.01, f"latents differ by {error:.4f}"
    picture = np.asarray(pipeline(PROMPT, latents=noise.clone(), **arguments).images[0].convert("RGB"), dtype=float)
    assert np.abs(picture - ours.images[0]).mean() < 1, "pictures differ by more than one of 256 levels"
