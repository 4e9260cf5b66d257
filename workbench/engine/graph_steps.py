"""The parts of a training step: each a function of tensors, run eagerly or replayed as a CUDA graph.

Graphs are few because a step is cut where its shape is drawn: each set of layouts needs one for every student step of
the fake score's update and of the student's, not one for every combination that a training step can draw.
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
"""Beyond this, further combinations run eagerly: data of very many layouts are not worth a graph each."""


@dataclass(frozen=True)
class StepInput:
    """One batch of a step. from_rollout: samples or a state (B, N, C) that an earlier rollout found, if any."""

    batch: Batch
    numbers: Numbers
    from_rollout: Tensor | None = None


Run = Callable[[Sequence[StepInput], Means], Sequence[Tensor]]


@dataclass(frozen=True)
class GraphStep:
    """One optimiser step or rollout.

    key: all that decides which operators `run` calls on batches of given layouts and shapes.
    stream: of its random numbers. from_rollout: see `StepInput`, one per batch, or none.
    run: must call the same operators whenever the key is the same, and keep nothing but what it returns and logs.
    """

    key: tuple[Hashable, ...]
    stream: str
    batches: tuple[Batch, ...]
    run: Run
    from_rollout: tuple[Tensor | None, ...] = ()

    @property
    def sample_ids(self) -> tuple[str, ...]:
        return tuple(sample for batch in self.batches for sample in batch.sample_ids)

    def inputs(self, numbers: Sequence[Numbers]) -> list[StepInput]:
        """Its batches with their random numbers."""
        from_rollout = self.from_rollout or (None,) * len(self.batches)
        return [StepInput(*parts) for parts in zip(self.batches, numbers, from_rollout, strict=True)]


def run_eagerly(step: GraphStep, draws: Draws, means: Means) -> Sequence[Tensor]:
    """Run without a graph; means go into `means`."""
    return step.run(step.inputs([draws.of(batch, step.stream) for batch in step.batches]), means)


class GraphRunner:
    """Runs steps on CUDA. The first call of a key runs eagerly and records which random numbers it draws; later calls
    replay a CUDA graph, into which batches and numbers, drawn outside, are copied."""

    def __init__(self) -> None:
        self._graphs = Graphs(MAX_GRAPHS)
        self._requests: dict[Hashable, list[list[Request]]] = {}
        self._names: dict[Hashable, tuple[str, ...]] = {}

    def __call__(self, step: GraphStep, draws: Draws, means: Means) -> Sequence[Tensor]:
        """Outputs of the step, which nothing overwrites."""
        tensors = [tensor for batch in step.batches for tensor in _tensors(batch)]
        tensors += [tensor for tensor in step.from_rollout if tensor is not None]
        key = (step.key, tuple(map(_static, step.batches)), shapes_of(tensors))
        numbers = [draws.of(batch, step.stream) for batch in step.batches]
        if key not in self._requests or not self._graphs.has_room(key):
            noted = [NotedNumbers(source) for source in numbers]
            outputs = self._graphs.warm_up(lambda: step.run(step.inputs(noted), means))
            self._requests[key] = [list(notes.found) for notes in noted]
            return outputs
        requests = self._requests[key]
        drawn = [answer(source, request) for source, asked in zip(numbers, requests, strict=True) for request in asked]

        def captured(given: Sequence[Tensor]) -> Sequence[Tensor]:
            local, remaining = Means(), iter(given)
            outputs = step.run(_rebuilt(step, remaining, requests), local)
            self._names[key], totals = local.totals(outputs[0].device)
            return [*outputs, totals]

        *outputs, totals = self._graphs.replay(key, captured, [*tensors, *drawn])
        means.take(self._names[key], totals.clone())
        return [output.clone() for output in outputs]


def _rebuilt(step: GraphStep, tensors: Iterator[Tensor], requests: Sequence[Sequence[Request]]) -> list[StepInput]:
    """The inputs of `step` over other tensors: those of the batches, those from a rollout, the random numbers."""
    batches = [_over(batch, tensors) for batch in step.batches]
    states = [None if tensor is None else next(tensors) for tensor in step.from_rollout] or [None] * len(batches)
    numbers = [GivenNumbers({request: next(tensors) for request in asked}) for asked in requests]
    return [StepInput(*parts) for parts in zip(batches, numbers, states, strict=True)]


def _static(batch: Batch) -> Hashable:
    """Everything about a batch but its tensors and the names of its samples."""
    uncond = batch.uncond.layout if batch.uncond is not None else None
    present = (batch.target is not None, batch.condition.references is not None)
    return (batch.task, batch.condition.layout, uncond, batch.uncond_is_constant, present)


Item = TypeVar("Item", Batch, Condition)


def _tensors(item: Batch | Condition) -> Iterator[Tensor]:
    """Tensors of a batch in the order of its fields."""
    for field in fields(item):
        match vars(item)[field.name]:
            case Tensor() as tensor:
                yield tensor
            case Condition() as condition:
                yield from _tensors(condition)


def _over(item: Item, tensors: Iterator[Tensor]) -> Item:
    """The same item over other tensors, taken in the order of `_tensors`."""
    changed: dict[str, Any] = {}
    for field in fields(item):
        match vars(item)[field.name]:
            case Tensor():
                changed[field.name] = next(tensors)
            case Condition() as condition:
                changed[field.name] = _over(condition, tensors)
    return replace(item, **changed)
