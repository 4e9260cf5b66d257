"""Processes end with those that started them."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from workbench.common import parent
from workbench.common.parent import Helpers

POOL = """
import os, time
from workbench.common.parent import spawned_pool
with spawned_pool(1) as executor:
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


UNGUARDED = """
import os, signal, sys
from workbench.common.parent import spawned_pool
print("once")
with spawned_pool(2, deaf=True) as executor:
    worker = executor.submit(os.getpid).result()
    os.kill(worker, signal.SIGINT)
    assert list(executor.map(abs, range(-9, 0))) == list(range(9, 0, -1)) and worker != os.getpid()
with spawned_pool(1) as executor:
    print(executor.submit(signal.pthread_sigmask, signal.SIG_BLOCK, ()).result() == set())
"""


def test_a_script_without_a_guard_is_run_once_and_an_interrupt_of_its_workers_ends_none(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "once\nTrue\n", "")


def _killed_at(number: int, fatal: int) -> int:
    if number == fatal and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return -number


def test_what_a_killed_helper_leaves_is_done_here() -> None:
    numbers = list(range(40))
    with Helpers(2) as helpers:
        for fatal in (0, 25, 39, -1):
            found = list(helpers.map(_killed_at, numbers, [fatal] * 40, at_once=4))
            assert found == [-number for number in numbers], fatal
        with pytest.raises(ZeroDivisionError):
            list(helpers.map((1).__floordiv__, [1, 0], at_once=1))


def test_without_a_pool_this_process_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(workers: int, deaf: bool) -> NoReturn:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(parent, "spawned_pool", refused)
    for workers in (0, 1, 2):
        with Helpers(workers) as helpers:
            assert list(helpers.map(pow, [2, 3], [3, 2], at_once=1)) == [8, 9]


def _is_running(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
