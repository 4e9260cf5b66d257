"""A process that ends with the one that started it, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

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


def _wait_for_the_spawner() -> None:
    spawner = multiprocessing.parent_process()
    assert spawner is not None
    spawner.join()
    os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)
