"""Weights of the local judge: written to its folder, and taken over by a judge of another vocabulary."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from workbench.common.files import write_bytes
from workbench.evaluation.judges.networks import Network

READERS = ("reader", "asking", "word")
"""What reads a text, by the first part of its tensors' names: it grows at its end, in characters and in positions."""


def save(network: Network, folder: Path, extra: Mapping[str, Any]) -> None:
    """Write `config.json` and `model.safetensors` (half precision); `extra`, say accuracies, joins the config."""
    state = {name: tensor.detach().half().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_bytes(folder / "model.safetensors", safetensors.torch.save(state))
    write_bytes(folder / "config.json", (json.dumps({**asdict(network.config), **extra}, indent=1) + "\n").encode())


def fit(network: Network, donor: Network) -> int:
    """Copy from `donor` every tensor whose shape fits; of heads whose classes changed the rows of the classes that both
    name; of what reads a text the rows of the positions and characters that both know. The number of weights copied."""
    given, copied = donor.state_dict(), 0
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name not in given:
                continue
            group, _, rest = name.partition(".")
            if group in ("single", "multi", "multi_local"):
                new, old = (judge.config.heads[rest.partition(".")[0]] for judge in (network, donor))
                pairs = [(new.index(value), old.index(value)) for value in new if value in old]
                if not pairs or tensor.shape[1:] != given[name].shape[1:]:
                    continue
                rows, theirs = zip(*pairs, strict=True)
                tensor[list(rows)] = given[name][list(theirs)].to(tensor)
                copied += tensor[list(rows)].numel()
            elif tensor.shape == given[name].shape:
                tensor.copy_(given[name])
                copied += tensor.numel()
            elif group in READERS and tensor.shape[1:] == given[name].shape[1:]:
                count = min(len(tensor), len(given[name]))
                tensor[:count] = given[name][:count].to(tensor)
                copied += tensor[:count].numel()
    return copied
