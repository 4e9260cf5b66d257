"""The assembled folder, the autoencoder's training-time forward against the stock one, a few steps of training."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage21
from safetensors.torch import load_file

from studies.tiny_model import tokenizer as tokenizers
from studies.tiny_model import vae as training
from studies.tiny_model.assemble import SMALLEST, Sizes, assemble, autoencoder
from workbench.backbones.qwen_image_21.vae import FastVae
from workbench.common.arguments import read_options
from workbench.common.errors import UserError

PATCHED = dataclasses.replace(SMALLEST, vae_patch=2, vae_mult=(1, 1, 2, 2))
UNEVEN = dataclasses.replace(SMALLEST, vae_decoder_base=16, vae_mult=(1, 2, 4, 4, 4))
CORPUS = [
    f'A {colour} house with a sign that says "{word}".' for colour in ("red", "blue") for word in ("HOUSE", "TREE")
]
FEW_STEPS = training.Options(
    steps=3, batch_size=2, warmup=1, pool=16, held_out=16, resolution=64, workers=0, device="cpu", report_every_s=1e9
)


def _randomised(sizes: Sizes) -> AutoencoderKLQwenImage21:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        vae = autoencoder(sizes)
        for parameter in vae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return vae


@pytest.mark.parametrize("sizes", [SMALLEST, PATCHED, UNEVEN])
def test_fast_forward_equals_stock(sizes: Sizes) -> None:
    vae = _randomised(sizes)
    fast, generator = FastVae(vae), torch.Generator().manual_seed(1)
    images = torch.rand(2, 4, 64, 96, generator=generator) * 2 - 1
    posterior = vae.encode(images.unsqueeze(2)).latent_dist
    mean, log_variance = fast.encode(images)
    torch.testing.assert_close(mean, posterior.mean.squeeze(2), atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(log_variance, posterior.logvar.squeeze(2), atol=5e-5, rtol=1e-5)
    assert mean.shape == (2, 8, 4, 6)
    stock = vae.decode(posterior.mean).sample.squeeze(2)
    torch.testing.assert_close(fast.decode(mean).clamp(-1, 1), stock, atol=5e-5, rtol=1e-5)


def test_fast_gradients_equal_stock() -> None:
    vae = _randomised(SMALLEST)
    images = torch.rand(2, 4, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def gradients(output: torch.Tensor) -> dict[str, torch.Tensor]:
        names, parameters = zip(*vae.named_parameters(), strict=True)
        values = torch.autograd.grad(output.square().mean(), parameters, allow_unused=True)
        return {name: value for name, value in zip(names, values, strict=True) if value is not None}

    # The stock decoder clamps, so it is taken at its own last layer.
    vae.clear_cache()
    latents = vae.post_quant_conv(vae.encode(images.unsqueeze(2)).latent_dist.mean)
    stock = gradients(vae.decoder(latents, feat_cache=vae._feat_map, feat_idx=[0], first_chunk=True))
    fast = FastVae(vae)
    ours = gradients(fast.decode(fast.encode(images)[0]))
    assert stock.keys() == ours.keys()
    for name, value in stock.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-3)


def test_loss_falls_and_error_measures_are_right() -> None:
    options = dataclasses.replace(FEW_STEPS, lr=1e-3)
    trainer = training.Trainer(_randomised(SMALLEST), options, torch.device("cpu"))
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 1, 1, 3), dtype=np.uint8)).expand(
        2, 64, 64, 3
    )
    losses = [trainer.step(images, 1e-3, step).item() for step in range(20)]
    assert losses[-1] < 0.7 * losses[0]
    flat = torch.zeros(1, 3, 8, 8)
    torch.testing.assert_close(training.psnr(flat + 0.2, flat), torch.tensor([20.0]))
    torch.testing.assert_close(
        training.kl_divergence(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)), torch.tensor(0.0)
    )


def test_trains_saves_and_resumes(tmp_path: Path) -> None:
    report = training.train(tmp_path / "vae", FEW_STEPS, SMALLEST)
    assert report["step"] == 3 and np.isfinite([report["psnr_db"], report["psnr_text_db"]]).all()
    vae = AutoencoderKLQwenImage21.from_pretrained(tmp_path / "vae")
    assert len(vae.config.latents_std) == 8 and min(vae.config.latents_std) > 0 and any(vae.config.latents_mean)
    assert json.loads((tmp_path / "vae" / "report.json").read_text())["options"]["steps"] == 3

    resumed = dataclasses.replace(FEW_STEPS, steps=0, resume=str(tmp_path / "vae"))
    training.train(tmp_path / "again", resumed, SMALLEST)
    for name in (training.TRAINING_FILE, training.WEIGHTS_FILE):
        first, second = load_file(tmp_path / "vae" / name), load_file(tmp_path / "again" / name)
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_learning_rate_warms_up_and_ends_where_asked() -> None:
    options = dataclasses.replace(FEW_STEPS, lr=1.0, warmup=4, final_lr=0.1)
    assert training.learning_rate(options, 0, 0.0) == 0.25
    assert training.learning_rate(options, 100, 0.0) == 1.0
    assert training.learning_rate(options, 100, 1.0) == pytest.approx(0.1)


def test_options_are_checked() -> None:
    options = read_options(training.Options, ["steps=3", "minutes=0.5", "resume=x"])
    assert options == training.Options(steps=3, minutes=0.5, resume="x")
    with pytest.raises(UserError, match="step=3"):
        read_options(training.Options, ["step=3"])


def test_assembled_twice_is_the_same_folder_and_names_nothing_of_ours(tmp_path: Path) -> None:
    for name in ("a", "b"):
        assemble(tmp_path / name, CORPUS, seed=0, sizes=SMALLEST)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    for file in files:
        content = (tmp_path / "a" / file).read_bytes()
        assert content == (tmp_path / "b" / file).read_bytes(), file
        assert b"workbench" not in content and b"studies" not in content, file


def test_capitals_are_spelled_letter_by_letter() -> None:
    tokenizer = tokenizers.train(CORPUS * 10)
    for word in ("HOUSE", "TREE", "QZXJK"):
        tokens = tokenizer.tokenize(f'says "{word}".')
        assert "".join(tokens).count(word) == 1
        letters = [token for token in tokens if re.fullmatch("[A-Z]+", token)]
        assert letters == list(word)
    assert tokenizer.tokenize("<|im_start|>user\n")[0] == "<|im_start|>"
    assert tokenizer.decode(tokenizer.encode("café, 12 HOUSES\n")) == "café, 12 HOUSES\n"
