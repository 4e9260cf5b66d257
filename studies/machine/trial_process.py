"""Runs a trial in a process of its own: forked off one that has the libraries read already, and alone in its folder.

A process for each trial gives every trial clean devices, and whichever way it dies its worker lives; a fork of a
prepared process starts within a tenth of a second, where a fresh one reads libraries for many.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import Thread
from typing import Any

from filelock import lock_descriptor

from studies.machine.trial import BUSY, INTERRUPTED, SECONDS_TO_STOP, lock_of
from workbench.common.files import write_bytes
from workbench.recipe.config import Recipe
from workbench.recipe.reading import load, to_yaml

Execute = Callable[[Recipe, Path], dict[str, Any]]
"""Runs a recipe into a folder and returns its metrics."""


class Stopped(Exception):
    """A trial that stopped on request."""


class ProcessFailed(Exception):
    """A trial that failed in its own process; its message is what the study records."""


class TrialProcess:
    """`execute` behind a fork. It must be a function of an importable module. libraries: read before the
    first fork."""

    def __init__(self, execute: Execute, libraries: Sequence[str] = ()) -> None:
        self.execute = execute
        # The default CUDA check initialises the driver, which forks must not inherit.
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([*libraries, execute.__module__, __name__])

    def prepare(self) -> None:
        """Read the libraries now, while no trial waits for them."""
        process = self.context.Process(target=_nothing)
        process.start()
        process.join()

    def __call__(
        self, recipe: Recipe, folder: Path, should_stop: Callable[[], bool], interval_s: float
    ) -> dict[str, Any]:
        """The trial's metrics. should_stop: asked every `interval_s` seconds; once it says so, the trial is stopped.

        Raises: ProcessFailed with the trial's last message, Stopped, KeyboardInterrupt.
        """
        write_bytes(folder.with_suffix(".yaml"), to_yaml(recipe).encode())
        receiver, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_child, args=(self.execute, str(folder), sender))
        process.start()
        sender.close()
        stopped = False
        try:
            while process.is_alive() and not receiver.poll(interval_s):
                if not stopped and should_stop():
                    stopped = True
                    _signal(process, signal.SIGINT)
            answer = _received(receiver)
            process.join(SECONDS_TO_STOP)
        finally:
            end(process)
        return _outcome(answer, process.exitcode, stopped, folder)


def _nothing() -> None:
    """What the first fork does."""


def end(process: ForkServerProcess) -> None:
    """Let a trial save its state, then make sure that nothing of it is left: ranks of a sharded one live on by
    themselves."""
    if process.is_alive():
        _signal(process, signal.SIGINT)
        process.join(SECONDS_TO_STOP)
    _signal(process, signal.SIGKILL)
    process.join()


def _signal(process: ForkServerProcess, what: signal.Signals) -> None:
    """To the trial and all that it started."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, what)
    except ProcessLookupError:
        # It has not made its group yet, or all of it is gone.
        if process.is_alive():
            os.kill(process.pid, what)


def _received(receiver: Connection) -> dict[str, Any] | None:
    """The child's answer, or None if it died without one."""
    try:
        answer: dict[str, Any] | None = json.loads(receiver.recv_bytes()) if receiver.poll() else None
    except EOFError:
        return None
    return answer


def _outcome(answer: dict[str, Any] | None, exitcode: int | None, stopped: bool, folder: Path) -> dict[str, Any]:
    match answer:
        case {"metrics": dict(metrics)}:
            return metrics
        case _ if stopped:
            raise Stopped
        case {"interrupted": True}:
            raise KeyboardInterrupt
        case {"error": str(error)}:
            raise ProcessFailed(error)
        case _ if exitcode == -signal.SIGKILL:
            raise ProcessFailed("killed by the system (SIGKILL): out of memory, most likely")
        case _:
            raise ProcessFailed(f"ended with {exitcode} without a word; see {folder.with_suffix('.log')}")


def _child(execute: Execute, place: str, sender: Connection) -> None:
    """The trial's process: alone in its run folder, its output in a log, killed with its worker."""
    os.setsid()
    Thread(target=_die_with_the_worker, daemon=True).start()
    folder = Path(place)
    resolved = folder.with_suffix(".yaml")
    _write_into(folder.with_suffix(".log"))
    # The command that the run folder's environment.json records.
    sys.argv = ["workbench", "distill", str(resolved)]
    with lock_of(folder).open("a") as lock:
        if lock_descriptor(lock.fileno(), blocking=False):
            # The ranks of a sharded trial inherit the lock, and hold it for as long as one of them writes.
            os.set_inheritable(lock.fileno(), True)
            answer = _answer(execute, resolved, folder)
        else:
            answer = {"error": BUSY}
    with suppress(BrokenPipeError):
        sender.send_bytes(json.dumps(answer).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the libraries must not keep a finished process alive.
    os._exit(INTERRUPTED if "interrupted" in answer else "error" in answer)


def _answer(execute: Execute, resolved: Path, folder: Path) -> dict[str, Any]:
    try:
        return {"metrics": execute(load(resolved), folder)}
    except BaseException as error:
        # Lightning's trainer turns the interrupt into a SystemExit of its own.
        if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
            return {"interrupted": True}
        traceback.print_exc()
        return {"error": one_line(error)}


def one_line(error: BaseException) -> str:
    """An error as a study records it."""
    message = " ".join(str(error).split())
    return message if isinstance(error, ProcessFailed) else f"{type(error).__name__}: {message}"


def _write_into(log: Path) -> None:
    """Everything that this process and its own print, from now on."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _die_with_the_worker() -> None:
    worker = multiprocessing.parent_process()
    assert worker is not None
    worker.join()
    os.killpg(0, signal.SIGKILL)
