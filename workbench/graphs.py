"""A training step as a CUDA graph: small networks are bound by kernel launches, and a replay has one.

What is captured is a function of tensors to tensors that changes parameters in place. It runs as it is for its first
calls, on a side stream, which are training steps like all others; then once per set of shapes it is recorded, and from
there on its inputs are copied into the recorded ones and the recording is replayed. It must not synchronise with the
host, draw random numbers, or change anything but tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TensorStep = Callable[[Sequence[Tensor]], Sequence[Tensor]]
Shapes = tuple[tuple[torch.Size, torch.dtype], ...]
WARMUP_CALLS = 3


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class GraphedStep:
    """`step`, replayed. Outputs are overwritten by the next call."""

    def __init__(self, step: TensorStep) -> None:
        self._step = step
        self._calls: dict[Shapes, int] = {}
        self._recordings: dict[Shapes, _Recording] = {}

    def __call__(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """One step on `inputs`, whose number may not change and whose shapes should be few."""
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        calls = self._calls.get(shapes, 0)
        self._calls[shapes] = calls + 1
        if calls < WARMUP_CALLS:
            return self._warm_up(inputs)
        if shapes not in self._recordings:
            self._recordings[shapes] = self._record(inputs)
        recording = self._recordings[shapes]
        for static, tensor in zip(recording.inputs, inputs, strict=True):
            static.copy_(tensor, non_blocking=True)
        recording.graph.replay()
        return recording.outputs

    def _warm_up(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            outputs = self._step(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return outputs

    def _record(self, inputs: Sequence[Tensor]) -> _Recording:
        static = tuple(tensor.clone() for tensor in inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = tuple(self._step(static))
        return _Recording(graph, static, outputs)
