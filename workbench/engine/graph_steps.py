"""The parts of a training step: each a function of tensors, run as it is or replayed as a CUDA graph.

Graphs are few because a step is cut where its shape is drawn: one for each student step of the fake score's update and
of the student's, for each set of layouts, rather than one for each way in which a whole step can turn out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

from torch import Tensor

from workbench.batch import Batch, Condition
from workbench.engine.draws import Draws, GivenNumbers, NotedNumbers, Numbers, Request, answer
from workbench.engine.graphs import Graphs, shapes_of
from workbench.engine.means import Means

MAX_GRAPHS = 64
"""Beyond, further combinations run as they are: data of very many layouts are not worth a graph each."""


@dataclass(frozen=True)
class Work:
    """One batch of a unit. known: samples or a state (B, N, C) that an earlier unit found, if any."""

    batch: Batch
    numbers: Numbers
    known: Tensor | None = None


Run = Callable[[Sequence[Work], Means], Sequence[Tensor]]


@dataclass(frozen=True)
class Unit:
    """What one optimiser step or rollout does.

    key: all that decides which operators `run` calls on batches of given layouts and shapes.
    stream: of its random numbers. known: see `Work`, one a batch.
    run: must call the same operators whenever the key is the same, and keep nothing but what it returns and logs.
    """

    key: tuple[Hashable, ...]
    stream: str
    batches: tuple[Batch, ...]
    run: Run
    known: tuple[Tensor | None, ...] = ()

    @property
    def sample_ids(self) -> tuple[str, ...]:
        return tuple(sample for batch in self.batches for sample in batch.sample_ids)

    def work(self, numbers: Sequence[Numbers]) -> list[Work]:
        """Its batches with their numbers."""
        known = self.known or (None,) * len(self.batches)
        return [Work(*parts) for parts in zip(self.batches, numbers, known, strict=True)]


def run_eagerly(unit: Unit, draws: Draws, means: Means) -> Sequence[Tensor]:
    """Run as it is; means go into `means`."""
    return unit.run(unit.work([draws.of(batch, unit.stream) for batch in unit.batches]), means)


class Replayed:
    """Runs units on CUDA: the first of its kind as it is, noting which numbers it draws; from the second on a graph,
    into which batches and numbers, drawn outside, are copied."""

    def __init__(self) -> None:
        self._graphs = Graphs(MAX_GRAPHS)
        self._requests: dict[Hashable, list[list[Request]]] = {}
        self._names: dict[Hashable, tuple[str, ...]] = {}

    def __call__(self, unit: Unit, draws: Draws, means: Means) -> Sequence[Tensor]:
        """Outputs of the unit, which nothing overwrites."""
        of_batches = [tensor for batch in unit.batches for tensor in _tensors(batch)]
        of_batches += [tensor for tensor in unit.known if tensor is not None]
        key = (unit.key, tuple(map(_static, unit.batches)), shapes_of(of_batches))
        numbers = [draws.of(batch, unit.stream) for batch in unit.batches]
        if key not in self._requests or not self._graphs.has_room(key):
            noted = [NotedNumbers(source) for source in numbers]
            outputs = self._graphs.warm_up(lambda: unit.run(unit.work(noted), means))
            self._requests[key] = [list(notes.found) for notes in noted]
            return outputs
        requests = self._requests[key]
        drawn = [answer(source, request) for source, asked in zip(numbers, requests, strict=True) for request in asked]

        def step(given: Sequence[Tensor]) -> Sequence[Tensor]:
            local, tensors = Means(), iter(given)
            outputs = unit.run(_rebuilt(unit, tensors, requests), local)
            self._names[key], totals = local.totals(outputs[0].device)
            return [*outputs, totals]

        *outputs, totals = self._graphs.replay(key, step, [*of_batches, *drawn])
        means.take(self._names[key], totals.clone())
        return [output.clone() for output in outputs]


def _rebuilt(unit: Unit, tensors: Iterator[Tensor], requests: Sequence[Sequence[Request]]) -> list[Work]:
    """The unit's work over other tensors: those of the batches, what is known, the numbers."""
    batches = [_over(batch, tensors) for batch in unit.batches]
    known = [None if tensor is None else next(tensors) for tensor in unit.known] or [None] * len(batches)
    numbers = [GivenNumbers({request: next(tensors) for request in asked}) for asked in requests]
    return [Work(*parts) for parts in zip(batches, numbers, known, strict=True)]


def _static(batch: Batch) -> Hashable:
    """What a batch is beside its tensors and its samples' names."""
    uncond = batch.uncond.layout if batch.uncond is not None else None
    present = (batch.target is not None, batch.condition.references is not None)
    kind = (batch.shares_references, batch.uncond_is_constant)
    return (batch.task, batch.condition.layout, uncond, kind, present)


Item = TypeVar("Item", Batch, Condition)


def _tensors(item: Batch | Condition) -> Iterator[Tensor]:
    """Those of a batch in the order of its fields."""
    for field in fields(item):
        match vars(item)[field.name]:
            case Tensor() as tensor:
                yield tensor
            case Condition() as condition:
                yield from _tensors(condition)


def _over(item: Item, tensors: Iterator[Tensor]) -> Item:
    """The same over other tensors, taken in the order of `_tensors`."""
    changed: dict[str, Any] = {}
    for field in fields(item):
        match vars(item)[field.name]:
            case Tensor():
                changed[field.name] = next(tensors)
            case Condition() as condition:
                changed[field.name] = _over(condition, tensors)
    return replace(item, **changed)
