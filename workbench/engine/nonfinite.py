"""Steps that were not taken because their gradient was not finite: counted and named, and too many end the run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from workbench.common.errors import UserError

MAX_PENDING = 24
"""Flags that may wait to be read: a few updates. Reading an old one makes nobody wait."""
NAMED = 4


@dataclass(frozen=True)
class _Flag:
    """finite: on the host, valid once `arrived` (None: already)."""

    finite: Tensor
    arrived: Any
    role: str
    update: int
    sample_ids: tuple[str, ...]


class Skips:
    """Reads whether steps were finite without making the host wait for the device: each flag is copied to pinned memory
    behind the step, and read when it has arrived.

    most: steps that may be skipped in a run. say: prints a line for each skipped step.
    """

    def __init__(self, most: int, say: Callable[[str], None]) -> None:
        self.most = most
        self.say = say
        self._count = 0
        self._pending: deque[_Flag] = deque()

    def note(self, finite: Tensor, role: str, update: int, sample_ids: Sequence[str]) -> None:
        """Take in the flag () of one step.

        Raises:
            UserError: more than `most` steps, this one or earlier ones, were skipped.
        """
        named, arrived = tuple(sample_ids[:NAMED]), None
        if finite.is_cuda:
            host = torch.empty((), dtype=finite.dtype, pin_memory=True)
            host.copy_(finite, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
            finite = host
        self._pending.append(_Flag(finite, arrived, role, update, named))
        while self._pending and self._is_due(self._pending[0]):
            self._read()

    def count(self) -> int:
        """Steps skipped so far, all noted ones read: this waits for the device.

        Raises:
            UserError: too many.
        """
        while self._pending:
            self._read()
        return self._count

    def restart(self, count: int) -> None:
        """Go on from a count."""
        self._pending.clear()
        self._count = count

    def _is_due(self, flag: _Flag) -> bool:
        return flag.arrived is None or len(self._pending) > MAX_PENDING or flag.arrived.query()

    def _read(self) -> None:
        flag = self._pending.popleft()
        if flag.arrived is not None:
            flag.arrived.synchronize()
        if bool(flag.finite):
            return
        self._count += 1
        line = (
            f"non-finite gradient of the {flag.role} at update {flag.update} (samples {', '.join(flag.sample_ids)}, "
            "...): step not taken"
        )
        self.say(line)
        if self._count > self.most:
            raise UserError(
                f"{line}; {self._count} such steps are too many: lower the learning rate and start again in a new "
                "trainer.folder, or raise trainer.max_skipped_updates to continue this run"
            )
