"""Values that are not finite are refused where they are read or drawn: they make black pictures, and train nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from workbench.common.errors import UserError


def is_finite(values: Tensor) -> bool:
    """Whether no element is NaN or infinite. One pass, without a copy of the tensor's size."""
    if not values.is_floating_point() or not values.numel() or values.is_meta:
        return True
    # The extremes of eight bits exist in no library.
    wide = values.half() if values.element_size() == 1 else values
    return bool(torch.stack(torch.aminmax(wide)).isfinite().all())


def require_finite_values(where: str, named: Mapping[str, Tensor], remedy: str = "use other weights") -> None:
    """Raises: UserError naming the first of the tensors that is not finite."""
    for name, values in named.items():
        if not is_finite(values):
            raise UserError(f"{where}: {name} holds values that are not finite; {remedy}")


class FiniteTensors(Mapping[str, Tensor]):
    """Tensors by name, each checked when it is asked for: see `require_finite_values`."""

    def __init__(self, where: str, named: Mapping[str, Tensor], remedy: str) -> None:
        self.where, self.named, self.remedy = where, named, remedy

    def __getitem__(self, name: str) -> Tensor:
        values = self.named[name]
        require_finite_values(self.where, {name: values}, self.remedy)
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self.named)

    def __len__(self) -> int:
        return len(self.named)


def require_finite_latents(x0: Tensor) -> None:
    """Raises: UserError rather than to let black pictures be drawn."""
    if not is_finite(x0):
        raise UserError("the model's answers are not finite: its weights or guidance overflow, use others")


def tensors_of(state: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested mappings under its dotted name; of a sharded one the part that this rank holds."""
    for name, value in state.items():
        match value:
            case DTensor():
                yield f"{prefix}{name}", value.to_local()
            case Tensor():
                yield f"{prefix}{name}", value
            case Mapping():
                yield from tensors_of(value, f"{prefix}{name}.")


def require_finite(where: Path, parts: Mapping[str, object]) -> None:
    """Raises: UserError naming the first tensor of the networks among `parts` that is not finite, or has no values."""
    for part, network in parts.items():
        if isinstance(network, nn.Module):
            for name, values in network.state_dict().items():
                if values.is_meta:
                    raise UserError(f"{where / part} lacks the weights of {name}: copy the pipeline folder again")
            require_finite_values(str(where / part), network.state_dict())
