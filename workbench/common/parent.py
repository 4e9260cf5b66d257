"""A process that ends with the one that started it, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor

_LOOK_S = 1.0


def end_with_parent() -> None:
    """From now on end this process once its parent is gone, killed or not. A rank that waits for another on a GPU would
    wait for half an hour, and keep its memory."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def end_with_spawner() -> None:
    """The same for a worker of a pool of processes, which would wait for work for ever, and keep its GPU's memory."""
    threading.Thread(target=_wait_for_the_spawner, daemon=True).start()


def spawned_pool(workers: int) -> ProcessPoolExecutor:
    """Processes that end with this one. They are spawned, not forked: this one may hold a CUDA context, and forking a
    process that runs threads may deadlock."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_spawner)


def _wait_for_the_spawner() -> None:
    spawner = multiprocessing.parent_process()
    assert spawner is not None
    spawner.join()
    os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)
