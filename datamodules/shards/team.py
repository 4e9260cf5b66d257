"""Processes that torchrun or SLURM started to encode together: each takes whole shards, one ticket a shard.

They share a folder and torch's key-value store. Nothing else goes between them, so what they write does not depend on
how many they are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from workbench.common.errors import UserError

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment

_LONGEST = timedelta(days=30)
"""A rank waits this long for another, whose last shard may take hours. One that ended is noticed at once."""
_LOOK_S = 0.5
_FAREWELL_S = 5.0
"""Rank 0, which may serve what the ranks tell each other, stays so long for those that have not read its plan."""
_PLAN, _HEARD, _TICKET, _FAILED = "plan", "heard", "ticket", "failed"


class Team:
    """This rank and the others. rank 0 leads: it alone writes what is not a shard."""

    def __init__(self, rank: int, local_rank: int, world: int, store: dist.Store) -> None:
        self.rank, self.local_rank, self.world = rank, local_rank, world
        self._store = store

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def announce(self, plan: Any) -> None:
        """Rank 0 tells the others a plan, JSON."""
        self._store.set(_PLAN, json.dumps(plan))

    def plan(self) -> Any:
        """What rank 0 announced; waits for it."""
        with _while_the_first_lives():
            announced = json.loads(self._store.get(_PLAN))
        self.count(_HEARD, 1)
        return announced

    def give_up(self) -> None:
        """Rank 0 tells the others that it failed: those that wait for a plan, and those that are at their shards."""
        until = time.monotonic() + _FAREWELL_S
        self.fail()
        with suppress(UserError, dist.DistError):
            self.announce(None)
            while self.count(_HEARD) < self.world - 1 and time.monotonic() < until:
                time.sleep(0.02)

    def ticket(self) -> int:
        """0, 1, 2 and so on, each to one rank."""
        return self.count(_TICKET, 1) - 1

    def count(self, name: str, more: int = 0) -> int:
        """The ranks' common count of `name`, after adding `more`."""
        with _while_the_first_lives():
            return int(self._store.add(name, more))

    def fail(self) -> None:
        """Let the other ranks stop after the shard that they are at."""
        with suppress(UserError):
            self.count(_FAILED, 1)

    @property
    def failed(self) -> bool:
        return self.count(_FAILED) > 0

    def wait(self, look: Callable[[], None]) -> None:
        """Return once all ranks are here; the first one calls `look` now and then until they are.

        Raises:
            SystemExit: another rank failed, and said why.
            UserError: another rank ended without a word.
        """
        try:
            barrier = dist.barrier(async_op=True)
            while self.leads and not barrier.is_completed():
                look()
                time.sleep(_LOOK_S)
            barrier.wait()
        except RuntimeError as error:  # what gloo raises of a connection that broke
            if self.failed:
                raise SystemExit(2) from error
            raise UserError("another rank ended before its shards were done: the same command continues") from error

    def leave(self) -> None:
        """Close the connections to the other ranks."""
        dist.destroy_process_group()


@contextmanager
def _while_the_first_lives() -> Iterator[None]:
    """Rank 0, or torchrun, serves what the ranks tell each other."""
    try:
        yield
    except dist.DistError as error:
        raise UserError("the first rank ended before all shards were done: the same command continues") from error


def join() -> Team | None:
    """The team that this process was started into, or None where it is alone."""
    environment = _environment()
    if environment is None or environment.world_size() == 1:
        return None
    rank, world = environment.global_rank(), environment.world_size()
    if not dist.is_initialized():
        store, _, _ = next(dist.rendezvous(_address(environment), rank, world))
        group = dist.PrefixStore("gloo", store)
        dist.init_process_group("gloo", store=group, rank=rank, world_size=world, timeout=_LONGEST)
        store.set_timeout(_LONGEST)
        _store.append(dist.PrefixStore("encode", store))
    return Team(rank, environment.local_rank(), world, _store[0])


_store: list[dist.Store] = []
"""Kept as long as the process lives: rank 0 may serve it."""


def _environment() -> ClusterEnvironment | None:
    # Here, for Lightning takes seconds to import and workers of one machine need none.
    from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    for kind in (TorchElasticEnvironment, SLURMEnvironment):
        if kind.detect():
            return kind()
    return None


def _address(environment: ClusterEnvironment) -> str:
    if dist.is_torchelastic_launched():
        return "env://"
    return f"tcp://{environment.main_address}:{environment.main_port}"
