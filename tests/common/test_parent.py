"""Processes end with those that started them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

POOL = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from workbench.common.parent import end_with_spawner
with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), end_with_spawner) as executor:
    print(executor.submit(os.getpid).result(), flush=True)
    time.sleep(60)
"""


def test_workers_of_a_pool_end_with_a_process_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", POOL], stdout=subprocess.PIPE, text=True) as spawner:
        assert spawner.stdout is not None
        worker = int(spawner.stdout.readline())
        os.kill(worker, 0)
        spawner.kill()
    deadline = time.monotonic() + 20
    while _is_running(worker):
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.02)


def _is_running(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
