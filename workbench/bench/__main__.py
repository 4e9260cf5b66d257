"""Command line of the benchmark: `python -m workbench.bench [key=value ...]`, keys as in `Options`."""

from __future__ import annotations

import json
import logging
import os
import platform
import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from workbench.backbones import roles
from workbench.backbones.precision import frozen_dtype
from workbench.backbones.qwen_image_21.transformer import QwenImage21
from workbench.batch import Task
from workbench.bench import data, measure
from workbench.bench.plain import PlainEngine
from workbench.common.errors import UserError
from workbench.modules.distiller import Distiller
from workbench.recipe.config import Dmd, Mixture, Model, Recipe, Teachers, Trainer

WARMUP_OF_GRAPHS = 24
"""Iterations after which hardly any of the student's steps has come less than twice: graphs are recorded then."""
MIXES: dict[str, tuple[Task, ...]] = {"t2i": ("t2i",), "edit": ("edit",), "5:5": ("t2i", "edit")}


@dataclass(frozen=True)
class Options:
    """What is measured.

    model: pipeline folder, or `random:blocks=8,width=256,heads=4,text=192,channels=64` (these are the defaults).
    batch_size: samples of each task. text_tokens: of the longest prompt. side: latent tokens of an image's edge.
    mix: t2i, edit, 5:5 or all three. repeats: measured iterations of each engine, `warmup` more before them (-1: as
    many as graphs need to be recorded).
    reuse: also measure the engine with this `dmd.fake_samples`, against the same reference, which draws fresh ones.
    engine: both, or the engine alone where the reference would not fit. phases: also clock each phase of the engine,
    run eagerly.
    compile: the engine's blocks through torch.compile.
    threads: of torch on the CPU, 0 leaves it. json: file to write the numbers to.
    """

    model: str = "random:"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "tf32", "bf16-mixed"] = "32-true"
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    roles: Literal["full", "lora"] = "full"
    lora_rank: int = 32
    gradient_checkpointing: bool = False
    batch_size: int = 16
    text_tokens: int = 24
    side: int = 8
    fake_updates: int = 5
    cfg_scale: float = 1.5
    mix: Literal["all", "t2i", "edit", "5:5"] = "all"
    repeats: int = 5
    warmup: int = -1
    reuse: Literal["none", "rollout", "student_rollout"] = "student_rollout"
    engine: Literal["both", "ours"] = "both"
    phases: bool = True
    compile: bool = False
    threads: int = 0
    json: str = ""

    def __post_init__(self) -> None:
        counts = {"batch_size": self.batch_size, "fake_updates": self.fake_updates, "repeats": self.repeats}
        for name, count in counts.items():
            if count < 1:
                raise UserError(f"{name} must be at least 1, got {count}")
        if self.side < 2 or self.warmup < -1:
            raise UserError(f"side must be at least 2 and warmup at least -1, got {self.side} and {self.warmup}")
        if self.side % 2:
            raise UserError(f"side must be even (a text slot stands for 2 x 2 latent tokens), got {self.side}")
        if self.text_tokens <= data.PREFIX_SLOT:
            raise UserError(f"text_tokens must be above {data.PREFIX_SLOT}, got {self.text_tokens}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table; 0 done, 2 something the user can mend."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            run(read_options(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def read_options(arguments: Sequence[str]) -> Options:
    """Options from `key=value` items.

    Raises:
        UserError: an unknown key or an impossible value.
    """
    for item in arguments:
        if "=" not in item:
            raise UserError(f"{item!r} is not of the form key=value")
    try:
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Options), _pairs(arguments)))
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    assert isinstance(options, Options)
    return options


def _pairs(arguments: Sequence[str]) -> dict[str, str]:
    """Only split at the first `=`: sizes of a random model hold more of them."""
    return {key: value for key, _, value in (item.partition("=") for item in arguments)}


def run(options: Options) -> dict[str, Any]:
    """Measure every mix and print it; returns what the JSON file holds."""
    console = Console()
    if options.threads:
        torch.set_num_threads(options.threads)
    device = _device(options)
    machine = _machine(device)
    console.print(f"{machine}; {options}")
    results = {}
    names = list(MIXES) if options.mix == "all" else [options.mix]
    if options.warmup < 0:
        graphs = device.type == "cuda" and options.cuda_graphs != "off"
        options = replace(options, warmup=WARMUP_OF_GRAPHS if graphs else 1)
    with Progress(*Progress.get_default_columns()[:2], TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        bar = progress.add_task("measuring", total=len(names) * (options.repeats + options.warmup) * _num_runs(options))
        for name in names:
            results[name] = _measure(options, MIXES[name], device, lambda: progress.advance(bar))
    _print(results, options, console)
    report = {"machine": machine, "torch": torch.__version__, "options": asdict(options), "results": results}
    if options.json:
        _write(Path(options.json), report)
    return report


def _measure(options: Options, tasks: tuple[Task, ...], device: torch.device, advance: Any) -> dict[str, Any]:
    recipe = _recipe(options, len(tasks), device)
    denoiser = _denoiser(options, recipe, device)
    config = denoiser.network(roles.TEACHER).transformer.config
    shapes = data.Shapes(
        options.batch_size, options.text_tokens, options.side, config.context_in_dim, config.in_channels
    )
    steps = [
        data.step_data(
            shapes, tasks, options.fake_updates, step=step, guided=options.cfg_scale != 1, device=torch.device("cpu")
        )
        for step in range(options.repeats + options.warmup)
    ]
    # Both train the same weights: twice the networks would not fit where it matters, and speed does not depend on them.
    plain = PlainEngine(denoiser, recipe, data.CATEGORIES) if options.engine == "both" else None
    samples = len(tasks) * options.batch_size * (1 + options.fake_updates)
    result: dict[str, Any] = {}
    theirs = None
    for name, of_engine in _engines(options, recipe):
        engine = Distiller(denoiser, of_engine, data.CATEGORIES)
        ours, found = measure.alternate(
            engine, plain if theirs is None else None, steps, warmup=options.warmup, on_iteration=advance
        )
        result[name] = _numbers(ours, samples)
        if plain is not None:
            theirs = theirs or found
            result["plain"] = _numbers(theirs, samples)
            pairs = zip(theirs.wall_s, ours.wall_s, strict=True)
            result[name]["speed_up"] = statistics.median(slow / fast for slow, fast in pairs)
    if options.phases:
        few = options.warmup + (options.repeats + 1) // 2
        result["phases_s"] = measure.phases(denoiser, recipe, steps[:few], warmup=options.warmup)
    return result


def _engines(options: Options, recipe: Recipe) -> list[tuple[str, Recipe]]:
    """What is measured beside the reference: the same algorithm, then one that reuses rollouts."""
    engines = [("ours", recipe)]
    if options.reuse != "none":
        engines.append((options.reuse, replace(recipe, dmd=replace(recipe.dmd, fake_samples=options.reuse))))
    return engines


def _num_runs(options: Options) -> int:
    return 1 + (options.reuse != "none")


def _numbers(timings: measure.Timings, samples: int) -> dict[str, Any]:
    return {
        "median_s": timings.median_s,
        "spread_s": timings.spread_s,
        "samples_per_s": samples / timings.median_s,
        "peak_bytes": timings.peak_bytes,
        "wall_s": timings.wall_s,
    }


def _recipe(options: Options, num_tasks: int, device: torch.device) -> Recipe:
    return Recipe(
        model=Model(
            folder=options.model,
            roles=options.roles,
            lora_rank=options.lora_rank,
            gradient_checkpointing=options.gradient_checkpointing,
        ),
        teachers=Teachers(cfg_scale=options.cfg_scale),
        mixture=Mixture(batch_size=num_tasks * options.batch_size),
        dmd=Dmd(fake_updates=options.fake_updates),
        trainer=Trainer(
            updates=options.repeats + options.warmup,
            accelerator="gpu" if device.type == "cuda" else "cpu",
            precision=options.precision,
            cuda_graphs=options.cuda_graphs,
        ),
    )


def _denoiser(options: Options, recipe: Recipe, device: torch.device) -> QwenImage21:
    kind, _, sizes = options.model.partition(":")
    random = kind == "random"
    base = data.random_transformer(sizes, device) if random else data.folder_transformer(options.model)
    denoiser = roles.build(base, recipe.model, frozen_dtype=frozen_dtype(recipe)).to(device)
    if options.compile:
        # The reference runs diffusers' own blocks, which this leaves as they are.
        denoiser.compile_blocks()
    return denoiser


def _device(options: Options) -> torch.device:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch sees no GPU here: use cpu or auto")
    return torch.device("cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu")


def _machine(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads, load {load:.1f} at the start"


def _print(results: dict[str, Any], options: Options, console: Console) -> None:
    table = Table(
        title=f"one iteration: {options.fake_updates} fake-score updates and 1 student update, "
        f"{options.batch_size} samples a task",
        title_justify="left",
    )
    for column in ("mix", "engine", "s / iteration", "+-", "samples / s", "peak GiB", "speed-up"):
        table.add_column(column, justify="left" if column in ("mix", "engine") else "right")
    for mix, result in results.items():
        for engine in ("plain", "ours", options.reuse):
            if engine not in result:
                continue
            row = result[engine]
            table.add_row(
                mix,
                engine,
                f"{row['median_s']:.3f}",
                f"{row['spread_s']:.3f}",
                f"{row['samples_per_s']:.1f}",
                f"{row['peak_bytes'] / 2**30:.1f}" if row["peak_bytes"] else "-",
                f"{row['speed_up']:.2f} x" if "speed_up" in row else "",
            )
    console.print(table)
    if options.phases:
        console.print(_phase_table(results))


def _phase_table(results: dict[str, Any]) -> Table:
    table = Table("phase of ours, clocked apart", title="share of each phase", title_justify="left")
    for mix in results:
        table.add_column(mix, justify="right")
    for phase in sorted({phase for result in results.values() for phase in result["phases_s"]}):
        cells = []
        for result in results.values():
            total = sum(result["phases_s"].values())
            cells.append(f"{100 * result['phases_s'].get(phase, 0.0) / total:.0f} %")
        table.add_row(phase, *cells)
    return table


def _write(path: Path, report: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(report, indent=1))
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
