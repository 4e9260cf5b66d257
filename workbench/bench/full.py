"""`python -m workbench.bench.full [key=value ...]`: LoRA roles over one full-size base, this engine against the plain
arrangement, on one GPU. Random weights: speed and memory do not depend on them."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Table

from workbench.backbones import roles
from workbench.backbones.lora import role_linears
from workbench.backbones.lora_files import Adapter, AdapterLayer
from workbench.backbones.qwen_image_21.transformer import QwenImage21, RoleDenoiser
from workbench.backbones.roles import FAKE_SCORE, STUDENT
from workbench.batch import Batch, StepData, Task
from workbench.bench import data, measure
from workbench.bench.plain import PlainEngine
from workbench.common.errors import UserError
from workbench.method import rng
from workbench.modules.distiller import Distiller
from workbench.recipe.config import Dmd, Guidance, Mixture, Model, Recipe, Teachers, Trainer

SPECIALISTS = ("a", "b")
LAMBDAS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
"""One teacher a step, so that the specialists cost memory and no time that the base teacher alone would not."""
SEEDS_TRIED = 2000


@dataclass(frozen=True)
class Options:
    """What is measured.

    model: sizes of the network, as `data.random_transformer` reads them; the defaults are Qwen-Image-2.1's 7.1 B.
    side: latent tokens of an image's edge, 64 are 1024 pixels. text_tokens: of the prompt, which is not padded.
    stored_blocks: blocks of ours whose activations are kept; -1 for as many as leave the peak at memory_gib. The plain
    arrangement recomputes all, as the trainers that it stands for do.
    compile: compile the blocks of ours. repeats: measured iterations of each engine.
    phases: clock the phases of ours as well. seconds: start no further measurement after so many; 0 for no end.
    json: file that every finished measurement is written to.
    """

    model: str = "blocks=32,width=4096,heads=32,text=4096,channels=64"
    device: Literal["cpu", "cuda"] = "cuda"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    mix: Literal["all", "t2i", "edit"] = "all"
    side: int = 64
    text_tokens: int = 128
    batch_size: int = 1
    lora_rank: int = 32
    fake_updates: int = 5
    cfg_scale: float = 4.0
    stored_blocks: int = -1
    memory_gib: float = 44.0
    compile: bool = True
    backend: str = "inductor"
    repeats: int = 2
    phases: bool = False
    seconds: float = 0.0
    json: str = ""

    def __post_init__(self) -> None:
        if self.repeats < 1 or self.fake_updates < 1 or self.batch_size < 1:
            raise UserError("repeats, fake_updates and batch_size must be at least 1")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda, but torch sees no GPU here")
        if self.text_tokens <= data.PREFIX_SLOT or self.side < 2 or self.side % 2:
            raise UserError(f"text_tokens must be above {data.PREFIX_SLOT} and side even, from 2 on")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table; 0 done, 2 something the user can mend."""
    items = sys.argv[1:] if arguments is None else arguments
    try:
        if wrong := [item for item in items if "=" not in item]:
            raise UserError(f"{wrong[0]!r} is not of the form key=value")
        pairs = {key: value for key, _, value in (item.partition("=") for item in items)}
        options = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Options), pairs))
        assert isinstance(options, Options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logging.disable(logging.WARNING)
            Bench(options).run()
    except (UserError, OmegaConfBaseException) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    return 0


class Bench:
    """One set of weights, and the engines that take turns on it."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.console = Console(width=150)
        self.started = time.perf_counter()
        self.device = torch.device(options.device)
        self.results: dict[str, dict[str, Any]] = {}
        dtype = torch.bfloat16 if options.dtype == "bfloat16" else torch.float32
        base = data.random_transformer(options.model, self.device, dtype)
        self.num_blocks, self.config = len(base.transformer_blocks), base.config
        recipe = self._recipe("fresh")
        specialists = {name: self._adapter(base, seed) for seed, name in enumerate(SPECIALISTS)}
        self.denoiser = roles.build(base, recipe.model, specialists=specialists, frozen_dtype=dtype)
        if options.compile:
            self.denoiser.compile_blocks(options.backend)
        held = sum(parameter.numel() * parameter.element_size() for parameter in self.denoiser.parameters())
        self.note("weights", held_bytes=held, parameters=sum(p.numel() for p in self.denoiser.parameters()))

    @cached_property
    def plain(self) -> PlainEngine:
        """One for all tasks: it leaves hooks on the layers. It recomputes every block."""
        return PlainEngine(self.denoiser, self._recipe("fresh"), data.CATEGORIES)

    def run(self) -> dict[str, dict[str, Any]]:
        """Every mix: ours, the plain arrangement, ours with rollout reuse; then phases where asked for."""
        tasks: tuple[Task, ...] = ("t2i", "edit") if self.options.mix == "all" else (self.options.mix,)
        for task in tasks:
            self._attempt(f"{task} ours", partial(self._ours, task, "fresh"))
            self._attempt(f"{task} plain", partial(self._plain, task))
            self._attempt(f"{task} ours, student_rollout", partial(self._ours, task, "student_rollout"))
        if self.options.phases:
            for task in tasks:
                self._attempt(f"{task} phases", partial(self._phases, task))
        self.console.print(self.table(tasks))
        return self.results

    def table(self, tasks: Sequence[Task]) -> Table:
        """Seconds, speed-up over the plain arrangement of the fresh algorithm, and peak memory."""
        options = self.options
        title = f"{options.fake_updates} fake-score updates and 1 student update, {options.model}, side {options.side}"
        table = Table("task", "engine", "s / iteration", "speed-up", "peak GiB", title=title, title_justify="left")
        for task in tasks:
            plain = self.results.get(f"{task} plain", {}).get("wall_s")
            for engine in ("plain", "ours", "ours, student_rollout"):
                row = self.results.get(f"{task} {engine}", {})
                if "wall_s" not in row:
                    table.add_row(task, engine, row.get("error", "not run")[:60], "", "")
                    continue
                mean = sum(row["wall_s"]) / len(row["wall_s"])
                gain = f"{sum(plain) / len(plain) / mean:.2f} x" if plain else "-"
                peak = f"{row['peak_bytes'] / 2**30:.1f}"
                table.add_row(task, engine, " ".join(f"{wall:.3f}" for wall in row["wall_s"]), gain, peak)
        return table

    def note(self, name: str, **values: Any) -> None:
        """Keep and print one measurement, and write all so far."""
        self.results[name] = values
        elapsed = time.perf_counter() - self.started
        self.console.print(f"[{elapsed:6.1f} s] {name}: {values}", highlight=False)
        if self.options.json:
            machine = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
            report = {"machine": machine, "torch": torch.__version__, "options": asdict(self.options)}
            part = Path(f"{self.options.json}.part")
            part.write_text(json.dumps(report | {"results": self.results}, indent=1))
            os.replace(part, self.options.json)

    def _attempt(self, name: str, measurement: Callable[[], dict[str, Any]]) -> None:
        """One measurement; its failure (memory, a compiler) does not take the others along."""
        if self.options.seconds and time.perf_counter() - self.started > self.options.seconds:
            self.note(name, error="no time left")
            return
        try:
            self.note(name, **measurement())
        # Whatever it is: the line says what happened.
        except Exception as error:
            self.note(name, error=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        for parameter in self.denoiser.parameters():
            parameter.grad = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _ours(self, task: Task, fake_samples: Literal["fresh", "student_rollout"]) -> dict[str, Any]:
        recipe, steps = self._recipe(fake_samples), self._steps(task)
        self._store(0)
        every_role = partial(evaluate_every_role, self.denoiser, recipe, steps[0])
        warm_up_s = self._warm_up(every_role)
        stored = self._store(
            self._most_stored(steps[0]) if self.options.stored_blocks < 0 else self.options.stored_blocks
        )
        # A block that keeps its activations is compiled otherwise than one that is recomputed.
        warm_up_s += self._warm_up(every_role)
        ours, _ = measure.alternate(Distiller(self.denoiser, recipe, data.CATEGORIES), None, steps, warmup=0)
        return {"wall_s": ours.wall_s, "peak_bytes": ours.peak_bytes, "warm_up_s": warm_up_s, "stored": stored}

    def _plain(self, task: Task) -> dict[str, Any]:
        plain, steps = self.plain, self._steps(task)
        batch = steps[0].student[0].to(self.device)
        noise = torch.randn(len(batch.rows), self.options.side**2, self.config.in_channels, device=self.device)

        def once() -> None:
            v = plain.networks.velocity(batch.condition, noise, torch.ones_like(noise[:, 0, 0]), FAKE_SCORE)
            v.square().mean().backward()
            self.denoiser.zero_grad(set_to_none=True)

        warm_up_s, timings = self._warm_up(once), measure.Timings()
        for update, step in enumerate(steps):
            with measure.clocked(timings, self.device, True):
                plain.step(step.to(self.device), update)
        for optimizer in plain.optimizers.values():
            # Ours would be charged for them.
            optimizer.state.clear()
        return {"wall_s": timings.wall_s, "peak_bytes": timings.peak_bytes, "warm_up_s": warm_up_s}

    def _store(self, count: int) -> int:
        """Keep the activations of `count` blocks from now on; returns how many there are of those."""
        self.denoiser.network(STUDENT).num_recomputed = max(0, self.num_blocks - count)
        return min(count, self.num_blocks)

    def _most_stored(self, step: StepData) -> int:
        """Blocks that fit, from the peaks of one graded evaluation with few of them and with some more.

        Beside it stands what a student's update holds: prefixes of the teacher, prompt and none, and of the fake score.
        """
        if self.device.type != "cuda":
            return self.num_blocks
        few, more = (max(1, self.num_blocks * eighths // 8) for eighths in (1, 2))
        batch = step.to(self.device).student[0]
        with torch.no_grad():
            held = [
                RoleDenoiser(self.denoiser, role).prefix(batch.condition)
                for role in (roles.TEACHER, roles.TEACHER, FAKE_SCORE)
            ]
        peaks = []
        for count in (few, more):
            self._store(count)
            torch.cuda.reset_peak_memory_stats(self.device)
            evaluate_graded(RoleDenoiser(self.denoiser, FAKE_SCORE), batch)
            peaks.append(torch.cuda.max_memory_allocated(self.device))
            self.denoiser.zero_grad(set_to_none=True)
        del held
        each = max(1.0, (peaks[1] - peaks[0]) / max(1, more - few))
        moments = 8 * sum(parameter.numel() for parameter in self.denoiser.parameters() if parameter.requires_grad)
        spare = self.options.memory_gib * 2**30 - moments - peaks[1]
        return max(0, min(self.num_blocks, more + int(spare / each)))

    def _phases(self, task: Task) -> dict[str, Any]:
        recipe = self._recipe("fresh")
        self._store(self.results[f"{task} ours"]["stored"])
        found = measure.phases(self.denoiser, recipe, self._steps(task)[:1], warmup=0)
        return {name: round(seconds, 4) for name, seconds in found.items()}

    def _warm_up(self, run: Callable[[], None]) -> float:
        """Seconds until every kind of evaluation has run once: compiling, and libraries choosing their kernels."""
        started = time.perf_counter()
        run()
        measure.synchronise(self.device)
        return round(time.perf_counter() - started, 2)

    def _recipe(self, fake_samples: Literal["fresh", "student_rollout"]) -> Recipe:
        options = self.options
        recipe = Recipe(
            model=Model(roles="lora", lora_rank=options.lora_rank, gradient_checkpointing=True),
            teachers=Teachers(specialists=dict.fromkeys(SPECIALISTS, "random"), cfg_scale=options.cfg_scale),
            guidance=Guidance(tables={"default": LAMBDAS}),
            mixture=Mixture(batch_size=options.batch_size),
            dmd=Dmd(fake_updates=options.fake_updates, fake_samples=fake_samples),
            trainer=Trainer(
                updates=options.repeats,
                accelerator="gpu" if options.device == "cuda" else "cpu",
                precision="bf16-mixed" if options.dtype == "bfloat16" else "32-true",
                # Networks of this size are not bound by launches, and few iterations are measured.
                cuda_graphs="off",
            ),
        )
        return replace(recipe, seed=typical_seed(len(LAMBDAS), options.fake_updates, options.repeats))

    def _steps(self, task: Task) -> list[StepData]:
        options = self.options
        shapes = data.Shapes(
            options.batch_size,
            options.text_tokens,
            options.side,
            self.config.context_in_dim,
            self.config.in_channels,
            shortest=1.0,
        )
        return [
            data.step_data(
                shapes,
                (task,),
                options.fake_updates,
                step=step,
                guided=options.cfg_scale != 1,
                device=torch.device("cpu"),
            )
            for step in range(options.repeats)
        ]

    def _adapter(self, base: torch.nn.Module, seed: int) -> Adapter:
        """A random adapter over every linear layer of the blocks, as wide as the trained ones."""
        generator = torch.Generator(self.device).manual_seed(seed)

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, device=self.device, generator=generator).div_(100)

        rank = self.options.lora_rank
        blocks = base.get_submodule("transformer_blocks")
        linears = [(n, m) for n, m in blocks.named_modules() if isinstance(m, torch.nn.Linear)]
        return {
            f"transformer_blocks.{name}": AdapterLayer(drawn(rank, m.in_features), drawn(m.out_features, rank), 1.0)
            for name, m in linears
        }


def evaluate_every_role(denoiser: QwenImage21, recipe: Recipe, step: StepData) -> None:
    """Each kind of evaluation of a training step once: without gradient in every role, with it in the trained ones."""
    linears = [layer for _, layer in role_linears(denoiser)]
    device = linears[0].base_layer.weight.device
    for batch in step.to(device).student:
        layout = batch.condition.layout
        x_t = torch.randn(len(batch.rows), layout.num_target_tokens, denoiser.num_channels, device=device)
        t = torch.full((len(x_t),), 0.5, device=device)
        for role in (STUDENT, FAKE_SCORE, *roles.teacher_roles(recipe.teachers)):
            network = RoleDenoiser(denoiser, role)
            with torch.no_grad():
                prefix = network.prefix(batch.condition)
                network.velocity(prefix, x_t, t)
                if batch.uncond is not None and role not in (STUDENT, FAKE_SCORE):
                    uncond = network.prefix(batch.uncond, prefix if batch.shares_references else None)
                    network.velocity(uncond, x_t, t)
            if role in (STUDENT, FAKE_SCORE):
                evaluate_graded(network, batch)
    denoiser.zero_grad(set_to_none=True)


def evaluate_graded(network: RoleDenoiser, batch: Batch) -> None:
    """One evaluation with gradient, and its backward."""
    condition = batch.condition
    x_t = torch.randn(
        len(batch.rows), condition.layout.num_target_tokens, network.num_channels, device=condition.prompt.device
    )
    t = torch.full((len(x_t),), 0.5, device=x_t.device)
    network.velocity(network.prefix(condition), x_t, t).square().mean().backward()


def typical_seed(num_steps: int, fake_updates: int, repeats: int) -> int:
    """The first seed whose drawn student steps are, over the measured updates, as late on average as the law of the
    draw says: few iterations are measured, and what they cost depends on the draw."""
    streams = ["graded_step"] + [f"fake{r}/step" for r in range(fake_updates)]
    expected = repeats * (num_steps - 1) / 2

    def distance(seed: int) -> float:
        drawn = {
            stream: sum(rng.integer(num_steps, seed=seed, stream=stream, step=update) for update in range(repeats))
            for stream in streams
        }
        graded = drawn.pop("graded_step")
        return abs(graded - expected) + abs(sum(drawn.values()) - fake_updates * expected)

    best, nearest = float("inf"), 0
    for seed in itertools.count():
        found = distance(seed)
        if found < best:
            best, nearest = found, seed
        if best == 0 or seed == SEEDS_TRIED:
            return nearest
    raise AssertionError("unreachable")


if __name__ == "__main__":
    sys.exit(main())
