"""This process among those that train together: one alone where no process group is there."""

from __future__ import annotations

import torch.distributed as dist


def is_distributed() -> bool:
    """Whether this process has others to talk to."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1
