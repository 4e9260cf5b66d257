"""A study's storage in one file that any file system shared by hosts can hold: Optuna's journal, and signs of life of
its trials in files next to it.

    FILE  FILE.lock (Optuna's, while a process writes)  FILE.guard  FILE.heartbeats/TRIAL

All times are those of the file system, so that the clocks of hosts may differ.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from studies.machine.intervals import Intervals
from workbench.common.errors import UserError

PREFIX = "journal:"


class WholeLines(JournalFileBackend):
    """A file of lines that are whole or not there: what a full disk cut off is taken back, before the next line would
    make one of two halves."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock = path, JournalFileOpenLock(str(path))
        super().__init__(str(path), self.lock)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        content = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        self.lock.acquire()
        try:
            with self.path.open("r+b", buffering=0) as file:
                end = _end_of_lines(file)
                try:
                    file.truncate(end)
                    file.seek(end)
                    if file.write(content) != len(content):
                        raise OSError(28, os.strerror(28), str(self.path))
                    os.fsync(file.fileno())
                except BaseException:
                    file.truncate(end)
                    raise
        finally:
            self.lock.release()


def _end_of_lines(file: Any) -> int:
    """Where the last whole line ends."""
    end: int = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


class Journal(JournalStorage, BaseHeartbeat):
    """Optuna's journal storage, with the heartbeats that it lacks."""

    def __init__(self, path: Path, intervals: Intervals) -> None:
        self.path, self.intervals = path, intervals
        self.beats = path.with_name(f"{path.name}.heartbeats")
        self.beats.mkdir(parents=True, exist_ok=True)
        super().__init__(WholeLines(path))

    def record_heartbeat(self, trial_id: int) -> None:
        (self.beats / str(trial_id)).touch()

    def get_heartbeat_interval(self) -> int:
        return self.intervals.heartbeat

    def get_heartbeat_stale_trial_callback(self) -> Callable[[optuna.Study, FrozenTrial], None] | None:
        return None

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        if not running:
            return []
        now = self._now()
        return [trial._trial_id for trial in running if now - self._last_beat(trial) > self.intervals.grace]

    def _now(self) -> float:
        """Seconds since 1970 by the file system's clock."""
        probe = self.beats / f".now-{os.getpid()}"
        probe.touch()
        return probe.stat().st_mtime

    def _last_beat(self, trial: FrozenTrial) -> float:
        try:
            return (self.beats / str(trial._trial_id)).stat().st_mtime
        except FileNotFoundError:
            # Heartbeats that someone deleted: a trial that lives makes a new one before long.
            started = trial.datetime_start or datetime.fromtimestamp(time.time())
            return started.timestamp()


def open_journal(address: str, intervals: Intervals) -> Journal:
    """The storage behind `journal:FILE`.

    Raises: UserError for a file that is no journal, or that cannot be written.
    """
    name = address.removeprefix(PREFIX)
    path = Path(name)
    if not name or path.is_dir():
        raise UserError(f"storage={address} names no file: give journal:FILE, on a disk that all hosts share")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _require_journal(path)
        return Journal(path, intervals)
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(f"{path} is damaged, or no journal of Optuna ({type(error).__name__}): bring it back, or "
                        "name another file") from error  # fmt: skip
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): name another file in storage=") from error


def _require_journal(path: Path) -> None:
    """A file of something else must not be taken for an empty journal, whose first line was cut off, and mended."""
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            first = file.readline(1 << 20)
        if not first.endswith(b"\n") or "op_code" not in json.loads(first):
            raise ValueError("the first line is none of a journal")


def is_journal(storage: BaseStorage | str) -> bool:
    """Whether a storage, or the address of one, is a journal."""
    return storage.startswith(PREFIX) if isinstance(storage, str) else isinstance(storage, Journal)
