"""Trains the local judge on the OpenMoji world: `python -m studies.tiny_model.judge OUT [minutes=10] [key=value ...]`.

Worker processes render images without end into a pool of uint8 images on the device; the device draws batches from the
pool, moves and tints them slightly, damages most of them, and trains all heads together. The judge written to OUT
(`config.json`, `model.safetensors`) is the exponential average of the weights; held-out accuracies join the config.
Labels that a style makes unreadable (colours in grey) are absent from the world's scenes, so no head is asked for them.

`init=FOLDER` starts from another judge, as far as it fits: after a change of the world's vocabulary only the classes
that are new start from nothing. Interrupted, the same command goes on from the last minute.
"""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch import Tensor

from datamodules.openmoji import HEADS, MAX_CHARACTERS, MULTI_LABEL
from studies.tiny_model import judge_data
from studies.tiny_model.corruptions import CORRUPTIONS, augment, corrupt
from studies.tiny_model.judge_check import check, table
from studies.tiny_model.judge_pool import Pool
from studies.tiny_model.judge_weights import fit, save
from studies.tiny_model.stages import Stage, world_fingerprint
from workbench.common.arguments import read_options
from workbench.common.cores import usable_cores
from workbench.common.files import write_bytes
from workbench.common.parent import spawned_pool
from workbench.engine.muon import BatchedMuon
from workbench.engine.optimisation import ChainedOptimizer, MovingAverage, cosine
from workbench.evaluation.judges.local_network import JudgeConfig
from workbench.evaluation.judges.networks import Network, load, network_of
from workbench.evaluation.judges.transformer_network import TransformerNetwork

CONSOLE = Console(markup=False)
TRAINING_FILE = "training.safetensors"


@dataclass(frozen=True)
class Options:
    """minutes: training time without rendering the first images; 0: train for `steps`. init: a judge to start from.

    pool: images kept at once. first: of them, so many are waited for before training. damaged: share of damaged
    images; kinds: share of a corruption among them, 1 where none is named. technical: weight of the rating's loss.
    """

    steps: int = 20000
    minutes: float = 0.0
    pool: int = 100_000
    first: int = 8192
    batch_size: int = 512
    lr: float = 2e-3
    warmup: int = 200
    weight_decay: float = 0.05
    ema_decay: float = 0.999
    damaged: float = 0.7
    kinds: dict[str, float] = field(default_factory=lambda: {"ghost": 2.0, "residue": 1.5, "warp": 4.0, "wobble": 2.5})
    technical: float = 20.0
    held_out: int = 200
    workers: int = 0
    resolution: int = 128
    rating_width: int = 32
    architecture: Literal["cnn", "transformer"] = "cnn"
    save_every_s: float = 60.0
    seed: int = 0
    init: str = ""


def losses(logits: dict[str, Tensor], labels: Tensor, technical: Tensor, weight_of_rating: float) -> Tensor:
    """Sum over heads of the mean loss over the rows the head applies to.

    technical: (B,) quality 1 - s. Badly damaged rows count less, since nobody can read them: weight min(1, 2 quality).
    The `quality` head counts undamaged rows alone, technical quality (squared error) those drawn clean.
    """
    weight = (2 * technical).clamp(max=1)
    clean = judge_data.is_clean(labels).float()
    error = (logits["technical"].sigmoid() - technical) ** 2
    total = weight_of_rating * (error * clean).sum() / clean.sum().clamp(min=1)
    for head in judge_data.SINGLE_LABEL:
        target = labels[:, judge_data.COLUMNS[head]].squeeze(1)
        loss = F.cross_entropy(logits[head], target, ignore_index=-1, reduction="none")
        weights = (technical == 1).float() if head == "quality" else weight
        total = total + (loss * weights).sum() / (weights * (target >= 0)).sum().clamp(min=1)
    for head in MULTI_LABEL:
        target = labels[:, judge_data.COLUMNS[head]]
        weights = weight[:, None] * (target >= 0)
        loss = F.binary_cross_entropy_with_logits(logits[head], target.clamp(min=0).float(), reduction="none")
        total = total + (loss * weights).sum() / weights[:, 0].sum().clamp(min=1)
    target = labels[:, judge_data.COLUMNS["word"]]
    loss = F.cross_entropy(logits["word"].flatten(0, 1), target.flatten(), ignore_index=-1, reduction="none")
    weights = weight[:, None] * (target >= 0)
    return total + 2 * (loss.view_as(weights) * weights).sum() / weights.sum().clamp(min=1)


def damaged_batch(images: Tensor, options: Options, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Augmented images, `options.damaged` of them damaged by one corruption of uniform severity; and their quality."""
    count, device = len(images), images.device
    images = augment(images, generator)
    shares = torch.tensor([options.kinds.get(name, 1.0) for name in CORRUPTIONS], device=device)
    kinds = torch.multinomial(shares, count, replacement=True, generator=generator)
    severity = torch.rand(count, generator=generator, device=device)
    clean = torch.rand(count, generator=generator, device=device) >= options.damaged
    kinds, severity = kinds.masked_fill(clean, -1), severity.masked_fill(clean, 0.0)
    return corrupt(images, kinds, severity, generator), 1 - severity


def _columns() -> tuple[TextColumn | BarColumn | TimeRemainingColumn, ...]:
    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeRemainingColumn(),
    )


def optimizer_of(network: Network, options: Options) -> ChainedOptimizer:
    """AdamW; the matrices of a transformer's blocks go through Muon, which takes a third of the steps."""
    muon = [p for p in network.blocks.parameters() if p.ndim == 2] if isinstance(network, TransformerNetwork) else []
    taken = {id(parameter) for parameter in muon}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in taken]
    adamw = torch.optim.AdamW(rest, lr=options.lr, weight_decay=options.weight_decay, betas=(0.9, 0.98), fused=True)
    return ChainedOptimizer([adamw, *([BatchedMuon(muon, lr=options.lr)] if muon else [])])


class Trainer:
    """Weights, their average and the optimiser, on one device."""

    def __init__(self, options: Options, network: Network, device: torch.device) -> None:
        self.options, self.network = options, network.to(device).requires_grad_(True).train()
        self.average = MovingAverage(dict(network.named_parameters()), options.ema_decay)
        self.device = device
        self.autocast: AbstractContextManager[object] = (
            torch.autocast(device.type, torch.bfloat16) if device.type == "cuda" else nullcontext()
        )
        self.optimizer = optimizer_of(network, options)

    def step(self, images: Tensor, labels: Tensor, generator: torch.Generator, step: int, lr: float) -> Tensor:
        """One optimiser step on images (B, 3, S, S) in [0, 1]; `step` counts from this start. The loss, detached."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / self.options.warmup)
        images, technical = damaged_batch(images, self.options, generator)
        with self.autocast:
            _, logits = self.network((images * 2 - 1).contiguous(memory_format=torch.channels_last))
        loss = losses(
            {name: value.float() for name, value in logits.items()}, labels, technical, self.options.technical
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.average.update(step)
        return loss.detach()

    def averaged(self) -> Network:
        """A copy with the averaged weights, in eval mode."""
        network = network_of(self.network.config).to(self.device)
        network.load_state_dict(self.average.average)
        return network.eval().requires_grad_(False)

    def save(self, out: Path) -> None:
        """Averaged weights as a judge, and the raw weights to continue from."""
        save(self.averaged(), out, {})
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.network.state_dict().items()}
        write_bytes(out / TRAINING_FILE, safetensors_bytes(state))

    def restore(self, out: Path) -> None:
        """Continue from what `save` wrote; the optimiser's moments start anew."""
        self.network.load_state_dict(load_file(out / TRAINING_FILE))
        for name, tensor in load(out).state_dict().items():
            self.average.average[name].copy_(tensor)


def train(trainer: Trainer, pool: Pool, out: Path, stage: Stage) -> Network:
    """The averaged network after `minutes` or `steps`; the learning rate falls by a cosine to a hundredth."""
    options = trainer.options
    generator = torch.Generator(trainer.device).manual_seed(options.seed + 1 + stage.steps)
    began, before, step, done, saved = time.monotonic(), stage.wall_s, stage.steps, 0.0, time.monotonic()
    start = step
    with stage.log() as log, Progress(*_columns(), console=CONSOLE) as progress:
        task = progress.add_task("training the judge", total=1.0)
        while True:
            wall_s = before + time.monotonic() - began
            done = wall_s / (60 * options.minutes) if options.minutes else step / options.steps
            progress.update(task, completed=min(1.0, done))
            if done >= 1:
                break
            lr = options.lr * cosine(done, final=0.01)
            images, labels = pool.draw(options.batch_size, generator)
            loss = trainer.step(images, labels, generator, step - start, lr)
            step += 1
            if step % 50 == 0:
                log.add_scalar("loss", loss.item(), step)
                log.add_scalar("images_rendered", pool.written, step)
            if time.monotonic() - saved > options.save_every_s:
                CONSOLE.print(f"step {step}  loss {loss.item():.3f}  {wall_s:.0f} s  rendered {pool.written}")
                trainer.save(out)
                stage.write(step, wall_s, done=False)
                saved = time.monotonic()
    CONSOLE.print(f"{step} steps of {options.batch_size} in {wall_s:.0f} s, {pool.written} images rendered")
    stage.steps, stage.wall_s = step, wall_s
    return trainer.averaged()


def initial(options: Options) -> Network:
    """A judge for the world's vocabulary, with the weights of the judge in `options.init` whose shapes fit."""
    config = JudgeConfig(
        heads=judge_data.vocabulary(HEADS),
        multi_label=tuple(MULTI_LABEL),
        max_letters=MAX_CHARACTERS,
        resolution=options.resolution,
        rating_width=options.rating_width,
        architecture=options.architecture,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = network_of(config)
    if options.init:
        kept = fit(network, load(Path(options.init)))
        total = sum(tensor.numel() for tensor in network.state_dict().values())
        CONSOLE.print(f"{kept / total:.0%} of the weights come from {options.init}")
    return network


def run(out: Path, options: Options) -> dict[str, dict[str, float]]:
    """Render, train, check on held-out images and write the judge to `out`; the held-out figures."""
    stage = Stage(out, settings(options))
    if stage.done:
        return stage.report
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(options, initial(options), device)
    if stage.steps:
        trainer.restore(out)
    CONSOLE.print(f"judge of {sum(p.numel() for p in trainer.network.parameters()) / 1e6:.2f} M parameters on {device}")
    workers = options.workers or usable_cores()
    executor = spawned_pool(workers)
    try:
        held_out = [
            executor.submit(judge_data.render, "calibration", start, min(100, options.held_out), options.resolution, 0)
            for start in range(0, len(judge_data.KINDS) * options.held_out, min(100, options.held_out))
        ]
        pool = Pool(
            executor, workers, device, size=options.pool, first=options.first, resolution=options.resolution,
            seed=options.seed,
        )  # fmt: skip
        network = train(trainer, pool, out, stage)
        trainer.save(out)
        rendered = [job.result() for job in held_out]
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
    images = torch.from_numpy(np.concatenate([images for images, _ in rendered]))
    labels = torch.from_numpy(np.concatenate([labels for _, labels in rendered])).long()
    measured = check(network, images, labels, device)
    save(network, out, {"held_out": measured})
    stage.write(stage.steps, stage.wall_s, done=True, report=measured)
    CONSOLE.print(table(measured))
    return measured


def brief(measured: dict[str, dict[str, float]]) -> dict[str, float]:
    """The weakest of the held-out figures."""
    spearman = {f"spearman_{name}": value for name, value in measured["severity_spearman"].items()}
    return {"worst_accuracy": min(measured["accuracy"].values()), **spearman}


def settings(options: Options) -> dict[str, Any]:
    """What decides the result, apart from the machine."""
    machine = ("workers", "save_every_s")
    return {
        "world": world_fingerprint(),
        **{name: value for name, value in asdict(options).items() if name not in machine},
    }


def main(arguments: list[str]) -> None:
    """Command line: OUT name=value ..."""
    if not arguments or "=" in arguments[0]:
        raise SystemExit("usage: python -m studies.tiny_model.judge OUT [name=value ...]")
    run(Path(arguments[0]), read_options(Options, arguments[1:]))
    CONSOLE.print(f"written to {arguments[0]}")


if __name__ == "__main__":
    main(sys.argv[1:])
