"""Seconds by phase of a long job, on the wall and on all processors together."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Adds up the time of named phases that do not overlap. CPU time counts all threads, and processes that ended."""

    def __init__(self) -> None:
        self._wall: dict[str, float] = {}
        self._cpu: dict[str, float] = {}
        self._began = (time.perf_counter(), _cpu_s())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block; on a GPU until the work that it queued is done."""
        _synchronise()
        wall, cpu = time.perf_counter(), _cpu_s()
        try:
            yield
        finally:
            _synchronise()
            self._wall[name] = self._wall.get(name, 0.0) + time.perf_counter() - wall
            self._cpu[name] = self._cpu.get(name, 0.0) + _cpu_s() - cpu

    def seconds(self) -> dict[str, dict[str, float]]:
        """Phase -> `wall` and `cpu` seconds, `other` for what no phase timed, `total` since the clock was made."""
        wall, cpu = time.perf_counter() - self._began[0], _cpu_s() - self._began[1]
        phases = {**self._wall, "other": wall - sum(self._wall.values()), "total": wall}
        cpus = {**self._cpu, "other": cpu - sum(self._cpu.values()), "total": cpu}
        return {name: {"wall": round(phases[name], 3), "cpu": round(cpus[name], 3)} for name in phases}


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _synchronise() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
