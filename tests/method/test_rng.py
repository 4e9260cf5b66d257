"""Random numbers are a function of (seed, stream, step, row) and of nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import combinations

import pytest
import torch
from torch import Tensor

from workbench.method import rng


def draw(rows: Tensor, *, seed: int = 3, stream: str = "noise", step: int = 7, num_rows: int = 12) -> Tensor:
    return rng.normal((5, 2), rows, seed=seed, stream=stream, step=step, num_rows=num_rows)


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_rows_do_not_depend_on_the_number_of_ranks(world: int) -> None:
    everything = draw(torch.arange(12))
    t = rng.uniform(torch.arange(12), seed=3, stream="t", step=7, num_rows=12)
    for rank in range(world):
        rows = torch.arange(rank, 12, world)
        assert torch.equal(draw(rows), everything[rows])
        assert torch.equal(rng.uniform(rows, seed=3, stream="t", step=7, num_rows=12), t[rows])


def test_the_hidden_global_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(0)
    first, state = draw(torch.arange(12)), torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(draw(torch.arange(12)), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_streams_and_steps_are_uncorrelated() -> None:
    rows, num_rows = torch.arange(2000), 2000
    keys = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1), (0, "a/1", 0), (10, "a", 0), (1, "0/a", 0)]
    draws = [draw(rows, seed=a, stream=b, step=c, num_rows=num_rows).flatten() for a, b, c in keys]
    for left, right in combinations(draws, 2):
        assert abs(torch.corrcoef(torch.stack([left, right]))[0, 1]) < 0.05


def test_moments_are_standard() -> None:
    drawn = draw(torch.arange(4000), num_rows=4000)
    assert abs(drawn.mean()) < 0.03 and abs(drawn.std() - 1) < 0.03
    uniform = rng.uniform(torch.arange(4000), seed=0, stream="t", step=0, num_rows=4000)
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 0.02
    integers = [rng.integer(4, seed=0, stream="step", step=step) for step in range(2000)]
    assert all(abs(integers.count(value) / 2000 - 0.25) < 0.05 for value in range(4))


def test_another_process_draws_the_same() -> None:
    """Python's own `hash` would not: it is salted by process."""
    code = "from workbench.method import rng; print(rng.integer(2**62, seed=1, stream='x', step=2))"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert int(printed.stdout) == rng.integer(2**62, seed=1, stream="x", step=2)
