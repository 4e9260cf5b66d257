"""Processes end with those that started them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

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


def _is_running(process: int) -> bool:
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
