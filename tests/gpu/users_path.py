"""The path of a user with a model of any size, in the commands that one types:

    python tests/gpu/users_path.py OUT [size=full] [processes=2] [then=1] [roles=full] [RECIPE.KEY=value ...]

mkfolder -> pack -> encode -> distill, killed after a checkpoint -> distill, killed again -> distill on `then` processes
to the end -> export -> a picture by stock diffusers, in a process that never sees this package. Prints what each step
took, what the runs say of compiling and memory, and the seconds from the last update to a student's folder. A GPU is
used where there is one; recipe keys (`trainer.strategy=fsdp`) go to every command. What stops the script stops its
command.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from safetensors.torch import load_file
from watched import Commands, read_words

from workbench.common.tables import stdout_console

FULL: dict[str, Any] = {"resolution": 1024, "roles": "lora", "updates": 6}
SAMPLES = {"t2i": {"landscape": 4, "text": 2}, "edit": {"object": 4}}
STOCK = Path(__file__).with_name("stock_picture.py")


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
class Walk:
    """The commands over one folder, and what they took."""

    out: Path
    options: Options
    overrides: list[str]
    commands: Commands

    @property
    def run(self) -> Path:
        return self.out / "run"

    def walk(self) -> None:
        """Every step; raises where one does not do what it should."""
        options, every = self.options, max(1, self.options.updates // 4)
        recipe = self.out / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(self._recipe(every)))
        workbench = [sys.executable, "-m", "workbench"]
        self.commands.prepare([f"size={options.size}", *shlex.split(options.folder)], recipe, self.overrides)

        def distill(processes: int) -> list[str]:
            return [*workbench, "distill", str(recipe), *self.overrides, f"trainer.devices={processes}"]

        then = options.then or options.processes
        self._kill_after("distill", distill(options.processes), every)
        resumed = self._kill_after("resume", distill(options.processes), 2 * every)
        assert f"at update {every} of" in resumed, resumed
        ended = self.commands.finish_run("resume to the end", distill(then), self.run)
        assert f"at update {2 * every} of" in ended, ended
        logged = [json.loads(line)["update"] for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        assert logged == [*range(1, options.updates + 1)], logged
        self.commands.finish("export", [*workbench, "export", str(self.run), str(self.out / "exported")])
        self._compare()
        picture = [str(self.out / "exported"), str(self.out / "picture.png"), str(options.resolution)]
        self.commands.finish("stock diffusers", [sys.executable, str(STOCK), *picture], cwd=self.out)
        assert (self.out / "picture.png").stat().st_size > 0

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

    def _kill_after(self, name: str, command: list[str], update: int) -> str:
        """Kill a run, with all its processes, once it has the checkpoint of `update`; its output."""
        checkpoint = self.run / "checkpoints" / f"update-{update:06d}"
        return self.commands.kill(name, command, checkpoint.is_dir)


def main(words: list[str]) -> None:
    """Command line: OUT [key=value ...]."""
    out, options, overrides = read_words(words, Options, FULL, __doc__)
    commands = Commands.in_new_folder(out)
    try:
        Walk(out, options, overrides, commands).walk()
    finally:
        stdout_console().print(commands.said(), markup=False, soft_wrap=True)
        stdout_console().print(commands.table(f"{options}"))


if __name__ == "__main__":
    main(sys.argv[1:])
