"""Weights read straight to where they are computed with: a network is built without values, sharded or quantised, and
filled one tensor at a time, so that no process ever holds it whole, and no host or device unquantised.

A network without values has its parameters on the meta device and its buffers, which are tables, computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from workbench.backbones.finite import is_finite
from workbench.backbones.folders import weight_files
from workbench.backbones.fp8 import Fp8Linear
from workbench.backbones.lora_files import Adapter
from workbench.common import ranks
from workbench.common.console import say
from workbench.common.errors import UserError

AGAIN = "copy the pipeline folder again"
_NAMED = 3


@dataclass(frozen=True)
class WeightSource:
    """Where the values of a network without values are. folder: of one component. updates: low-rank updates of scaling
    1 that are added to the weights, by layer."""

    folder: Path
    updates: Adapter = field(default_factory=dict)


class StoredTensors(Mapping[str, Tensor]):
    """The tensors of a component's files by name, each read to the host in `dtype` when it is asked for."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.dtype = dtype
        opened = [safe_open(file, framework="pt") for file in weight_files(folder)]
        self._files = {name: file for file in opened for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].get_tensor(name).to(self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def is_empty(network: nn.Module) -> bool:
    """Whether a network has been built without values."""
    return any(parameter.is_meta for parameter in network.parameters())


def require_fit(network: nn.Module, folder: Path) -> None:
    """Compare names and shapes of the files in `folder` with those of `network`; reads no values.

    Raises:
        UserError: a tensor is missing or of another shape. One that the network does not know is named and passed over.
    """
    expected = {_stored_name(name): values.shape for name, values in network.state_dict().items()}
    found = stored_shapes(folder)
    if lacking := [name for name in expected if name not in found]:
        raise UserError(f"{folder} lacks the weights of {_few(lacking)}: {AGAIN}")
    for name, shape in expected.items():
        if found[name] != shape:
            raise UserError(
                f"{folder}: {name} is of shape {[*found[name]]}, its configuration says {[*shape]}: {AGAIN}"
            )
    if unknown := [name for name in found if name not in expected]:
        say(f"{folder}: {_few(unknown)} belong to no layer of the network and are passed over")


def stored_shapes(folder: Path) -> dict[str, torch.Size]:
    """Shapes of the tensors in the files of a component, by name; reads no values."""
    found: dict[str, torch.Size] = {}
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as opened:
            found |= {name: torch.Size(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    return found


def fill(networks: Sequence[tuple[nn.Module, WeightSource]], device: torch.device) -> None:
    """Read the values of every parameter without any to `device`, in its own dtype, of a sharded one the part of this
    rank alone (collective where there are several ranks). What several networks share is read once.

    Raises:
        UserError: on every rank, for values that are not finite, or a file that cannot be read.
    """
    folders = dict.fromkeys(source.folder for _, source in networks)
    faults = [_filled(folder, [item for item in networks if item[1].folder == folder], device) for folder in folders]
    ranks.require_no_fault("; ".join(filter(None, faults)))


def _filled(folder: Path, networks: list[tuple[nn.Module, WeightSource]], device: torch.device) -> str:
    """Fill the networks of one folder; what was wrong, empty where nothing was."""
    waiting: dict[str, list[_Place]] = {}
    for network, source in networks:
        for place in _places(network, source):
            waiting.setdefault(place.stored_name, []).append(place)
    try:
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    for place in waiting.pop(name, ()):
                        if not place.fill(opened.get_slice(name), device):
                            return f"{folder}: {name} holds values that are not finite; use other weights"
    except (OSError, SafetensorError) as error:
        return f"cannot read {file}: {error}; {AGAIN}"
    return f"{folder} lacks the weights of {_few([*waiting])}: {AGAIN}" if waiting else ""


@dataclass(frozen=True)
class _Place:
    """A parameter without values: `name` of `owner`."""

    owner: nn.Module
    name: str
    stored_name: str
    updates: Adapter

    @torch.no_grad()
    def fill(self, stored: Any, device: torch.device) -> bool:
        """Put the stored values in place; whether they are finite."""
        parameter = self.owner.get_parameter(self.name)
        rows = _rows(parameter)
        # What safetensors gives is a view of the file.
        values = (stored[rows] if rows.start < rows.stop else torch.empty(0, *parameter.shape[1:])).to(device)
        finite = is_finite(values)
        if update := self.updates.get(self.stored_name.removesuffix(".weight")):
            values = values.float() + (update.up @ update.down)[rows].to(device)
        if isinstance(self.owner, Fp8Linear) and self.name == "weight":
            self.owner.take(values)
            return finite
        local = torch.empty(values.shape, dtype=parameter.dtype, device=device).copy_(values)
        setattr(self.owner, self.name, nn.Parameter(_like(parameter, local), parameter.requires_grad))
        return finite


def _places(network: nn.Module, source: WeightSource) -> Iterator[_Place]:
    for path, owner in network.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter.is_meta:
                stored_name = _stored_name(f"{path}.{name}" if path else name)
                yield _Place(owner, name, stored_name, source.updates)


def _rows(parameter: Tensor) -> slice:
    """Of the whole tensor, those that this rank holds: all, or one of the chunks that FSDP2 makes."""
    if not isinstance(parameter, DTensor):
        return slice(0, len(parameter))
    mesh, count = parameter.device_mesh, len(parameter.to_local())
    assert mesh.ndim == 1 and parameter.placements[0].is_shard(0)
    start = min(len(parameter), mesh.get_local_rank() * -(-len(parameter) // mesh.size()))
    return slice(start, start + count)


def _like(parameter: Tensor, local: Tensor) -> Tensor:
    """`local` as this rank's part of a tensor that is sharded as `parameter` is."""
    if not isinstance(parameter, DTensor):
        return local
    mesh, placements, shape = parameter.device_mesh, parameter.placements, parameter.shape
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=parameter.stride())


def _stored_name(name: str) -> str:
    """In the files, layers with adapters over them are named as without."""
    return name.replace(".base_layer.", ".")


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
