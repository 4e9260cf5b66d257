"""A process that ends with the one that started it, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from types import ModuleType, TracebackType
from typing import Any, TypeVar

Result = TypeVar("Result")
_LOOK_S = 1.0


def end_with_parent() -> None:
    """From now on end this process once its parent is gone, killed or not. A rank that waits for another on a GPU would
    wait for half an hour, and keep its memory."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def end_with_spawner() -> None:
    """The same for a worker of a pool of processes, which would wait for work for ever, and keep its GPU's memory."""
    threading.Thread(target=_wait_for_the_spawner, daemon=True).start()


class _Process(SpawnProcess):
    """A spawned process that does not read the script which the first process runs, as one is made to: without a guard
    that would run the script again. What its tasks need they find in modules."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        script = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            return SpawnProcess._Popen(process_obj)
        finally:
            sys.modules["__main__"] = script


class _DeafProcess(_Process):
    """One that an interrupt from a keyboard, which goes to all, does not end."""

    @staticmethod
    def _Popen(process_obj: BaseProcess) -> Any:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return _Process._Popen(process_obj)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class _Context(SpawnContext):
    Process = _Process


class _DeafContext(SpawnContext):
    Process = _DeafProcess


def spawned_pool(workers: int, *, deaf: bool = False) -> ProcessPoolExecutor:
    """Processes that end with this one. They are spawned, not forked: this one may hold a CUDA context, and forking a
    process that runs threads may deadlock. deaf: for short tasks, whose processes leave interrupts to this one."""
    return ProcessPoolExecutor(workers, _DeafContext() if deaf else _Context(), end_with_spawner)


class Helpers:
    """Processes for short tasks, started at the first of them, in a `with` block at whose end they end. Where none can
    be started, or one is killed, for want of memory perhaps, this process does what is left. workers: below 2, this
    process does it all."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Helpers:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        self._end()

    def _end(self, wait: bool = True) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait, cancel_futures=True)
            self._pool = None

    def map(self, task: Callable[..., Result], *columns: Sequence[Any], at_once: int) -> Iterator[Result]:
        """Results of `task` over the columns, in order. at_once: tasks that a process is given in one go."""
        num_done = 0
        if self.workers > 1:
            try:
                self._pool = self._pool or spawned_pool(self.workers, deaf=True)
                for result in self._pool.map(task, *columns, chunksize=at_once):
                    yield result
                    num_done += 1
            except (BrokenProcessPool, OSError):
                self._end(wait=False)
        yield from map(task, *(column[num_done:] for column in columns))


def _wait_for_the_spawner() -> None:
    spawner = multiprocessing.parent_process()
    assert spawner is not None
    spawner.join()
    os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)
