"""One mix of tasks measured: the plain arrangement and this engine, on the same weights and data."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from workbench.backbones import families, roles
from workbench.backbones.base import RoleNetworks
from workbench.backbones.lora_files import Adapter, AdapterLayer
from workbench.backbones.placement import frozen_dtype
from workbench.backbones.roles import FAKE_SCORE, STUDENT
from workbench.batch import StepData, Task
from workbench.bench import data, measure, warm_up
from workbench.bench.options import Options, quantised
from workbench.bench.plain import PlainEngine
from workbench.common.errors import UserError
from workbench.modules import rehearsal
from workbench.modules.distiller import Distiller
from workbench.recipe.config import Dmd, Guidance, Mixture, Model, Recipe, Teachers, Trainer
from workbench.runs.machine import release_memory

Note = Callable[[str, dict[str, Any]], None]


class MixBenchmark:
    """The engines that take turns on one set of weights. note: called with the name and numbers of each measurement.

    deadline_s: on the clock of `time.perf_counter`; no measurement starts after it.
    """

    def __init__(self, options: Options, tasks: tuple[Task, ...], note: Note, deadline_s: float) -> None:
        release_memory()  # of the mix before
        self.options, self.tasks, self.note, self.deadline_s = options, tasks, note, deadline_s
        self.device = options.torch_device
        self.recipe = bench_recipe(options, len(tasks))
        self.results: dict[str, dict[str, Any]] = {}
        self.measured = families.measured(options.class_name)
        self.denoiser = _denoiser(options, self.recipe)
        if options.compile:
            # The plain arrangement runs diffusers' own blocks, which this leaves as they are.
            self.denoiser.compile_blocks(options.backend)
        self.num_blocks = len(self.denoiser.network(STUDENT).blocks)
        self.steps = self._steps()

    @cached_property
    def plain(self) -> PlainEngine:
        """Made when it is first run: it leaves hooks on the layers."""
        return PlainEngine(self.denoiser, self.measured.stock_velocity, self.recipe, data.CATEGORIES)

    def run(self) -> dict[str, dict[str, Any]]:
        """Measurements by name: engines, and seconds by phase under `phases_s`. One that failed holds its `error`."""
        options = self.options
        self._attempt("ours", partial(self._ours, "ours", self.recipe))
        if options.engine == "both" and "wall_s" not in self.results.get("plain", {}):
            self._attempt("plain", self._plain_alone)
        rows = {"ours": self.recipe}
        if options.reuse != "none":
            rows[options.reuse] = replace(self.recipe, dmd=replace(self.recipe.dmd, fake_samples=options.reuse))
            self._attempt(options.reuse, partial(self._ours, options.reuse, rows[options.reuse]))
        if options.phases:
            self._attempt("phases_s", self._phases)
        if options.frozen == "fp8":
            # In place, so last: the plain arrangement and the engine above share these weights.
            roles.quantise(self.denoiser)
            for name, recipe in rows.items():
                self._attempt(quantised(name), partial(self._ours, quantised(name), recipe))
        return self.results

    def _attempt(self, name: str, measurement: Callable[[], None]) -> None:
        """One measurement, whose failure (memory, a compiler) leaves the others to be taken."""
        if time.perf_counter() > self.deadline_s:
            self._keep(name, {"error": "no time left"})
            return
        try:
            measurement()
        except UserError:
            raise
        except Exception as error:  # any failure: its line is the result
            self._keep(name, {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"})
        self.denoiser.zero_grad(set_to_none=True)
        release_memory()

    def _keep(self, name: str, numbers: dict[str, Any]) -> None:
        self.results[name] = numbers
        self.note(name, numbers)

    def _ours(self, name: str, recipe: Recipe) -> None:
        options = self.options
        with_plain = options.in_turns and options.engine == "both" and "plain" not in self.results
        engine = Distiller(self.denoiser, recipe, data.CATEGORIES)
        prepared = {} if options.in_turns else self._prepare(engine)
        ours, plain = measure.alternate(
            engine, self.plain if with_plain else None, self.steps, warmup=options.num_warmup
        )
        if with_plain:
            self._keep("plain", self._numbers(plain))
        self._keep(name, self._numbers(ours) | self._speed_up(ours) | prepared)

    def _plain_alone(self) -> None:
        """The plain arrangement alone: this engine's optimiser states are freed before, the plain ones afterwards."""
        once = partial(warm_up.evaluate_plain, self.plain, self.steps[0])
        prepared = {"warm_up_s": self._seconds(once)}
        timings = measure.Timings()
        for update, step in enumerate(self.steps):
            with measure.clocked(timings, self.device, update >= self.options.num_warmup):
                self.plain.step(step.to(self.device), update)
        for optimizer in self.plain.optimizers.values():
            optimizer.state.clear()
        self._keep("plain", self._numbers(timings) | prepared)
        ours = self.results.get("ours", {})
        if "wall_s" in ours:
            self._keep("ours", ours | self._speed_up(measure.Timings(ours["wall_s"])))

    def _phases(self) -> None:
        few = self.options.num_warmup + (self.options.repeats + 1) // 2
        found = measure.phases(self.denoiser, self.recipe, self.steps[:few], warmup=self.options.num_warmup)
        self._keep("phases_s", dict(found))

    def _prepare(self, engine: Distiller) -> dict[str, float]:
        """Rehearse as a run does before its first update, with as many blocks stored as asked for."""
        step, options = self.steps[0], self.options
        pairs = [rehearsal.Pair(*batches) for batches in zip(step.student, step.fake[0], strict=True)]
        limit = None
        if options.gradient_checkpointing and options.stored_blocks < 0 and self.device.type == "cuda":
            limit = int(options.memory_gib * 2**30) or rehearsal.available_bytes(self.device)
            # A run's optimisers have their moments by then.
            limit -= 8 * sum(parameter.numel() for parameter in engine.parameters() if parameter.requires_grad)
        elif options.gradient_checkpointing:
            networks = [self.denoiser.network(role) for role in (STUDENT, FAKE_SCORE)]
            rehearsal.store(networks, self.num_blocks if options.stored_blocks < 0 else options.stored_blocks)
        started = time.perf_counter()
        stored = rehearsal.prepare(engine.to(self.device), pairs, limit, lambda: None)
        measure.synchronise(self.device)
        return {"warm_up_s": round(time.perf_counter() - started, 2), "stored": stored}

    def _seconds(self, run: Callable[[], None]) -> float:
        started = time.perf_counter()
        run()
        measure.synchronise(self.device)
        return round(time.perf_counter() - started, 2)

    def _numbers(self, timings: measure.Timings) -> dict[str, Any]:
        samples = len(self.tasks) * self.options.batch_size * (1 + self.options.fake_updates)
        return {
            "median_s": timings.median_s,
            "spread_s": timings.spread_s,
            "samples_per_s": samples / timings.median_s,
            "peak_bytes": timings.peak_bytes,
            "wall_s": timings.wall_s,
        }

    def _speed_up(self, ours: measure.Timings) -> dict[str, float]:
        """Median over iterations of the plain arrangement's time divided by this engine's."""
        plain = self.results.get("plain", {}).get("wall_s")
        if plain is None:
            return {}
        return {"speed_up": statistics.median(slow / fast for slow, fast in zip(plain, ours.wall_s, strict=True))}

    def _steps(self) -> list[StepData]:
        options = self.options
        network = self.denoiser.network(roles.TEACHER)
        shapes = data.Shapes(
            options.batch_size,
            options.text_tokens,
            options.side,
            network.prompt_width,
            network.num_channels,
            self.measured.text_slots(options.side, options.side),
            **({} if options.padded else {"shortest": 1.0}),
        )
        make = partial(data.step_data, shapes, self.tasks, options.fake_updates, guided=options.cfg_scale != 1)
        return [make(step=step, device=torch.device("cpu")) for step in range(options.repeats + options.num_warmup)]


def bench_recipe(options: Options, num_tasks: int) -> Recipe:
    """What both engines run, samples drawn anew for every update of the fake score."""
    names, dmd = [f"random{i}" for i in range(options.specialists)], Dmd(fake_updates=options.fake_updates)
    one_a_step = [
        [float(teacher == step % (len(names) + 1)) for teacher in range(len(names) + 1)]
        for step in range(dmd.student_steps)
    ]
    updates = options.repeats + options.num_warmup
    recipe = Recipe(
        model=Model(
            folder=options.model,
            roles=options.roles,
            lora_rank=options.lora_rank,
            gradient_checkpointing=options.gradient_checkpointing,
        ),
        teachers=Teachers(specialists=dict.fromkeys(names, "random"), cfg_scale=options.cfg_scale),
        guidance=Guidance(tables={"default": one_a_step}) if names else Guidance(),
        mixture=Mixture(batch_size=num_tasks * options.batch_size),
        dmd=dmd,
        trainer=Trainer(
            updates=updates,
            accelerator="gpu" if options.torch_device.type == "cuda" else "cpu",
            precision=options.precision,
            cuda_graphs=options.cuda_graphs,
        ),
    )
    if options.in_turns:
        return recipe
    return replace(recipe, seed=data.typical_seed(dmd.student_steps, options.fake_updates, updates))


def _denoiser(options: Options, recipe: Recipe) -> RoleNetworks:
    device, dtype, name = options.torch_device, frozen_dtype(recipe), options.class_name
    kind, _, sizes = options.model.partition(":")
    if kind == data.RANDOM:
        # A shared base is never trained, and made in the dtype that it is kept in: twice would not fit.
        preset = data.TINY if options.size == "tiny" else families.measured(name).public_network
        base = data.random_transformer(sizes, device, dtype or torch.float32, class_name=name, preset=preset)
    else:
        base = families.load(options.model, transformer_dtype=dtype, text_encoder=False).transformer
    specialists = {
        name: _adapter(base, options.lora_rank, seed) for seed, name in enumerate(recipe.teachers.specialists)
    }
    network = families.of_class(name).network
    return roles.build(network, base, recipe.model, specialists=specialists, frozen_dtype=dtype).to(device)


def _adapter(base: nn.Module, rank: int, seed: int) -> Adapter:
    """A random adapter over every linear layer of the blocks, as wide as the trained ones."""
    device = next(base.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, generator=generator).div_(100)

    blocks = base.get_submodule("transformer_blocks")
    linears = [(name, layer) for name, layer in blocks.named_modules() if isinstance(layer, nn.Linear)]
    return {
        f"transformer_blocks.{name}": AdapterLayer(drawn(rank, m.in_features), drawn(m.out_features, rank), 1.0)
        for name, m in linears
    }
