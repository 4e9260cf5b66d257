"""Seconds by phase of a long job: wall time, and CPU time over all processors."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Adds up the time of named phases; a phase inside another one counts for the outer one. CPU time counts all
    threads, and processes that ended.

    wall_s: wall seconds so far of each phase.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forget all times, and count from now on."""
        self.wall_s: dict[str, float] = {}
        self._cpu: dict[str, float] = {}
        self._began = (time.perf_counter(), _cpu_s())
        self._in_phase = False

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block; on a GPU until the work that it queued is done."""
        if self._in_phase:
            yield
            return
        self._in_phase = True
        _synchronise()
        wall, cpu = time.perf_counter(), _cpu_s()
        try:
            yield
        finally:
            self._in_phase = False
            _synchronise()
            self.wall_s[name] = self.wall_s.get(name, 0.0) + time.perf_counter() - wall
            self._cpu[name] = self._cpu.get(name, 0.0) + _cpu_s() - cpu

    def seconds(self) -> dict[str, dict[str, float]]:
        """Phase -> `wall` and `cpu` seconds, `other` for what no phase timed, `total` since the clock was made."""
        wall, cpu = time.perf_counter() - self._began[0], _cpu_s() - self._began[1]
        phases = {**self.wall_s, "other": wall - sum(self.wall_s.values()), "total": wall}
        cpus = {**self._cpu, "other": cpu - sum(self._cpu.values()), "total": cpu}
        return {name: {"wall": round(phases[name], 3), "cpu": round(cpus[name], 3)} for name in phases}


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
