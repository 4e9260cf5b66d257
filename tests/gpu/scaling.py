"""LoRA roles on several GPUs against one, by the commands that one types:

    python tests/gpu/scaling.py OUT [size=full] [devices=2] [updates=4] [folder='text_blocks=4'] [RECIPE.KEY=value ...]

mkfolder -> pack -> encode -> distill on all devices, its kernels compiled anew -> the same work a device on one, whose
kernels are compiled already. Prints the seconds of every update, what preparing and the end of each run took, memory,
and how much of `devices` times one the devices do together. The GPUs are to be idle otherwise: a run stores as many
blocks as it finds memory for.
"""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from watched import Commands, read_words

from workbench.common.tables import Table, stdout_console

FULL: dict[str, Any] = {"resolution": 1024, "fake_updates": 5, "folder": "text_blocks=4"}
"""The text encoder is cut short: nothing of it is read while training."""


@dataclass(frozen=True)
class Options:
    """The defaults are those of `size=tiny`. updates: that are measured, after a first one. folder: more options of
    mkfolder."""

    size: Literal["tiny", "full"] = "tiny"
    devices: int = 2
    updates: int = 4
    fake_updates: int = 1
    lora_rank: int = 64
    resolution: int = 64
    folder: str = ""


@dataclass
class Scaling:
    """The commands over one folder."""

    out: Path
    options: Options
    overrides: list[str]
    commands: Commands

    def take(self) -> None:
        """Every step. Raises: SystemExit where one fails."""
        options = self.options
        recipe = self.out / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(self._recipe()))
        self.commands.prepare([f"size={options.size}", *shlex.split(options.folder)], recipe, self.overrides)
        for devices in (options.devices, 1):
            own = [f"trainer.devices={devices}", f"mixture.batch_size={2 * devices}"]
            place = f"trainer.folder={self._run(devices)}"
            command = [sys.executable, "-m", "workbench", "distill", str(recipe), *self.overrides, *own, place]
            self.commands.finish_run(f"distill on {devices}", command, self._run(devices))

    def _run(self, devices: int) -> Path:
        return self.out / f"run-{devices}"

    def _recipe(self) -> dict[str, Any]:
        options, several = self.options, self.options.devices
        return {
            "model": {
                "folder": str(self.out / "model"),
                "roles": "lora",
                "lora_rank": options.lora_rank,
                "gradient_checkpointing": True,
            },
            "data": {
                "raw": str(self.out / "raw"),
                "encoded": str(self.out / "encoded"),
                "resolution": options.resolution,
                "samples": {"t2i": {"landscape": 2 * several}, "edit": {"object": 2 * several}},
                "num_workers": 0,
                "encode_batch_size": 1,
            },
            "teachers": {"cfg_scale": 4.0},
            "mixture": {"tasks": {"t2i": 0.5, "edit": 0.5}, "micro_batch_size": 1},
            "dmd": {"fake_updates": options.fake_updates, "fake_samples": "student_rollout"},
            # The teacher draws each picture of the first grid.
            "evaluation": {"teacher_steps": 2},
            "trainer": {
                "updates": 1 + options.updates,
                "precision": "bf16-mixed" if torch.cuda.is_available() else "32-true",
                "log_every": 1,
                "checkpoint_every": 1000,
                "sample_every": 1000,
            },
        }

    def seconds(self, devices: int) -> list[float]:
        """Of each update but the first."""
        file = self._run(devices) / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        return [row["throughput/s_per_update"] for row in rows[1:]]

    def table(self) -> Table:
        """Updates and what the devices do together, as far as the runs came."""
        table = Table(title="one sample of each task a device and update", title_justify="left")
        for column in ("devices", "s / update, median", "s / update, in order", "of as many times one"):
            table.add_column(column, justify="left" if column == "devices" else "right")
        several, one = self.seconds(self.options.devices), self.seconds(1)
        for devices, found in ((self.options.devices, several), (1, one)):
            if found:
                share = statistics.median(one) / statistics.median(found) if one else float("nan")
                ordered = ", ".join(f"{value:.2f}" for value in found)
                table.add_row(str(devices), f"{statistics.median(found):.2f}", ordered, f"{share:.1%}")
        return table


def main(words: list[str]) -> None:
    """Command line: OUT [key=value ...]."""
    out, options, overrides = read_words(words, Options, FULL, __doc__)
    commands = Commands.in_new_folder(out)
    scaling = Scaling(out, options, overrides, commands)
    try:
        scaling.take()
    finally:
        stdout_console().print(commands.said(), markup=False, soft_wrap=True)
        for table in (commands.table(f"{options}"), scaling.table()):
            stdout_console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
