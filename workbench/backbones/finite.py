"""Weights that are not finite are refused where they are read: they draw black pictures, and train nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from workbench.common.errors import UserError


def is_finite(values: Tensor) -> bool:
    """Whether no element is NaN or infinite. One pass, without a copy of the tensor's size."""
    if not values.is_floating_point() or not values.numel() or values.is_meta:
        return True
    return bool(torch.stack(torch.aminmax(values)).isfinite().all())


def require_finite(where: Path, parts: Mapping[str, object]) -> None:
    """Raises: UserError naming the first tensor of the networks among `parts` that is not finite, or has no values."""
    for part, network in parts.items():
        if isinstance(network, nn.Module):
            for name, values in network.state_dict().items():
                if values.is_meta:
                    raise UserError(f"{where / part} lacks the weights of {name}: copy the pipeline folder again")
                if not is_finite(values):
                    raise UserError(f"{where / part}: {name} holds values that are not finite; use other weights")
