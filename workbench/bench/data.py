"""Random networks and random conditions of chosen sizes: speed does not depend on what is drawn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from torch import nn

from workbench.backbones import families
from workbench.backbones.measured import NetworkSizes
from workbench.batch import Batch, Condition, Layout, Reference, StepData, Task
from workbench.common.errors import UserError
from workbench.method import rng

CATEGORIES = ("t2i/any", "edit/any")
PREFIX_SLOT = 3
"""Text positions before the reference image, as in the template of edits."""
UNCOND_TOKENS = 9
"""Text positions of the empty prompt, the template around it included."""
SEEDS_TRIED = 2000
RANDOM = "random"
"""What the name of a network with random weights begins with."""
FIRST = families.FAMILIES[0].class_names[0]
TINY = NetworkSizes()


def random_transformer(
    sizes: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    class_name: str = FIRST,
    preset: NetworkSizes = TINY,
) -> nn.Module:
    """The transformer of a pipeline of class `class_name` with random weights, made on `device` in `dtype` and nowhere
    else.

    sizes: `key=value,...` with the names of `NetworkSizes`; the others are those of `preset`.

    Raises:
        UserError: an unknown key, or sizes that do not fit each other; a family that cannot be measured.
    """
    known, generator = _sizes(sizes, preset), torch.Generator(device).manual_seed(0)
    with torch.device(device), _default_dtype(dtype):
        network = families.measured(class_name).network(class_name, known)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter.shape[-1] ** -0.5, generator=generator)
    return network.eval()


def _sizes(text: str, preset: NetworkSizes) -> NetworkSizes:
    values = asdict(preset)
    for item in filter(None, text.split(",")):
        key, _, value = item.partition("=")
        if key not in values or not value.isdigit() or int(value) < 1:
            raise UserError(f"model={RANDOM}:{text}: {item!r} is not one of {', '.join(f'{k}=N' for k in values)}")
        values[key] = int(value)
    if values["width"] % values["heads"] or values["width"] // values["heads"] % 16:
        raise UserError(f"model={RANDOM}:{text}: width must be heads times a multiple of 16")
    return NetworkSizes(**values)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Sets the default dtype of parameters created inside; tables that name a dtype keep it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True)
class Shapes:
    """Sizes of the conditions. text_tokens: longest prompt without image slots; side: latent tokens of an edge;
    slots: text positions of a reference."""

    batch_size: int
    text_tokens: int
    side: int
    context_dim: int
    channels: int
    slots: int
    shortest: float = 0.6
    """Length of the shortest prompt over the longest; below 1 all are masked as padded ones are, the empty one too."""


def step_data(
    shapes: Shapes, tasks: tuple[Task, ...], fake_updates: int, *, step: int, guided: bool, device: torch.device
) -> StepData:
    """One step's data: `batch_size` samples of each task for the student and for every fake-score update."""

    def group(stream: int) -> tuple[Batch, ...]:
        seed = 1000 * step + stream
        return tuple(random_batch(shapes, task, seed=seed, guided=guided and stream == 0) for task in tasks)

    return StepData(step, group(0), tuple(group(1 + update) for update in range(fake_updates))).to(device)


def random_batch(shapes: Shapes, task: Task, *, seed: int, guided: bool) -> Batch:
    """One task's batch, lengths spread over [shortest text_tokens, text_tokens]."""
    generator = torch.Generator().manual_seed(2 * seed + (task == "edit"))
    count = shapes.batch_size
    references = None
    if task == "edit":
        references = torch.randn(count, shapes.side**2, shapes.channels, generator=generator)

    num_slots = shapes.slots if task == "edit" else 0
    slots = (Reference(PREFIX_SLOT, shapes.side, shapes.side, num_slots),) if num_slots else ()

    def condition(text_tokens: int, shortest: int, rows: int, prompts: torch.Generator) -> Condition:
        num_tokens = text_tokens + num_slots
        prompt = torch.randn(rows, num_tokens, shapes.context_dim, generator=prompts)
        lengths = torch.randint(shortest, text_tokens + 1, (rows,), generator=prompts) + num_slots
        lengths[0] = num_tokens
        layout = Layout(num_tokens, shapes.side, shapes.side, slots, padded=shapes.shortest < 1)
        return Condition(prompt, lengths, layout, references)

    shortest = max(PREFIX_SLOT + 1, int(shapes.shortest * shapes.text_tokens))
    prompt = condition(shapes.text_tokens, shortest, count, generator)
    is_constant, uncond = guided and not slots, None
    if guided:
        # As encoded data have it: one empty prompt for all T2I samples; edits begin alike with and without a prompt.
        source = torch.Generator().manual_seed(0) if is_constant else generator
        uncond = condition(UNCOND_TOKENS, UNCOND_TOKENS, 1 if is_constant else count, source)
        if slots:
            uncond.prompt[:, :PREFIX_SLOT] = prompt.prompt[:, :PREFIX_SLOT]
    return Batch(
        task=task,
        condition=prompt,
        uncond=uncond,
        target=None,
        rows=torch.arange(count),
        weight=torch.ones(count),
        num_samples=count,
        category=torch.full((count,), CATEGORIES.index(f"{task}/any")),
        sample_ids=tuple(f"{task}{row}" for row in range(count)),
        uncond_is_constant=is_constant,
    )


def typical_seed(num_steps: int, fake_updates: int, num_updates: int) -> int:
    """The first seed whose drawn student steps have, over `num_updates` updates, the expected mean: with few iterations
    the time of one depends on the draw."""
    streams = ["graded_step"] + [f"fake{r}/step" for r in range(fake_updates)]
    expected = num_updates * (num_steps - 1) / 2

    def distance(seed: int) -> float:
        drawn = {
            stream: sum(rng.integer(num_steps, seed=seed, stream=stream, step=update) for update in range(num_updates))
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
