"""Sampling through our split networks against the stock pipeline; independence of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from stock_student import own_and_stock

from workbench.backbones.base import RoleDenoiser
from workbench.backbones.load import single_role
from workbench.backbones.qwen_image_21.images import decode_latents
from workbench.backbones.qwen_image_21.model import QwenImage21Model
from workbench.backbones.qwen_image_21.vae import FastVae
from workbench.method import rng
from workbench.method.rollout import Sampling, time_grid
from workbench.sampling.sampler import CPU_ROWS, NOISE_STREAM, Request, Sampler, default_batch_size, encode, fit

TIMES = time_grid(3, 2.0)


def guided_by(scale: float) -> Sampling:
    return Sampling(3, 2.0, scale)


def _image(seed: int, mode: str = "RGB", size: tuple[int, int] = (64, 64)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    return Image.fromarray(pixels)


REQUESTS = (
    Request("a red house", seed=0, row=0, height=64, width=64),
    Request("make it blue", seed=0, row=1, sources=(_image(1),)),
    Request("a fox under a starry sky, with a sign", seed=0, row=2, height=64, width=64),
    Request("", seed=3, row=0, sources=(_image(2, "RGBA"),)),
    Request("a tree", seed=0, row=4, height=64, width=96),
)


@pytest.fixture(scope="module")
def model(tiny_pipeline_folder: Path) -> QwenImage21Model:
    return QwenImage21Model.load(tiny_pipeline_folder)


@pytest.fixture(scope="module")
def sampler(model: QwenImage21Model) -> Sampler:
    return Sampler(model, RoleDenoiser(single_role(model), "teacher"))


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_equals_the_stock_pipeline(model: QwenImage21Model, sampler: Sampler, scale: float) -> None:
    pipeline = model.pipeline
    samples = sampler(REQUESTS, guided_by(scale))
    assert samples.nfe == (3 if scale == 1 else 6)
    for request, ours, latents in zip(REQUESTS, samples.images, samples.latents, strict=True):
        width, height = request.sources[-1].size if request.sources else (request.width, request.height)
        noise = rng.normal(
            (width * height // 256, 8),
            torch.tensor([0]),
            seed=request.seed,
            stream=NOISE_STREAM,
            step=request.row,
            num_rows=1,
        )
        settings = {
            "prompt": request.prompt,
            "image": list(request.sources) or None,
            "negative_prompt": "" if scale > 1 else None,
            "true_cfg_scale": scale,
            "height": height,
            "width": width,
            "output_resolution": 64,
            "sigmas": TIMES[:-1].tolist(),
            "latents": noise,
        }
        stock = pipeline(**settings, output_type="latent").images[0]
        torch.testing.assert_close(latents, stock, atol=1e-4, rtol=1e-4)
        picture = np.asarray(pipeline(**settings).images[0])[..., :3].astype(int)
        assert ours.shape == (height, width, 3) and np.abs(picture - ours.astype(int)).max() <= 1


@pytest.mark.parametrize("steps", [2, 4])
@pytest.mark.parametrize("request_", REQUESTS[:2], ids=["t2i", "edit"])
def test_a_re_noised_student_is_drawn_by_stock_diffusers_as_by_us(
    model: QwenImage21Model, tiny_pipeline_folder: Path, tmp_path: Path, request_: Request, steps: int
) -> None:
    """From its exported folder, on the noise that our sampler draws between the steps."""
    how = Sampling(steps, 2.0, stochastic=True)
    QwenImage21Model.export(
        tiny_pipeline_folder, model.transformer.state_dict(), how, tmp_path / "student", lambda _: None
    )
    student = QwenImage21Model.load(tmp_path / "student")
    times = tuple(time_grid(steps, 2.0)[:-1].tolist())
    assert student.default_sampling() == Sampling(steps, times=times, stochastic=True)
    ours, stock = own_and_stock(student, request_)
    sampler = Sampler(student, RoleDenoiser(single_role(student), "teacher"))
    (euler,) = sampler([request_], Sampling(steps, 2.0)).latents
    assert (ours - euler).abs().max() > 0.1
    torch.testing.assert_close(ours, stock, atol=1e-4, rtol=1e-4)


def test_an_image_does_not_depend_on_its_batch(model: QwenImage21Model, sampler: Sampler) -> None:
    together = sampler(REQUESTS, guided_by(1.5)).latents
    small = Sampler(model, sampler.denoiser, batch_size=1)
    backwards = small(REQUESTS[::-1], guided_by(1.5)).latents[::-1]
    for first, second in zip(together, backwards, strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


def test_seed_and_row_alone_set_the_noise(sampler: Sampler) -> None:
    same = [
        Request("a tree", seed=seed, row=row, height=64, width=64) for seed, row in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    first, other_row, other_seed, again = sampler(same, guided_by(1.0)).latents
    torch.testing.assert_close(first, again, atol=1e-6, rtol=1e-6)
    assert (first - other_row).abs().max() > 0.1 and (first - other_seed).abs().max() > 0.1


def test_fit_is_the_pipelines_resize(model: QwenImage21Model) -> None:
    image = _image(0, size=(90, 50))
    ours = fit(image, 64, model.side_multiple)
    stock = model.pipeline.image_processor.resize(image, width=ours.width, height=ours.height)
    assert ours.size != image.size and ours.width % 32 == ours.height % 32 == 0
    assert np.array_equal(np.asarray(ours), np.asarray(stock))


def test_odd_sizes_are_refused(model: QwenImage21Model) -> None:
    with pytest.raises(ValueError, match="multiples of 32"):
        encode(model, [Request("x", height=48, width=64)])


def test_no_requests_give_no_images(sampler: Sampler) -> None:
    assert sampler([], guided_by(1.0)).images == []


def test_rows_and_text_that_fill_a_recorded_shape_change_no_sample(
    model: QwenImage21Model, sampler: Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does, its recording replaced by the function that it records."""
    shapes: list[tuple[int, ...]] = []

    def record(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor]:
        shapes.append(tuple(tensors[0].shape[:2]) + tuple(tensors[2].shape[-1:]))
        return recorded._evaluate(tensors)

    recorded = Sampler(model, sampler.denoiser, batch_size=3)
    monkeypatch.setattr(recorded, "_graphed", True)
    monkeypatch.setattr(recorded, "_recorded", record)
    monkeypatch.setattr("workbench.sampling.sampler.ROW_STEP", 4)
    for scale in (1.0, 2.0):
        filled, plain = recorded(REQUESTS, guided_by(scale)), sampler(REQUESTS, guided_by(scale))
        for a, b in zip(filled.latents, plain.latents, strict=True):
            torch.testing.assert_close(a, b, atol=2e-5, rtol=2e-5)
    assert {rows for rows, _, _ in shapes} == {4}


def test_the_batch_follows_the_device_unless_it_is_given(model: QwenImage21Model) -> None:
    assert default_batch_size(model, 64) == CPU_ROWS


def test_images_decoded_the_short_way_are_the_stock_ones(model: QwenImage21Model) -> None:
    vae = model.pipeline.vae
    latents = torch.randn(3, 16, model.transformer.config.in_channels, generator=torch.Generator().manual_seed(0))
    stock, ours = (decode_latents(vae, latents, 4, 4, fast) for fast in (None, FastVae(vae)))
    assert torch.equal(ours, model.decode_latents(latents, 4, 4))
    assert (stock.int() - ours.int()).abs().max() <= 1 and stock.float().std() > 1
