"""Commands as a user types them, one after another: what each took of time, host and GPU memory."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TextIO, TypeVar

import psutil
import torch

from workbench.common.arguments import read_options
from workbench.common.errors import UserError
from workbench.common.tables import Table

Options = TypeVar("Options")
POLL_S = 0.2
SAID = re.compile(
    r"^(trainer\.strategy=|prepared |peak memory |the student of update |update \d+: \d+ graphs compiled).*", re.M
)
"""Lines of a run that its figures are read from."""
_LIBC, _DIES_WITH_PARENT = ctypes.CDLL(None), 1


@dataclass
class Step:
    """What a command took, and what it said of it. rss: largest resident memory of any of its processes; gpu: most that
    any GPU held. export_s: from the last update to the whole folder of a student."""

    name: str
    seconds: float = 0.0
    rss: int = 0
    gpu_mib: int = 0
    export_s: float | None = None
    said: list[str] = field(default_factory=list)


@dataclass
class Commands:
    """The commands so far. out: folder of their logs. echo: print each line as it comes, with the seconds since the
    first command."""

    out: Path
    echo: bool = False
    steps: list[Step] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def in_new_folder(cls, out: Path) -> Commands:
        """The first of them, over the new folder `out`; what stops this process stops them. Raises: SystemExit if it is
        there."""
        try:
            out.mkdir(parents=True)
        except FileExistsError:
            raise SystemExit(f"error: {out} is there already: name a new folder") from None
        end_on_request()
        return cls(out)

    def prepare(self, folder_words: Sequence[str], recipe: Path, overrides: Sequence[str]) -> None:
        """A folder of random weights, `model` in `out`, by words of mkfolder; then the data, packed and encoded."""
        python = [sys.executable, "-m"]
        self.finish("mkfolder", [*python, "workbench.bench.mkfolder", str(self.out / "model"), *folder_words])
        for command in ("pack", "encode"):
            self.finish(command, [*python, "workbench", command, str(recipe), *overrides])

    def finish_run(self, name: str, command: list[str], run: Path) -> str:
        """A run to its end, with the seconds from its last update to its student's folder; its output. Raises: as
        `finish`."""
        output = self.finish(name, command)
        self.steps[-1].export_s = (run / "student").stat().st_ctime - (run / "metrics.jsonl").stat().st_mtime
        return output

    def finish(self, name: str, command: list[str], cwd: Path | None = None) -> str:
        """Run a command to its end; its output. Raises: SystemExit if it fails."""
        code, output = self._watched(name, command, lambda: False, cwd)
        if code != 0:
            raise SystemExit(self._fault(f"{name} ended with {code}", output))
        return output

    def stop_at(self, name: str, command: list[str], line: str) -> str:
        """Run a command, and kill it once it has printed `line`; its output. Raises: as `kill`."""
        log = self.out / f"{len(self.steps)}.log"
        return self.kill(name, command, lambda: line in log.read_text())

    def kill(self, name: str, command: list[str], due: Callable[[], bool]) -> str:
        """Run a command, and kill it with all its processes once `due`; its output. Raises: SystemExit if it ends
        before."""
        code, output = self._watched(f"{name}, killed", command, due, None)
        if code != -signal.SIGKILL:
            raise SystemExit(self._fault(f"{name} ended with {code} before it was killed", output))
        return output

    def say(self, line: str) -> None:
        """Print a line with the seconds since the first command."""
        print(f"[{time.perf_counter() - self.started:6.1f} s] {line}", flush=True)

    def table(self, title: str) -> Table:
        table = Table(title=title, title_justify="left")
        columns = ("step", "s", "last update to student, s", "host RSS, a process, GiB", "GPU memory, GiB")
        for column in columns:
            table.add_column(column, justify="left" if column == "step" else "right")
        for step in self.steps:
            gpu = f"{step.gpu_mib / 1024:.1f}" if step.gpu_mib else "-"
            export = "" if step.export_s is None else f"{step.export_s:.1f}"
            table.add_row(step.name, f"{step.seconds:.1f}", export, f"{step.rss / 2**30:.2f}", gpu)
        return table

    def said(self) -> str:
        """Lines of the commands that figures are read from, by step."""
        return "\n".join(f"{step.name}: {line}" for step in self.steps for line in step.said)

    def _watched(self, name: str, command: list[str], kills: Callable[[], bool], cwd: Path | None) -> tuple[int, str]:
        step, log = Step(name), self.out / f"{len(self.steps)}.log"
        self.steps.append(step)
        if self.echo:
            self.say(f"{name}: {shlex.join(command)}")
        started = time.perf_counter()
        with log.open("w") as file:
            process = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=partial(_LIBC.prctl, _DIES_WITH_PARENT, signal.SIGKILL),
                cwd=cwd or Path.cwd(),
            )
        ended = threading.Event()
        watchers = [threading.Thread(target=watch, args=(process.pid, step, ended)) for watch in (_rss, _gpu)]
        for watcher in watchers:
            watcher.start()
        try:
            with log.open() as lines:
                while process.poll() is None:
                    self._echo(lines)
                    if kills():
                        os.killpg(process.pid, signal.SIGKILL)
                        process.wait()
                    time.sleep(0.01)
                self._echo(lines)
        finally:
            ended.set()
            for watcher in watchers:
                watcher.join()
            step.seconds = time.perf_counter() - started
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if self.echo:
            self.say(f"{name}: {step.seconds:.1f} s")
        output = log.read_text()
        step.said = [found[0] for found in SAID.finditer(output)]
        return process.returncode, output

    def _fault(self, what: str, output: str) -> str:
        """An error with the end of the output, of which one line is enough where all has been printed."""
        if self.echo:
            return f"error: {what}: {(output.strip().splitlines() or ['it printed nothing'])[-1]}"
        return f"error: {what}:\n{output[-4000:]}"

    def _echo(self, lines: TextIO) -> None:
        for line in lines if self.echo else ():
            self.say(f"  {line.rstrip()}")


def read_words(
    words: Sequence[str], kind: type[Options], full: Mapping[str, Any], usage: str | None
) -> tuple[Path, Options, list[str]]:
    """OUT [key=value ...] [RECIPE.KEY=value ...]: the folder, its options of the dataclass `kind`, the recipe's
    overrides. full: what `size=full` presets. Raises: SystemExit with `usage` without a folder, or with the mistake."""
    if not words or "=" in words[0]:
        raise SystemExit(usage)
    overrides = [word for word in words[1:] if "." in word.partition("=")[0]]
    own = [word for word in words[1:] if word not in overrides]
    try:
        options = read_options(kind, own, full if "size=full" in own else None)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    return Path(words[0]).absolute(), options, overrides


def end_on_request() -> None:
    """Let what a limit of time or a closed terminal sends end this process as an error does: with its command, and its
    table printed."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda stopped, _: sys.exit(128 + stopped))


def _rss(pid: int, step: Step, ended: threading.Event) -> None:
    """Peaks of the process and of all that it starts, as the kernel counts them."""
    while not ended.wait(POLL_S):
        for one in _family(pid):
            try:
                status = Path(f"/proc/{one}/status").read_text()
            except OSError:
                continue
            peaks = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")]
            step.rss = max([step.rss, *peaks])


def _family(pid: int) -> Iterator[int]:
    try:
        process = psutil.Process(pid)
        yield from (pid, *(child.pid for child in process.children(recursive=True)))
    except psutil.Error:
        return


def _gpu(_: int, step: Step, ended: threading.Event) -> None:
    """Memory in use on the GPUs, by whatever process: they are to be idle otherwise."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    while torch.cuda.is_available() and not ended.wait(POLL_S):
        answer = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
        step.gpu_mib = max([step.gpu_mib, *(int(used) for used in answer if used.isdigit())])
