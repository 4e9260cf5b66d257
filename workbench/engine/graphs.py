"""Training steps as CUDA graphs: small networks are bound by kernel launches, and a replay has one.

What is captured is a function of tensors to tensors that changes parameters in place. It must not synchronise with the
host, draw random numbers, or change anything but tensors, and it has run once before, on a side stream, so that
whatever it builds once is there.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from workbench.engine import lanes

TensorStep = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Shapes = tuple[tuple[torch.Size, torch.dtype], ...]
Result = TypeVar("Result")
WARMUP_CALLS = 3


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Graphs:
    """Recordings by key, at most `limit` of them. They share one pool of memory, and those of like inputs share these:
    together they take little more than the largest. So a replay overwrites the outputs of every other."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._recordings: dict[Hashable, _Recording] = {}
        self._inputs: dict[Shapes, tuple[Tensor, ...]] = {}
        self._pool: Any = None
        self._side: Any = None

    def has_room(self, key: Hashable) -> bool:
        """Whether `replay` may be called with `key`."""
        return key in self._recordings or len(self._recordings) < self.limit

    def warm_up(self, function: Callable[[], Result]) -> Result:
        """`function` as it is, on the side stream."""
        if self._side is None:
            self._side = torch.cuda.Stream()
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            result = function()
        torch.cuda.current_stream().wait_stream(self._side)
        return result

    def replay(self, key: Hashable, step: TensorStep, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """`step` on `inputs`, recorded under `key` at its first call. The key stands for everything that decides what
        `step` does with tensors of these shapes; the outputs hold until the next replay of any key."""
        if key not in self._recordings:
            self._recordings[key] = self._record(step, inputs)
        recording = self._recordings[key]
        torch._foreach_copy_(list(recording.inputs), list(inputs), non_blocking=True)
        recording.graph.replay()
        return recording.outputs

    def _record(self, step: TensorStep, inputs: Sequence[Tensor]) -> _Recording:
        if self._pool is None:
            gc.collect()
            self._pool = torch.cuda.graph_pool_handle()
        static = self._inputs.setdefault(shapes_of(inputs), tuple(tensor.detach().clone() for tensor in inputs))
        graph = torch.cuda.CUDAGraph()
        # Other threads of the process (pinning, logging) may talk to the device meanwhile.
        recorded = torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")
        with no_garbage_collected(), lanes.opened(self._side if lanes.have_room() else None), recorded:
            outputs = tuple(step(static))
        return _Recording(graph, static, outputs)


class GraphedStep:
    """`step`, replayed: its first calls for a set of shapes run as they are and are steps like all others.
    Outputs are overwritten by the next call."""

    def __init__(self, step: TensorStep) -> None:
        self._step = step
        self._calls: dict[Shapes, int] = {}
        self._graphs = Graphs(limit=64)

    def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """One step on `inputs`, whose number may not change and whose shapes should be few."""
        shapes = shapes_of(inputs)
        calls = self._calls.get(shapes, 0)
        self._calls[shapes] = calls + 1
        if calls < WARMUP_CALLS or not self._graphs.has_room(shapes):
            return self._graphs.warm_up(lambda: self._step(inputs))
        return self._graphs.replay(shapes, self._step, inputs)


@contextmanager
def no_garbage_collected() -> Iterator[None]:
    """A graph that is destroyed while another is recorded invalidates the recording: those that an earlier run of the
    process left in cycles are collected before or after."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def shapes_of(tensors: Sequence[Tensor]) -> Shapes:
    """Shape and dtype of each."""
    return tuple((tensor.shape, tensor.dtype) for tensor in tensors)
