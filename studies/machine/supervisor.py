"""Starts the workers of one `workbench study` command, replaces those that die, and shows all of them at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from studies.machine.progress import Progress
from studies.machine.session import Plan, StudySession
from studies.machine.trial import INTERRUPTED, SECONDS_TO_STOP
from studies.machine.trial_queue import Call
from studies.machine.workers import Task, line_of
from workbench.common.errors import UserError

WORKER = (sys.executable, "-c", "from studies.machine.workers import main; main()")
DEATHS_PER_WORKER = 3
MENDABLE = 2


@dataclass
class Started:
    """A worker's process and its name in the storage."""

    index: int
    token: str
    process: subprocess.Popen[str]


def supervise(
    name: str, arguments: list[str], session: StudySession, call: Call, command: Sequence[str], progress: Progress
) -> None:
    """Run the plan's number of workers until each has found nothing more to do.

    Raises:
        UserError: a worker named why it cannot go on, or workers die again and again.
        KeyboardInterrupt: here or in a worker; all workers have stopped then.
    """

    def start(index: int) -> Started:
        return _start(
            index,
            Task(name, arguments, uuid.uuid4().hex, call, session.plan.noise_floor, session.intervals),
            session.plan,
            command,
        )

    workers = [start(index) for index in range(session.plan.options.workers)]
    deaths = 0
    try:
        with progress.bars:
            while workers:
                time.sleep(session.intervals.supervisor)
                progress.update()
                for worker in [w for w in workers if w.process.poll() is not None]:
                    workers.remove(worker)
                    if worker.process.returncode == 0:
                        continue
                    _raise_if_final(worker, session.plan)
                    session.retry(lambda token=worker.token: session.queue(call).give_up(token))  # type: ignore[misc]
                    deaths += 1
                    if deaths > DEATHS_PER_WORKER * session.plan.options.workers:
                        raise UserError(f"workers die again and again: see {_log(session.plan, worker.index)}")
                    progress.console.print(f"worker {worker.index} died; another takes its place")
                    workers.append(start(worker.index))
    finally:
        _stop(workers)


def _raise_if_final(worker: Started, plan: Plan) -> None:
    """What a worker that ended by itself has to say."""
    match worker.process.returncode:
        case code if code == INTERRUPTED:
            raise KeyboardInterrupt
        case code if code == MENDABLE:
            lines = [line for line in _log(plan, worker.index).read_text().splitlines() if line.startswith("error: ")]
            raise UserError(lines[-1].removeprefix("error: ") if lines else "a worker stopped without a word")


def _start(index: int, task: Task, plan: Plan, command: Sequence[str]) -> Started:
    with _log(plan, index).open("a") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, env=environment(index, plan)
        )
    assert process.stdin is not None
    # A worker that died at once is noticed by its exit code.
    with suppress(BrokenPipeError):
        process.stdin.write(line_of(task))
        process.stdin.flush()
    return Started(index, task.token, process)


def environment(index: int, plan: Plan) -> dict[str, str]:
    """This process's, with the worker's own GPUs (in turn, where they are fewer than workers) and its share of CPUs."""
    found = dict(os.environ)
    options, per_trial = plan.options, plan.base.trainer.devices
    if options.devices:
        slots = len(options.devices) // per_trial
        first = index % slots * per_trial
        found["CUDA_VISIBLE_DEVICES"] = ",".join(options.devices[first : first + per_trial])
    if options.workers > 1:
        found.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.workers)))
    return found


def _stop(workers: Sequence[Started]) -> None:
    """A closed input means stop; the trials save their state first."""
    for worker in workers:
        assert worker.process.stdin is not None
        with suppress(BrokenPipeError):
            worker.process.stdin.close()
    deadline = time.monotonic() + SECONDS_TO_STOP + 10
    for worker in workers:
        try:
            worker.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.process.wait()


def _log(plan: Plan, index: int) -> Path:
    return plan.options.folder / f"worker-{index}.log"
