"""Memory of the activations of a block, measured on the meta device before anything is run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

META = torch.device("meta")
Block = TypeVar("Block", bound=nn.Module)


class _FusedAttention(torch.autograd.Function):
    """Attention that saves what a fused kernel saves: inputs and output, no (S, S) matrix."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise NotImplementedError("the meta device has no backward pass")


def fused_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Stands for attention on the meta device."""
    output: Tensor = _FusedAttention.apply(query, key, value)
    return output


@dataclass(frozen=True)
class BlockMemory:
    """Bytes of one block for one batch. stored: kept for its backward pass. input: kept where it is recomputed."""

    stored: int
    input: int


def on_meta(block: Block, dtype: torch.dtype) -> Block:
    """A copy of `block` without memory, its parameters in `dtype`."""
    return copy.deepcopy(block).to(META, dtype)


def measure(block: nn.Module, run: Callable[[], Sequence[Tensor]], num_passed: int) -> BlockMemory:
    """Memory of `run`, one evaluation of `block` on the meta device.

    run: gives tensors that stay for what follows, the first `num_passed` of them even where the block is recomputed.
    """
    weights = {tensor.untyped_storage()._cdata for tensor in (*block.parameters(), *block.buffers())}
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage()._cdata not in weights:
            saved.append(tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        stay = run()
    return BlockMemory(_bytes((*saved, *stay)), _bytes(stay[:num_passed]))


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Memory that several tensors share is counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())
