"""Adapters at the size that ships: trained at a large rank, stored at a small one, and several as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from workbench.backbones import lora_files
from workbench.backbones.lora_files import Adapter, Adapters


def write_mean(of: Sequence[Path], out: Path, rank: int, most: int | None = None) -> float:
    """Write the mean of LoRA files of one network (a soup: Wortsman et al. 2022, arXiv 2203.05482), truncated as below;
    the share that is kept."""
    mean = lora_files.weighted_sum([(lora_files.read(path), 1 / len(of)) for path in of])
    smaller, kept = truncated(mean, rank, most)
    lora_files.write(smaller, out, header={})
    return kept


def truncated(adapter: Adapter, rank: int, most: int | None = None) -> tuple[Adapters, float]:
    """The nearest adapter (Eckart & Young 1936) with no more parameters than one of `rank` in every layer, as (A, B) of
    every layer, W + B A; and the share that it keeps of the sum of squares of all B A.

    most: largest rank of a layer; without it, layers that need more have it of those that need less.
    """
    bases, values = {}, {}
    for name, layer in adapter.items():
        up_basis, up = torch.linalg.qr(layer.up.double())
        down_basis, down = torch.linalg.qr(layer.down.double().T)
        left, values[name], right = torch.linalg.svd(layer.scaling * up @ down.T)
        bases[name] = (up_basis @ left, right @ down_basis.T)
    ranks = _ranks(values, {name: sum(layer.shape) for name, layer in adapter.items()}, rank, most)
    adapters: dict[str, tuple[Tensor, Tensor]] = {}
    for name, (left, right) in bases.items():
        root = values[name][: ranks[name]].sqrt()
        adapters[name] = ((root[:, None] * right[: len(root)]).float(), (left[:, : len(root)] * root).float())
    total = sum(float(of.square().sum()) for of in values.values())
    kept = sum(float(of[: ranks[name]].square().sum()) for name, of in values.items())
    return adapters, kept / total if total else 1.0


def _ranks(values: Mapping[str, Tensor], widths: Mapping[str, int], rank: int, most: int | None) -> dict[str, int]:
    """Of every layer at least 1: the singular values that keep most a parameter. widths: parameters of a rank."""
    ranks = dict.fromkeys(values, 1)
    left = (rank - 1) * sum(widths.values())
    rest = [(float(one) ** 2 / widths[name], name) for name, of in values.items() for one in of[1:most]]
    for _, name in sorted(rest, reverse=True):
        if widths[name] <= left:
            ranks[name] += 1
            left -= widths[name]
    return ranks
