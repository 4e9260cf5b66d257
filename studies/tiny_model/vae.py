"""Trains the autoencoder of the tiny model on images of the world.

    python -m studies.tiny_model.vae FOLDER minutes=9 batch_size=128 [resume=FOLDER] [lr=2e-3 final_lr=0 ...]

FOLDER is a pipeline folder (its `vae` is written) or a folder to be made. It then holds the averaged weights, loadable
by `AutoencoderKLQwenImage21.from_pretrained`, the raw weights `training.safetensors` to resume from, both bf16, and
`report.json`. Interrupted, the same command goes on from the last report.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage21
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from studies.tiny_model.assemble import FOLDED, TINY, Sizes, autoencoder
from studies.tiny_model.reconstruction import kl_divergence, psnr, reconstruction_loss, to_model
from studies.tiny_model.renders import render, sources
from studies.tiny_model.stages import Stage, world_fingerprint
from workbench.backbones.qwen_image_21.vae import FastVae, norm_silu
from workbench.common.arguments import read_options
from workbench.common.cores import usable_cores
from workbench.common.errors import UserError
from workbench.common.files import write_bytes
from workbench.engine.optimisation import MovingAverage, cosine

TRAINING_FILE = "training.safetensors"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
WARM = 10**9
"""Updates after which the moving average has its full decay: a resumed one starts there."""
START_LOG_VARIANCE = -6.0
"""Bias of the posterior's log variance at the start: noise of variance 1 would drown the first thousand steps."""


@dataclass(frozen=True)
class Options:
    """Ends after `steps` steps or `minutes` of training, whichever is first; the learning rate follows the nearer end.

    lr falls by a cosine to lr * final_lr, after `warmup` steps. kl weighs nats per latent position, `gradient` the
    error of finite differences, `coarse` the error of 4 x 4 means. pool and held_out: images drawn for each.
    folded: the autoencoder of `FOLDED` sizes; a resumed autoencoder keeps its sizes.
    """

    steps: int = 1_000_000
    minutes: float = 60.0
    batch_size: int = 128
    lr: float = 2e-3
    final_lr: float = 0.0
    warmup: int = 300
    beta2: float = 0.99
    clip: float = 1.0
    ema_decay: float = 0.999
    squared: float = 1.0
    gradient: float = 1.0
    coarse: float = 0.5
    kl: float = 1e-5
    pool: int = 60_000
    held_out: int = 512
    resolution: int = 128
    report_every_s: float = 60.0
    folded: bool = False
    resume: str | None = None
    workers: int | None = None
    compile: bool = False
    device: str = "auto"
    seed: int = 0


class Trainer:
    """Weights, their average, the optimiser and the pool of images, all on one device."""

    def __init__(self, vae: AutoencoderKLQwenImage21, options: Options, device: torch.device) -> None:
        self.options, self.device = options, device
        self.vae = vae.to(device=device, memory_format=torch.channels_last)
        self.fast = FastVae(self.vae).to(device)
        if options.compile:
            self.fast.norm_silu = torch.compile(norm_silu, dynamic=False)
        self.parameters = list(self.vae.parameters())
        self.average = MovingAverage(dict(self.vae.named_parameters()), options.ema_decay)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=options.lr, betas=(0.9, options.beta2), weight_decay=0.0, fused=device.type == "cuda"
        )
        self.generator = torch.Generator(device).manual_seed(options.seed)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def step(self, images: Tensor, lr: float, step: int) -> Tensor:
        """One optimiser step on uint8 (B, H, W, 3); the loss, detached."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        target = to_model(images)
        with self.autocast():
            mean, log_variance = self.fast.encode(target)
            noise = torch.randn(mean.shape, generator=self.generator, device=self.device)
            prediction = self.fast.decode(mean + noise * torch.exp(0.5 * log_variance.float()))
        loss = reconstruction_loss(prediction, target, self.options) + self.options.kl * kl_divergence(
            mean, log_variance
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.options.clip)
        self.optimizer.step()
        self.average.update(step if self.options.resume is None else WARM)
        return loss.detach()

    @torch.no_grad()
    def means(self, images: np.ndarray) -> Tensor:
        """Posterior means of uint8 (N, H, W, 3) under the present weights: (N, C, h, w)."""
        return torch.cat([self.fast.encode(to_model(batch))[0].float() for batch in self._batches(images)])

    @torch.no_grad()
    def decibels(self, images: np.ndarray) -> Tensor:
        """PSNR of each image through the present weights, without posterior noise: (N,)."""
        values = []
        for batch in self._batches(images):
            target = to_model(batch)
            values.append(psnr(self.fast.decode(self.fast.encode(target)[0]), target).cpu())
        return torch.cat(values)

    def _batches(self, images: np.ndarray) -> list[Tensor]:
        size = self.options.batch_size
        return [torch.from_numpy(images[i : i + size].copy()).to(self.device) for i in range(0, len(images), size)]


def learning_rate(options: Options, step: int, fraction: float) -> float:
    """Linear warm-up over steps, cosine over the done `fraction` of the budget."""
    return options.lr * min(1.0, (step + 1) / options.warmup) * cosine(fraction, options.final_lr)


def _spent(options: Options, step: int, elapsed_s: float) -> float:
    """Fraction of the budget that is gone, in steps or in time."""
    return 1.0 if step >= options.steps else max(step / options.steps, elapsed_s / (60 * options.minutes))


def train(folder: Path, options: Options, sizes: Sizes = TINY) -> dict[str, float]:
    """Train, report and save until the budget ends; the last report."""
    stage = Stage(folder, settings(options, sizes))
    if stage.done:
        return stage.report
    name = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
    device = torch.device(name)
    if stage.steps:
        options = replace(options, resume=str(folder))
    trainer = Trainer(_start(options, sizes), options, device)
    if options.resume is not None:
        _load_average(trainer, Path(options.resume))
    workers = usable_cores() if options.workers is None else options.workers
    with tempfile.TemporaryDirectory() as scratch:
        pool = render(Path(scratch), "train", options.pool, "train", options.resolution, workers, options.seed)
        held_out = np.array(render(Path(scratch), "search", options.held_out, "search", options.resolution, workers))
        images = torch.from_numpy(np.array(pool)).to(device)
    return _loop(trainer, images, held_out, stage)


def _loop(trainer: Trainer, images: Tensor, held_out: np.ndarray, stage: Stage) -> dict[str, float]:
    """Steps from where the stage stands until the budget ends; the last report."""
    options, console, loss = trainer.options, Console(markup=False), torch.tensor(0.0)
    start, step = stage.steps, stage.steps
    began, reported = time.monotonic() - stage.wall_s, time.monotonic()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())

    def report(done: bool) -> dict[str, float]:
        wall_s = time.monotonic() - began
        found = save(trainer, stage.folder, held_out, {"step": step, "wall_s": wall_s, "loss": loss.item()})
        stage.write(step, wall_s, done, found)
        for name in ("loss", "psnr_db", "psnr_text_db"):
            log.add_scalar(name, found[name], step)
        console.print(json.dumps(found))
        return found

    with stage.log() as log, Progress(*columns, console=console) as progress:
        bar = progress.add_task("training the autoencoder", total=1000)
        while (fraction := _spent(options, step, time.monotonic() - began)) < 1:
            rows = torch.randint(len(images), (options.batch_size,), generator=trainer.generator, device=images.device)
            # Moments start anew after an interruption, and so does the warm-up.
            loss = trainer.step(images[rows], learning_rate(options, step - start, fraction), step)
            step += 1
            progress.update(bar, completed=int(1000 * fraction))
            if time.monotonic() - reported > options.report_every_s:
                report(done=False)
                reported = time.monotonic()
        return report(done=True)


def settings(options: Options, sizes: Sizes) -> dict[str, Any]:
    """What decides the result, apart from the machine."""
    machine = ("workers", "report_every_s", "device", "compile")
    chosen = {name: value for name, value in asdict(options).items() if name not in machine}
    return {"world": world_fingerprint(), "sizes": asdict(sizes), **chosen}


def save(trainer: Trainer, folder: Path, held_out: np.ndarray, report: dict[str, float]) -> dict[str, float]:
    """Write the averaged weights with the latents' statistics, the raw ones, and the report with its decibels."""
    folder.mkdir(parents=True, exist_ok=True)
    _save_tensors(trainer, folder / TRAINING_FILE)
    trainer.average.swap()
    decibels = trainer.decibels(held_out)
    kinds = [sources()[row % len(sources())] for row in range(len(held_out))]
    text = torch.tensor([kind.category == "text" for kind in kinds])
    report = {**report, "psnr_db": decibels.mean().item(), "psnr_text_db": decibels[text].mean().item()}
    for category in sorted({kind.category for kind in kinds}):
        chosen = torch.tensor([kind.category == category for kind in kinds])
        report[f"psnr_{category}_db"] = decibels[chosen].mean().item()
    latents = trainer.means(held_out)
    std = latents.std((0, 2, 3))
    report |= {"latent_std_min": std.min().item(), "latent_std_max": std.max().item()}
    # A channel that carries next to nothing must not be blown up to unit variance for the teacher to learn.
    std = std.clamp_min(0.1 * std.mean().item())
    trainer.vae.register_to_config(latents_mean=latents.mean((0, 2, 3)).tolist(), latents_std=std.tolist())
    trainer.vae.save_config(folder)
    _save_tensors(trainer, folder / WEIGHTS_FILE)
    trainer.average.swap()
    content = json.dumps({**report, "options": asdict(trainer.options)}, indent=2) + "\n"
    write_bytes(folder / "report.json", content.encode())
    return report


def _save_tensors(trainer: Trainer, path: Path) -> None:
    state = {
        name: value.detach().to(torch.bfloat16).cpu().contiguous() for name, value in trainer.vae.state_dict().items()
    }
    write_bytes(path, safetensors_bytes(state, metadata={"format": "pt"}))


def _start(options: Options, sizes: Sizes) -> AutoencoderKLQwenImage21:
    if options.resume is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            vae = autoencoder(sizes)
        with torch.no_grad():
            vae.quant_conv.bias[vae.config.z_dim :] = START_LOG_VARIANCE
        return vae
    folder = Path(options.resume)
    if not (folder / TRAINING_FILE).is_file():
        raise UserError(f"{folder} holds no {TRAINING_FILE} to resume from")
    vae = AutoencoderKLQwenImage21.from_pretrained(folder)
    vae.load_state_dict(load_file(folder / TRAINING_FILE))
    return vae


def _load_average(trainer: Trainer, folder: Path) -> None:
    state = load_file(folder / WEIGHTS_FILE)
    for name, average in trainer.average.average.items():
        average.copy_(state[name])


def main(arguments: list[str]) -> None:
    """Command line: FOLDER name=value ..."""
    if not arguments or "=" in arguments[0]:
        raise UserError("usage: python -m studies.tiny_model.vae FOLDER [name=value ...]")
    folder = Path(arguments[0])
    options = read_options(Options, arguments[1:])
    place = folder / "vae" if (folder / "model_index.json").is_file() else folder
    train(place, options, FOLDED if options.folded else TINY)


if __name__ == "__main__":
    main(sys.argv[1:])
