"""This process among those that train together: one alone where no process group is there."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import torch.distributed as dist

from workbench.common.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
FIRST_SAYS_IT_S = 20.0
"""Longest that the first rank may take from an error of all ranks to its line: its loggers end first."""
_GONE = ("by peer", "remote process exited")
"""What gloo and NCCL say of a connection whose other end is gone."""


def is_distributed() -> bool:
    """Whether this process has others to talk to."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if is_distributed() else 1


def gathered(value: Result) -> list[Result]:
    """What each rank calls with, in the order of ranks (collective)."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def in_shares(items: list[Item], work: Callable[[Item], Result]) -> list[Result]:
    """`work` of all items, in order, each done by one rank and known to all (collective)."""
    world = world_size()
    parts = gathered([work(item) for item in items[rank() :: world]])
    return [parts[i % world][i // world] for i in range(len(items))]


def in_equal_shares(items: list[Item], work: Callable[[Item], Result]) -> list[Result]:
    """As `in_shares`, each rank doing as many items, the last one again where there are none left: for work that all
    ranks take part in, such as evaluations of a sharded network (collective)."""
    world = world_size()
    missing = -len(items) % world
    return in_shares([*items, *items[-1:] * missing], work)[: len(items)]


def require_no_fault(fault: str) -> None:
    """Let every rank fail where one does, so that none waits for it (collective).

    Raises:
        UserError: the first fault of any rank that is not empty.
    """
    if found := next(filter(None, gathered(fault)), ""):
        raise error_of_all(found)


def error_of_all(message: str) -> UserError:
    """What all ranks raise together, for the first one to print."""
    error = UserError(message)
    error.is_repeated = rank() > 0
    return error


def blame_the_gone(error: BaseException) -> None:
    """Say so where `error` comes of another rank that ended, in the middle of whatever this one was doing.

    Raises:
        UserError: another rank ended.
    """
    if is_distributed() and any(words in str(error) for words in _GONE):
        raise UserError(
            "another rank ended, and may have said why: the same command continues from the last checkpoint"
        ) from error


def barrier() -> None:
    """Wait for all ranks (collective)."""
    if is_distributed():
        dist.barrier()


def leave(code: int, said: bool) -> None:
    """End this process at once where others train beside it, and return where none does. An interpreter that ends as
    usual gives its GPU back, which waits for collectives that the others may never join; they wait for this one.

    said: whether this process has said why. One that has not leaves it to the first rank, and waits for its end, since
    its own would take the first one with it.
    """
    if world_size() < 2:
        return
    if not said and rank() > 0:
        time.sleep(FIRST_SAYS_IT_S)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # closed, or of a reader that is gone
            stream.flush()
    os._exit(code)
