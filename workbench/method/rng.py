"""Randomness as a function of (seed, stream, step, row of the global batch); nothing is drawn from a hidden state.

One generator per (seed, stream, step) draws for the whole global batch, and each rank keeps its rows. The numbers are
therefore the same for any number of ranks and after any resume. They are drawn where the rows are: a CPU and a GPU
draw different ones, two GPUs the same.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def generator(seed: int, stream: str, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Generator of one (seed, stream, step)."""
    digest = hashlib.sha256(f"{seed}/{stream}/{step}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def normal(shape_of_one: tuple[int, ...], rows: Tensor, *, seed: int, stream: str, step: int, num_rows: int) -> Tensor:
    """Standard normal numbers for `rows` of a global batch of `num_rows`: (len(rows), *shape_of_one)."""
    source = generator(seed, stream, step, rows.device)
    return torch.randn((num_rows, *shape_of_one), generator=source, device=rows.device)[rows]


def uniform(rows: Tensor, *, seed: int, stream: str, step: int, num_rows: int) -> Tensor:
    """Uniform numbers in [0, 1) for `rows` of a global batch of `num_rows`: (len(rows),), on rows' device."""
    source = generator(seed, stream, step, rows.device)
    return torch.rand(num_rows, generator=source, device=rows.device)[rows]


def integer(high: int, *, seed: int, stream: str, step: int) -> int:
    """One integer in [0, high), the same on every rank."""
    return int(torch.randint(high, (1,), generator=generator(seed, stream, step)))


def permutation(size: int, *, seed: int, stream: str, step: int) -> list[int]:
    """The integers in [0, size) in random order, the same on every rank."""
    order: list[int] = torch.randperm(size, generator=generator(seed, stream, step)).tolist()
    return order
