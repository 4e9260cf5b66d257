"""Who encodes which shard: this process, several of this machine, or ranks that torchrun or SLURM started."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.shards.encode_batch import Encoder
from datamodules.shards.encode_shard import ShardEncoder
from datamodules.shards.left_out import LeftOut, Tally
from datamodules.shards.team import Team
from workbench.common import files
from workbench.common.errors import UserError
from workbench.common.outside import parse
from workbench.common.parent import end_with_spawner
from workbench.recipe.config import Data

Load = Callable[[int], Encoder]
"""An encoder for the process of this number on its machine."""
_LOOK_S = 0.5


@dataclass(frozen=True)
class Job:
    """A raw shard, and the file that it becomes."""

    url: str
    path: Path


class Progress:
    """Counts what is done, and shows it: samples, samples a second, and the time left.

    num_samples: of all shards, None where nobody knows; then it is guessed from the shards done.
    """

    def __init__(self, data: Data, folder: Path, num_shards: int, num_samples: int | None) -> None:
        self._data, self._folder, self._num_shards, self._num_samples = data, folder, num_shards, num_samples
        self._tally = Tally.of(data)
        self.samples, self.shards = 0, 0
        self.bar = files.progress(pace=True)
        self._task = self.bar.add_task(f"encoding into {folder}", total=num_samples)

    def advance(self, num_samples: int) -> None:
        """So many more samples are encoded."""
        self.show(self.samples + num_samples, self.shards)

    def show(self, samples: int, shards: int) -> None:
        """So many samples and shards are there."""
        self.samples, self.shards = samples, shards
        guessed = samples * self._num_shards // shards if shards else None
        self.bar.update(self._task, total=self._num_samples or guessed, completed=samples)

    def finish(self, record: dict[str, Any]) -> None:
        """A shard is there.

        Raises:
            UserError: more broken samples than `data.max_broken`, or a disk that will not hold the shards to come.
        """
        left_out = left_out_of(record, self._folder)
        for line in left_out.broken:
            print(f"left out: {line}")
        self._tally.add(left_out)
        self.show(self.samples, self.shards + 1)
        remaining = record["bytes"] * (self._num_shards - self.shards)
        files.require_space(self._folder, remaining, f"the rest of {self._folder}")


def left_out_of(record: dict[str, Any], folder: Path) -> LeftOut:
    """What a shard's record says was not taken."""
    return parse(json.dumps(record.get("left_out", {})), LeftOut, str(folder / record["name"]), "encode again")


@dataclass(frozen=True)
class Work:
    """Shards to be encoded, and what with. keep_empty: takes the empty prompt of a T2I sample, (L, D) float32."""

    data: Data
    jobs: list[Job]
    load: Load
    keep_empty: Callable[[np.ndarray], None]
    progress: Progress


def encode_here(work: Work) -> None:
    """All jobs in this process."""
    encoder = ShardEncoder(work.data, work.load(0))
    work.keep_empty(encoder.empty)
    for job in work.jobs:
        work.progress.finish(encoder.encode(job.url, job.path, work.progress.advance))


def encode_among_ranks(work: Work, team: Team) -> None:
    """This rank's share of the jobs; returns when all ranks are through.

    Raises:
        SystemExit: another rank failed, and said why.
    """
    before = work.progress.samples, work.progress.shards

    def advance(num_samples: int) -> None:
        team.count("samples", num_samples)
        look()

    def look() -> None:
        work.progress.show(before[0] + team.count("samples"), before[1] + team.count("shards"))

    try:
        encoder = ShardEncoder(work.data, work.load(team.local_rank))
        if team.leads:
            work.keep_empty(encoder.empty)
        while not team.failed and (ticket := team.ticket()) < len(work.jobs):
            job = work.jobs[ticket]
            record = encoder.encode(job.url, job.path, advance)
            work.progress.finish(record)
            _bound(work.data, team.count("broken", len(record["left_out"]["broken"])))
            team.count("shards", 1)
    except BaseException:
        team.fail()
        raise
    team.wait(look)
    if team.leads:
        look()


def _bound(data: Data, num_broken: int) -> None:
    if data.broken == "skip" and num_broken > data.max_broken:
        raise UserError(f"{num_broken} broken samples, more than data.max_broken={data.max_broken}")


def encode_in_processes(work: Work) -> None:
    """Each job in one of `data.encode_workers` processes, each with an encoder of its own."""
    # Spawned, not forked: the parent may already hold a CUDA context.
    context = multiprocessing.get_context("spawn")
    started, samples = context.Value("q", 0), context.Value("q", 0)
    data, progress, before = work.data, work.progress, work.progress.samples
    num_workers = max(1, min(data.encode_workers, len(work.jobs)))
    with ProcessPoolExecutor(num_workers, context, _start_worker, (data, work.load, started, samples)) as executor:
        try:
            empty = executor.submit(_empty_in_worker)
            pending = {executor.submit(_encode_in_worker, job) for job in work.jobs}
            work.keep_empty(empty.result())
            for record in _as_completed(pending, lambda: progress.show(before + samples.value, progress.shards)):
                progress.finish(record)
        except BrokenProcessPool as error:
            raise UserError(
                f"one of data.encode_workers={data.encode_workers} processes was killed, for want of memory perhaps: "
                "start fewer; the same command continues"
            ) from error
        except BaseException:
            executor.shutdown(cancel_futures=True)
            raise


def _as_completed(pending: set[Future[dict[str, Any]]], look: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """Results as they come; `look` is called now and then."""
    while pending:
        done, pending = wait(pending, _LOOK_S, FIRST_COMPLETED)
        look()
        yield from (job.result() for job in done)


@dataclass
class _Worker:
    """What a process of `encode_in_processes` holds. samples: done by all of them."""

    encoder: ShardEncoder
    samples: Synchronized[int]

    def advance(self, num_samples: int) -> None:
        with self.samples.get_lock():
            self.samples.value += num_samples


_worker: list[_Worker] = []


def _start_worker(data: Data, load: Load, started: Synchronized[int], samples: Synchronized[int]) -> None:
    end_with_spawner()
    torch.set_num_threads(1)
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    _worker.append(_Worker(ShardEncoder(data, load(number)), samples))


def _encode_in_worker(job: Job) -> dict[str, Any]:
    return _worker[0].encoder.encode(job.url, job.path, _worker[0].advance)


def _empty_in_worker() -> np.ndarray:
    return _worker[0].encoder.empty
