"""After their first call, prefix and velocity do nothing that a CUDA graph could not hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from single_network import single_role
from torch.utils._python_dispatch import TorchDispatchMode

from workbench.bench.data import Shapes, random_batch, random_transformer

SHAPES = Shapes(batch_size=3, text_tokens=9, side=4, context_dim=24, channels=8, slots=4)
HOST_OR_SHAPE = ("_local_scalar_dense", "nonzero", "masked_select", "repeat_interleave", "unique", "lift_fresh")
"""Reads of a value by the host, shapes that follow from values, tensors made from Python numbers on the host."""


class Operators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.names.append(function.name())
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("task", ["t2i", "edit"])
def test_no_host_reads_and_no_shapes_from_values(task: Any) -> None:
    condition = random_batch(SHAPES, task, seed=0, guided=False).condition
    network = single_role(random_transformer("blocks=2,width=32,heads=2,text=24,channels=8", torch.device("cpu")))
    x_t, t = torch.randn(3, 16, 8), torch.tensor([1.0, 0.5, 0.1])

    def evaluate() -> None:
        network.velocity(network.prefix(condition, "teacher"), x_t, t, "teacher").sum().backward()

    evaluate()
    with Operators() as operators:
        evaluate()
    assert len(operators.names) > 100
    assert not [name for name in operators.names if any(word in name for word in HOST_OR_SHAPE)]
