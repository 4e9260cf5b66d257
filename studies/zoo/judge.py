"""Trains the local judge on the OpenMoji world: `python -m studies.zoo.judge OUT [minutes=10] [key=value ...]`.

Worker processes render images without end into a pool of uint8 images on the device; the device draws batches from the
pool, moves and tints them slightly, damages half of them, and trains all heads together. The judge written to OUT
(`config.json`, `model.safetensors`) is the exponential average of the weights, with its held-out accuracies beside it.
Labels that a style makes unreadable (colours in grey) are absent from the world's scenes, so no head is asked for them.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datamodules.openmoji import HEADS, MAX_LETTERS, MULTI_LABEL
from studies.zoo import judge_data
from studies.zoo.corruptions import CORRUPTIONS, augment, corrupt
from studies.zoo.judge_check import check, table
from workbench.errors import UserError
from workbench.evaluation.judge_network import JudgeConfig, JudgeNetwork, load, save

CONSOLE = Console()


@dataclass(frozen=True)
class Options:
    """minutes: train for that long, rendering of the pool aside; 0: for `steps`. resume: a judge to start from."""

    out: str
    steps: int = 20000
    minutes: float = 0.0
    pool: int = 100_000
    batch_size: int = 512
    lr: float = 2e-3
    weight_decay: float = 0.05
    ema_decay: float = 0.999
    damaged: float = 0.5
    held_out: int = 200
    workers: int = 0
    resolution: int = 128
    seed: int = 0
    resume: str = ""


class Pool:
    """Rendered images on the device, replaced chunk by chunk while training goes on, so that few are seen often."""

    def __init__(self, options: Options, device: torch.device, executor: ProcessPoolExecutor, workers: int) -> None:
        self.chunk = min(256, options.pool)
        size = options.pool - options.pool % self.chunk
        self.images = torch.empty((size, options.resolution, options.resolution, 3), dtype=torch.uint8, device=device)
        self.labels = torch.empty((size, judge_data.NUM_COLUMNS), dtype=torch.int16, device=device)
        self.jobs: Iterator[Future[tuple[np.ndarray, np.ndarray]]] = (
            executor.submit(judge_data.render, "train", start, self.chunk, options.resolution, options.seed)
            for start in itertools.count(0, self.chunk)
        )
        self.pending = [next(self.jobs) for _ in range(2 * workers)]
        self.written = 0
        with Progress(*_columns(), console=CONSOLE) as progress:
            task = progress.add_task("rendering the pool", total=size)
            while self.written < size:
                self._take(block=True)
                progress.update(task, completed=self.written)

    def _take(self, block: bool) -> None:
        if not (block or self.pending[0].done()):
            return
        images, labels = self.pending.pop(0).result()
        self.pending.append(next(self.jobs))
        start = self.written % len(self.images)
        self.images[start : start + self.chunk] = torch.from_numpy(images).to(self.images.device)
        self.labels[start : start + self.chunk] = torch.from_numpy(labels).to(self.labels.device)
        self.written += self.chunk

    def draw(self, batch_size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) in [0, 1] and their label columns (B, columns)."""
        self._take(block=False)
        rows = torch.randint(len(self.images), (batch_size,), generator=generator, device=self.images.device)
        return self.images[rows].permute(0, 3, 1, 2).float() / 255, self.labels[rows].long()


def losses(logits: dict[str, Tensor], labels: Tensor, technical: Tensor) -> Tensor:
    """Sum over heads of the mean loss over the rows the head applies to.

    technical: (B,) quality 1 - s. Badly damaged rows count less, since nobody can read them: weight min(1, 2 quality).
    The `quality` head counts undamaged rows alone, technical quality (squared error, times 10) those drawn clean.
    """
    weight = (2 * technical).clamp(max=1)
    clean = judge_data.is_clean(labels).float()
    error = (logits["technical"].sigmoid() - technical) ** 2
    total = 10 * (error * clean).sum() / clean.sum().clamp(min=1)
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


def damaged_batch(images: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Augmented images of which `share` are damaged by one corruption of uniform severity, and their quality 1 - s."""
    count, device = len(images), images.device
    images = augment(images, generator)
    kinds = torch.randint(len(CORRUPTIONS), (count,), generator=generator, device=device)
    severity = torch.rand(count, generator=generator, device=device)
    clean = torch.rand(count, generator=generator, device=device) >= share
    kinds, severity = kinds.masked_fill(clean, -1), severity.masked_fill(clean, 0.0)
    return corrupt(images, kinds, severity, generator), 1 - severity


def _columns() -> tuple[TextColumn | BarColumn | TimeRemainingColumn, ...]:
    return TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"), TimeRemainingColumn()


def _autocast(device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if device.type == "cuda" else nullcontext()


def train(options: Options, network: JudgeNetwork, pool: Pool, device: torch.device) -> JudgeNetwork:
    """The averaged network after `minutes` or `steps`; cosine decay over either, linear warm-up over 200 steps."""
    generator = torch.Generator(device).manual_seed(options.seed + 1)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=options.lr, weight_decay=options.weight_decay, betas=(0.9, 0.98), fused=True
    )
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(options.ema_decay))
    started, step, done, last_print = time.monotonic(), 0, 0.0, 0.0
    with Progress(*_columns(), console=CONSOLE) as progress:
        task = progress.add_task("training the judge", total=1.0)
        while done < 1:
            for group in optimizer.param_groups:
                group["lr"] = options.lr * min(1.0, (step + 1) / 200) * (0.505 + 0.495 * math.cos(math.pi * done))
            images, labels = pool.draw(options.batch_size, generator)
            images, technical = damaged_batch(images, options.damaged, generator)
            with _autocast(device):
                _, logits = network((images * 2 - 1).contiguous(memory_format=torch.channels_last))
            loss = losses({name: value.float() for name, value in logits.items()}, labels, technical)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(network)
            step += 1
            elapsed_s = time.monotonic() - started
            done = elapsed_s / (60 * options.minutes) if options.minutes else step / options.steps
            progress.update(task, completed=min(1.0, done))
            if step == 1 or elapsed_s - last_print > 20:
                last_print = elapsed_s
                rate = step / elapsed_s
                CONSOLE.print(f"step {step}  loss {loss.item():.3f}  {rate:.1f} steps/s  rendered {pool.written}")
    elapsed_s = time.monotonic() - started
    CONSOLE.print(f"{step} steps of {options.batch_size} in {elapsed_s:.0f} s, {pool.written} images rendered")
    trained = average.module
    assert isinstance(trained, JudgeNetwork)
    return trained.eval()


def initial(options: Options) -> JudgeNetwork:
    """A new judge for the world's vocabulary, or the one to go on from; UserError if that one knows other names."""
    config = JudgeConfig(
        heads=judge_data.vocabulary(HEADS),
        multi_label=tuple(MULTI_LABEL),
        max_letters=MAX_LETTERS,
        resolution=options.resolution,
    )
    network = load(Path(options.resume)) if options.resume else JudgeNetwork(config)
    if network.config != config:
        raise UserError(f"the judge in {options.resume} knows another vocabulary than the world: train it anew")
    return network.requires_grad_(True).train()


def main(arguments: list[str]) -> None:
    """Renders, trains, checks on held-out images, writes OUT."""
    if not arguments or "=" in arguments[0]:
        raise SystemExit(
            "usage: python -m studies.zoo.judge OUT [minutes=..] [steps=..] [pool=..] [batch_size=..] [resume=..]"
        )
    merged = OmegaConf.merge(OmegaConf.structured(Options(out=arguments[0])), OmegaConf.from_dotlist(arguments[1:]))
    options = OmegaConf.to_object(merged)
    assert isinstance(options, Options)
    torch.manual_seed(options.seed)  # weight initialisation alone
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = initial(options).to(device)
    CONSOLE.print(f"judge of {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters on {device}")
    workers = options.workers or os.cpu_count() or 1
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        held_out = [
            executor.submit(judge_data.render, "calibration", start, min(100, options.held_out), options.resolution, 0)
            for start in range(0, len(judge_data.KINDS) * options.held_out, min(100, options.held_out))
        ]
        network = train(options, network, Pool(options, device, executor, workers), device)
        rendered = [job.result() for job in held_out]
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
    images = torch.from_numpy(np.concatenate([images for images, _ in rendered]))
    labels = torch.from_numpy(np.concatenate([labels for _, labels in rendered])).long()
    measured = check(network, images, labels, device)
    save(network, Path(options.out), {"held_out": measured})
    CONSOLE.print(table(measured))
    CONSOLE.print(f"written to {options.out}")


if __name__ == "__main__":
    main(sys.argv[1:])
