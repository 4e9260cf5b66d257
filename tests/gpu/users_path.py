"""The path of a user with a model of any size, in the commands that one types:

    python tests/gpu/users_path.py OUT [size=full] [processes=2] [then=1] [roles=full] [RECIPE.KEY=value ...]

mkfolder -> pack -> encode -> distill, killed after a checkpoint -> distill, killed again -> distill on `then` processes
to the end -> export -> a picture by stock diffusers, in a process that never sees this package. Prints what each step
took, what the runs say of compiling and memory, and the seconds from the last update to a student's folder. A GPU is
used where there is one; recipe keys (`trainer.strategy=fsdp`) go to every command. What stops the script stops its
command.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
import yaml
from safetensors.torch import load_file

from workbench.common.arguments import read_options
from workbench.common.errors import UserError
from workbench.common.tables import Table, stdout_console

FULL: dict[str, Any] = {"resolution": 1024, "roles": "lora", "updates": 6}
SAMPLES = {"t2i": {"landscape": 4, "text": 2}, "edit": {"object": 4}}
STOCK = Path(__file__).with_name("stock_picture.py")
POLL_S = 0.2
SAID = re.compile(
    r"^(trainer\.strategy=|prepared |peak memory |the student of update |update \d+: \d+ graphs compiled).*", re.M
)
"""Lines of a run that its figures are read from."""
_LIBC, _DIES_WITH_PARENT = ctypes.CDLL(None), 1


@dataclass(frozen=True)
class Options:
    """The defaults are those of `size=tiny`. then: processes of the last part, 0 for as many as before. folder: more
    options of mkfolder, such as `blocks=4 file=1GB`."""

    size: Literal["tiny", "full"] = "tiny"
    processes: int = 1
    then: int = 0
    roles: Literal["lora", "full"] = "full"
    resolution: int = 64
    updates: int = 12
    folder: str = ""


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
class Walk:
    """The commands over one folder, and what they took."""

    out: Path
    options: Options
    overrides: list[str]
    steps: list[Step] = field(default_factory=list)

    @property
    def run(self) -> Path:
        return self.out / "run"

    def walk(self) -> None:
        """Every step; raises where one does not do what it should."""
        options, every = self.options, max(1, self.options.updates // 4)
        recipe = self.out / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(self._recipe(every)))
        python = [sys.executable, "-m"]
        workbench = [*python, "workbench"]
        folder = shlex.split(options.folder)
        self._finish(
            "mkfolder", [*python, "workbench.bench.mkfolder", str(self.out / "model"), *self._sizes(), *folder]
        )
        for command in ("pack", "encode"):
            self._finish(command, [*workbench, command, str(recipe), *self.overrides])

        def distill(processes: int) -> list[str]:
            return [*workbench, "distill", str(recipe), *self.overrides, f"trainer.devices={processes}"]

        then = options.then or options.processes
        self._kill_after("distill", distill(options.processes), every)
        resumed = self._kill_after("resume", distill(options.processes), 2 * every)
        assert f"at update {every} of" in resumed, resumed
        ended = self._finish("resume to the end", distill(then))
        assert f"at update {2 * every} of" in ended, ended
        logged = [json.loads(line)["update"] for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        assert logged == [*range(1, options.updates + 1)], logged
        appeared = (self.run / "student").stat().st_ctime
        self.steps[-1].export_s = appeared - (self.run / "metrics.jsonl").stat().st_mtime
        self._finish("export", [*workbench, "export", str(self.run), str(self.out / "exported")])
        self._compare()
        picture = [str(self.out / "exported"), str(self.out / "picture.png"), str(options.resolution)]
        self._finish("stock diffusers", [sys.executable, str(STOCK), *picture], cwd=self.out)
        assert (self.out / "picture.png").stat().st_size > 0

    def _sizes(self) -> list[str]:
        return [f"size={self.options.size}"]

    def _recipe(self, every: int) -> dict[str, Any]:
        options, gpu = self.options, torch.cuda.is_available()
        return {
            "model": {"folder": str(self.out / "model"), "roles": options.roles, "gradient_checkpointing": True},
            "data": {
                "raw": str(self.out / "raw"),
                "encoded": str(self.out / "encoded"),
                "resolution": options.resolution,
                "samples": SAMPLES,
                "num_workers": 0,
                "encode_batch_size": 2,
            },
            "mixture": {"batch_size": 4, "micro_batch_size": 1},
            "dmd": {"fake_updates": 1},
            # A resumed run draws the teacher again.
            "evaluation": {"teacher_steps": 4},
            "trainer": {
                "folder": str(self.run),
                "updates": options.updates,
                "precision": "bf16-mixed" if gpu else "32-true",
                "log_every": 1,
                "checkpoint_every": every,
                "sample_every": 10 * options.updates,
            },
        }

    def _compare(self) -> None:
        """What `export` reads from the last checkpoint is what the run itself delivered."""
        ours, exported = (folder / "transformer" for folder in (self.run / "student", self.out / "exported"))
        names = sorted(path.name for path in ours.glob("*.safetensors"))
        assert names == sorted(path.name for path in exported.glob("*.safetensors"))
        for name in names:
            left, right = load_file(ours / name), load_file(exported / name)
            assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left), name

    def _finish(self, name: str, command: list[str], cwd: Path | None = None) -> str:
        """Run a command to its end; its output."""
        code, output = self._watched(name, command, lambda: False, cwd)
        assert code == 0, f"{name}: {shlex.join(command)}\n{output[-4000:]}"
        return output

    def _kill_after(self, name: str, command: list[str], update: int) -> str:
        """Kill a run, with all its processes, once it has the checkpoint of `update`; its output."""
        checkpoint = self.run / "checkpoints" / f"update-{update:06d}"
        code, output = self._watched(f"{name}, killed", command, checkpoint.is_dir)
        assert code == -signal.SIGKILL, f"{name} ended before it was killed ({code}):\n{output[-4000:]}"
        return output

    def _watched(
        self, name: str, command: list[str], kills: Callable[[], bool], cwd: Path | None = None
    ) -> tuple[int, str]:
        step, log = Step(name), self.out / f"{len(self.steps)}.log"
        self.steps.append(step)
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
            while process.poll() is None:
                if kills():
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                time.sleep(0.01)
        finally:
            ended.set()
            for watcher in watchers:
                watcher.join()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        step.seconds = time.perf_counter() - started
        output = log.read_text()
        step.said = [found[0] for found in SAID.finditer(output)]
        return process.returncode, output

    def table(self) -> Table:
        table = Table(title=f"{self.options}", title_justify="left")
        columns = ("step", "s", "last update to student, s", "host RSS, a process, GiB", "GPU memory, GiB")
        for column in columns:
            table.add_column(column, justify="left" if column == "step" else "right")
        for step in self.steps:
            gpu = f"{step.gpu_mib / 1024:.1f}" if step.gpu_mib else "-"
            export = "" if step.export_s is None else f"{step.export_s:.1f}"
            table.add_row(step.name, f"{step.seconds:.1f}", export, f"{step.rss / 2**30:.2f}", gpu)
        return table

    def said(self) -> str:
        """Lines of the runs that figures are read from, by step."""
        return "\n".join(f"{step.name}: {line}" for step in self.steps for line in step.said)


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


def main(words: list[str]) -> None:
    """Command line: OUT [key=value ...]."""
    if not words or "=" in words[0]:
        raise SystemExit(__doc__)
    overrides = [word for word in words[1:] if "." in word.partition("=")[0]]
    own = [word for word in words[1:] if word not in overrides]
    try:
        options = read_options(Options, own, FULL if "size=full" in own else None)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    out = Path(words[0]).absolute()
    try:
        out.mkdir(parents=True)
    except FileExistsError:
        raise SystemExit(f"error: {out} is there already: name a new folder") from None
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda stopped, _: sys.exit(128 + stopped))
    path = Walk(out, options, overrides)
    try:
        path.walk()
    finally:
        stdout_console().print(path.said(), markup=False, soft_wrap=True)
        stdout_console().print(path.table())


if __name__ == "__main__":
    main(sys.argv[1:])
