"""Time and memory of distilling Qwen-Image at its real size, 20.4 billion parameters a checkpoint, in the commands that
one types:

    python tests/gpu/full_size_two_streams.py OUT [size=full] [two=1] [key=value ...] [RECIPE.KEY=value ...]

mkfolder -> pack -> encode -> distill --dry-run -> distill, killed after `updates` updates, since the student's folder
would take another 41 GB. Each line of a command is printed as it comes; a table at the end compares the peak that was
planned with the one that was measured, where every block recomputes. Folders and data that OUT has already are used
again, so that a second call measures alone. One checkpoint takes 42 GB of disk; two take as much, since the second is
made of links.

From small to large, on one H100 of 80 GB unless another is named:

    python tests/gpu/full_size_two_streams.py /tmp/tiny                                       # one minute
    python tests/gpu/full_size_two_streams.py /tmp/q4 size=full folder="blocks=4" two=1 compile=blocks
    python tests/gpu/full_size_two_streams.py /tmp/q size=full                                # bar: peak <= 76 GiB
    python tests/gpu/full_size_two_streams.py /tmp/q size=full compile=blocks model.stored_blocks=auto
    python tests/gpu/full_size_two_streams.py /tmp/q size=full two=1                          # one H200
    python tests/gpu/full_size_two_streams.py /tmp/q size=full two=1 processes=2 frozen=auto  # two H100, sharded
"""

from __future__ import annotations

import json
import re
import shlex
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from watched import Commands, end_on_request, read_words

from datamodules.shards.counts import INDEX
from datamodules.shards.packed import FINISHED
from workbench.backbones.folders import INDEX_FILE
from workbench.common.tables import Table, stdout_console
from workbench.runs.preparation import keep_compiled

FULL: dict[str, Any] = {"resolution": 1024}
SAMPLES = {"t2i": {"landscape": 2}, "edit": {"object": 2}}
MANY_UPDATES = 1000
"""More than the run is left to make: its end would write pictures and the student's folder."""
EDIT, GENERATION = "QwenImageEditPlusPipeline", "QwenImagePipeline"
TIMED = "timing two updates"
"""What a dry run prints below its plan."""


@dataclass(frozen=True)
class Options:
    """The defaults are those of `size=tiny`. two: the second checkpoint teaches generation. updates: that are measured,
    after a first one. frozen, compile: `model.frozen` and `trainer.compile`. folder: more options of mkfolder, such as
    `blocks=4`. dry_run: `plan` ends it before it times two updates."""

    size: Literal["tiny", "full"] = "tiny"
    two: bool = False
    processes: int = 1
    updates: int = 3
    fake_updates: int = 1
    frozen: Literal["auto", "fp8"] = "fp8"
    compile: Literal["auto", "none", "blocks"] = "none"
    resolution: int = 64
    folder: str = ""
    dry_run: Literal["whole", "plan"] = "whole"


@dataclass
class Measurement:
    """The commands over the folders in `out`, and what they said."""

    out: Path
    options: Options
    overrides: list[str]
    commands: Commands
    planned_gib: float = float("nan")
    num_shown: int = 0

    @property
    def run(self) -> Path:
        """Folder of the run, of its own for every call."""
        return self.commands.out / "run"

    def take(self) -> None:
        """Every step. Raises: SystemExit where one fails."""
        python = [sys.executable, "-m"]
        model, other = self.out / "edit", self.out / "generation"
        self._folder(model, EDIT)
        if self.options.two:
            self._folder(other, GENERATION, f"links={model}")
        recipe = self.commands.out / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(self._recipe(model, other)))
        for command, made in (("pack", Path("raw", FINISHED)), ("encode", Path("encoded", INDEX))):
            if not (self.out / made).is_file():
                self.commands.finish(command, [*python, "workbench", command, str(recipe), *self.overrides])
        distill = [*python, "workbench", "distill", str(recipe), *self.overrides]
        found = re.search(r"peak about ([\d.]+) +GiB", self._plan([*distill, "--dry-run"]).replace("\n", " "))
        if found is None:
            raise SystemExit("error: the dry run foretells no peak of memory")
        self.planned_gib = float(found[1])
        self.commands.kill("distill", distill, self._is_measured)

    def _plan(self, command: list[str]) -> str:
        """What the dry run prints."""
        if self.options.dry_run == "plan":
            return self.commands.stop_at("distill --dry-run", command, TIMED)
        return self.commands.finish("distill --dry-run", command)

    def _is_measured(self) -> bool:
        """Whether the run has made all updates that are wanted; prints each new one."""
        rows = self.rows()
        for row in rows[self.num_shown :]:
            peak = f", peak {row['memory/peak_gib']:.1f} GiB" if "memory/peak_gib" in row else ""
            self.commands.say(f"  update {row['update']}: {row['throughput/s_per_update']:.2f} s{peak}")
        self.num_shown = len(rows)
        return len(rows) > self.options.updates

    def rows(self) -> list[dict[str, float]]:
        """What the run has logged, one row an update."""
        file = self.run / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def _folder(self, path: Path, pipeline: str, *words: str) -> None:
        if not (path / INDEX_FILE).is_file():
            options = [f"size={self.options.size}", f"pipeline={pipeline}", *words, *shlex.split(self.options.folder)]
            command = [sys.executable, "-m", "workbench.bench.mkfolder", str(path), *options]
            self.commands.finish(f"mkfolder {path.name}", command)

    def _recipe(self, model: Path, other: Path) -> dict[str, Any]:
        options = self.options
        own, others = [[1.0, 0.0]] * 4, [[0.0, 1.0]] * 4
        return {
            "model": {
                "folder": str(model),
                "roles": "lora",
                "lora_rank": 32,
                "frozen": options.frozen,
                "gradient_checkpointing": True,
                "stored_blocks": 0,
            },
            "teachers": {
                "specialists": {"generation": str(other)} if options.two else {},
                "cfg_scale": 4.0,
                "cfg_rescale": 1.0,
            },
            "guidance": {"tables": {"t2i": others, "edit": own}} if options.two else {},
            "data": {
                "raw": str(self.out / "raw"),
                "encoded": str(self.out / "encoded"),
                "resolution": options.resolution,
                "samples": SAMPLES,
                "num_workers": 0,
                "encode_batch_size": 1,
            },
            # The teacher draws each picture of the first grid.
            "evaluation": {"teacher_steps": 2},
            "mixture": {"batch_size": 2 * options.processes, "micro_batch_size": 1},
            "dmd": {"fake_updates": options.fake_updates, "fake_samples": "student_rollout"},
            "trainer": {
                "folder": str(self.run),
                "updates": MANY_UPDATES,
                "devices": options.processes,
                "precision": "bf16-mixed",
                "compile": options.compile,
                "log_every": 1,
                "checkpoint_every": MANY_UPDATES,
                "sample_every": MANY_UPDATES,
            },
        }

    def table(self) -> Table:
        """What was planned and measured, as far as the commands came."""
        rows = self.rows()
        later = rows[1:]
        table = Table(title=f"{self.options} {' '.join(self.overrides)}", title_justify="left")
        for column in ("what", "value"):
            table.add_column(column, justify="left" if column == "what" else "right")
        table.add_row("peak planned, GiB", f"{self.planned_gib:.1f}")
        if peaks := [row["memory/peak_gib"] for row in rows if "memory/peak_gib" in row]:
            table.add_row("peak of tensors measured, GiB", f"{max(peaks):.1f}")
        if later:
            seconds = [row["throughput/s_per_update"] for row in later]
            table.add_row(f"seconds an update, median of {len(later)}", f"{statistics.median(seconds):.2f}")
            table.add_row("first to last, s", ", ".join(f"{one:.2f}" for one in seconds))
        for name, value in sorted(rows[-1].items() if rows else ()):
            if name.startswith(("loss/", "gradient_norm/")) or name == "skipped_steps":
                table.add_row(f"{name} of update {len(rows)}", f"{value:.4g}")
        return table


def main(words: list[str]) -> None:
    """Command line: OUT [key=value ...]."""
    out, options, overrides = read_words(words, Options, FULL, __doc__)
    out.mkdir(parents=True, exist_ok=True)
    logs = out / f"call-{len([*out.glob('call-*')])}"
    logs.mkdir()
    # Where the dry run, the run and later calls find each other's kernels.
    keep_compiled(logs)
    commands = Commands(logs, echo=True)
    end_on_request()
    measurement = Measurement(out, options, overrides, commands)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    commands.say(f"{card}; {options}")
    try:
        measurement.take()
    finally:
        for table in (commands.table("commands"), measurement.table()):
            stdout_console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:])
