"""The plan of a run before it starts: mixture, guidance, memory, time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from datamodules.distillation import DistillationData
from workbench.backbones import families, placement
from workbench.backbones.base import RoleNetworks
from workbench.backbones.roles import STUDENT, teacher_roles
from workbench.batch import Batch
from workbench.common import files
from workbench.common.errors import UserError
from workbench.common.tables import Table
from workbench.engine.moments import moment_bytes
from workbench.modules.distiller import Distiller
from workbench.modules.teachers import evaluations
from workbench.recipe.config import Recipe
from workbench.runs import checkpoint, machine
from workbench.runs.preparation import stores_by_memory


def show(
    recipe: Recipe,
    module: Distiller,
    networks: RoleNetworks,
    data: DistillationData,
    seconds_per_update: Callable[[], float],
    status: str,
    console: Console,
) -> None:
    """Print the plan of a distillation run, once however many ranks make it.

    seconds_per_update: measures on this machine; on every rank, and last, since it shards what the plan is read from.
    status: what the run folder holds, one line.

    Raises:
        UserError: as `require_memory`, once all but the time is shown.
    """
    updates = recipe.trainer.updates
    show_line = rank_zero_only(console.print)
    show_line(status, markup=False, soft_wrap=True)
    show_line(
        f"{updates} student updates of {recipe.mixture.batch_size} samples, each after {recipe.dmd.fake_updates} "
        f"fake-score updates; student times {', '.join(f'{t:.3f}' for t in module.student.times.tolist())}"
    )
    shapes = [student for student, _ in data.of_each_shape(_world(recipe))]
    show_line(_mixture(data, updates))
    show_line(_shapes(shapes), soft_wrap=True)
    show_line(_guidance(recipe, module))
    show_line(_routing(recipe, module))
    show_line(_memory(recipe, module, networks, shapes))
    show_line(_disk(recipe, module), soft_wrap=True)
    require_memory(recipe, module, networks)
    show_line("timing two updates after a first one, which nothing keeps ...")
    seconds = seconds_per_update()
    show_line(f"time: {seconds:.2f} s per update here, {seconds * updates / 60:.1f} min for all (training alone)")


def require_memory(recipe: Recipe, module: Distiller, networks: RoleNetworks) -> None:
    """Raises: UserError where what is there between two updates does not fit a GPU."""
    if machine.accelerator(recipe.trainer) != "gpu":
        return
    state, size = _state_bytes(recipe, module, networks), torch.cuda.get_device_properties(0).total_memory
    if state > size:
        raise UserError(
            f"weights, gradients, moments and average take {state / 2**30:.0f} GiB on each of {_world(recipe)} GPU(s), "
            f"and one has {size / 2**30:.0f}: see `When memory runs out` in docs/scale.md"
        )


def _world(recipe: Recipe) -> int:
    return recipe.trainer.devices * recipe.trainer.num_nodes


def _state_bytes(recipe: Recipe, module: Distiller, networks: RoleNetworks) -> float:
    """On each device, without activations."""
    of_student = sum(parameter.numel() for parameter in module.parameters_of(STUDENT))
    moments = moment_bytes(recipe.optim.moments, recipe.optim.beta1)
    copied = 4 * of_student if recipe.trainer.task_gradients_every else 0
    shards = _world(recipe) if recipe.trainer.strategy == "fsdp" else 1
    averaged = recipe.optim.ema_decay > 0
    return (placement.state_bytes(networks, of_student, moments, averaged=averaged) + copied) / shards


def _memory(recipe: Recipe, module: Distiller, networks: RoleNetworks, batches: Sequence[Batch]) -> str:
    world, student, state = _world(recipe), networks.network(STUDENT), _state_bytes(recipe, module, networks)
    line = (
        f"memory: state {state / 2**30:.2f} GiB per device ({_trained(module) / 1e6:.1f} M parameters trained, "
        f"{_frozen(module) / 1e6:.1f} M frozen, {world} device(s))"
    )
    dtype = torch.bfloat16 if recipe.trainer.precision == "bf16-mixed" else torch.float32
    # With an adversarial term the fake score keeps an evaluation of samples and one of data, and so the student's.
    graded = 2 if recipe.dmd.adversarial_weight else 1
    parts = largest(
        (batch.task, graded * student.activation_bytes(batch.condition, STUDENT, dtype)) for batch in batches
    )
    # The fake score's is gone before the teachers' two are there.
    prefixes = max(student.pair_bytes(batch.condition, batch.uncond, dtype) for batch in batches)
    gathered = placement.gathered_bytes(student, dtype) if recipe.trainer.strategy == "fsdp" else 0
    each = ", ".join(f"{task} {count / 2**30:.2f}" for task, count in parts.items())
    halved = ", about half of it in compiled blocks" if student.compiled else ""
    if stores_by_memory(recipe):
        halved += " with every block recomputed (on a GPU as many are stored as fit, see below)"
    peak = state + max(parts.values()) + prefixes + gathered
    blocks = f"; gathered blocks {gathered / 2**30:.2f} GiB" if gathered else ""
    return (
        f"{line}; activations {each} GiB{halved}; prefixes of a teacher {prefixes / 2**30:.2f} GiB{blocks}; "
        f"peak about {peak / 2**30:.2f} GiB"
    )


def _disk(recipe: Recipe, module: Distiller) -> str:
    """Checkpoints that are kept, one more while it is written, the student's folder, and what is free."""
    of_student = 4 * sum(parameter.numel() for parameter in module.parameters_of(STUDENT))
    averaged = of_student if recipe.optim.ema_decay else 0
    moments = moment_bytes(recipe.optim.moments, recipe.optim.beta1)
    saved = int((checkpoint.WEIGHT_BYTES + moments) * _trained(module)) + averaged
    student = sum(file.stat().st_size for file in families.resolve(recipe.model.folder).rglob("*") if file.is_file())
    best = of_student if recipe.trainer.keep == "best" else 0
    most = (checkpoint.KEPT + 1) * saved + 2 * best + student
    free = files.free_bytes(Path(recipe.trainer.folder))
    line = (
        f"disk: {most / 1e6:,.0f} MB at most in {recipe.trainer.folder}: {checkpoint.KEPT} checkpoints of "
        f"{saved / 1e6:,.0f} MB, another while it is written, the student {student / 1e6:,.0f} MB; pictures and logs "
        f"come on top; {free / 1e6:,.0f} MB are free"
    )
    return f"{line}: free some, or choose another trainer.folder" if free < most else line


def largest(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    """The largest count of each name: a task may have batches of several layouts."""
    found: dict[str, int] = {}
    for name, count in counts:
        found[name] = max(count, found.get(name, 0))
    return found


def _mixture(data: DistillationData, updates: int) -> Table:
    table = Table("category", "student samples", "passes over each prompt", title="mixture", title_justify="left")
    passes = data.passes(updates)
    for name, count in data.realised(updates).items():
        table.add_row(name, str(count), f"{passes[name]:.2f}")
    return table


def _shapes(batches: Sequence[Batch]) -> str:
    """Shapes of micro-batches: each is compiled and rehearsed on its own."""
    layouts = {batch.condition.layout: batch.task for batch in batches}
    counts = ", ".join(f"{task} {count}" for task, count in Counter(layouts.values()).items())
    sizes = [
        (layout.text_tokens, layout.num_target_tokens, sum(item.num_tokens for item in layout.references))
        for layout in layouts
    ]
    text, target, sources = max(sizes, key=sum)
    return (
        f"{len(batches)} shapes of micro-batches over {len(layouts)} layouts ({counts}); the longest has {text:,} "
        f"tokens of text, {target:,} of the target and {sources:,} of sources"
    )


def _guidance(recipe: Recipe, module: Distiller) -> Table:
    table = Table(title="lambda: teacher by student step, noisiest first", title_justify="left")
    table.add_column("category")
    table.add_column("step", justify="right")
    for role in teacher_roles(recipe.teachers):
        table.add_column(role, justify="right")
    shared: dict[str, list[str]] = {}
    for name, rows in zip(module.categories, module.lambdas.tolist(), strict=True):
        shared.setdefault(str(rows), []).append(name)
    for names in shared.values():
        rows = module.lambdas[module.categories.index(names[0])].tolist()
        label = "all" if len(names) == len(module.categories) else "\n".join(names)
        for k, row in enumerate(rows):
            table.add_row(label if k == 0 else "", str(k), *(f"{weight:.2f}" for weight in row))
    return table


def _routing(recipe: Recipe, module: Distiller) -> Table:
    """What the lambda table costs at most: where all samples need all teachers with weight in a planned category."""
    table = Table(title="teacher evaluations per sample at most, by graded student step", title_justify="left")
    for name in ("task", *(f"step {k}" for k in range(module.student.num_steps)), "mean", "teachers run"):
        table.add_column(name, justify="left" if name in ("task", "teachers run") else "right")
    for task, steps in module.active.items():
        if recipe.mixture.tasks.get(task, 0.0) > 0:
            costs = [evaluations(active, recipe.teachers.cfg_scale, recipe.dmd.decoupled) for active in steps]
            run = [
                n for n, used in zip(teacher_roles(recipe.teachers), zip(*steps, strict=True), strict=True) if any(used)
            ]
            table.add_row(task, *map(str, costs), f"{sum(costs) / len(costs):.2f}", ", ".join(run))
    return table


def _trained(module: Distiller) -> int:
    return sum(parameter.numel() for parameter in module.trained_parameters().values())


def _frozen(module: Distiller) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if not parameter.requires_grad)
