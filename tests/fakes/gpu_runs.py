"""Runs of the shipped model on a GPU, in this process or in one of their own, and what they left."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from workbench import cli

SETTINGS = (
    "data.samples={t2i: {landscape: 8, portrait: 8, text: 8}, edit: {object: 8, style: 8}}",
    "data.num_workers=0",
    "mixture.batch_size=8",
    "dmd.fake_updates=2",
    "teachers.cfg_scale=3",
    "optim.warmup_updates=2",
    "trainer.accelerator=gpu",
    "trainer.deterministic=true",
    "trainer.compile=none",
    "trainer.log_every=1",
    "trainer.checkpoint_every=10",
    "trainer.sample_every=20",
    "evaluation.t2i_cases=2",
    "evaluation.editing_cases=1",
    "evaluation.teacher_steps=4",
    "evaluation.num_bootstrap=20",
)


@dataclass(frozen=True)
class Bench:
    """A recipe and the settings that every command on it gets; what a call adds wins. encoded: folder of its data."""

    recipe: Path
    encoded: str
    settings: tuple[str, ...]

    def words(self, command: str, *settings: str) -> list[str]:
        return [command, str(self.recipe), *self.settings, *settings]

    def run(self, command: str, *settings: str) -> None:
        """The command in this process."""
        assert cli.main(self.words(command, *settings)) == 0, (command, settings)

    def start(self, command: str, *settings: str) -> subprocess.Popen[str]:
        """The command as a process of its own."""
        return start(*self.words(command, *settings))


def start(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "workbench", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str], seconds: float = 240) -> None:
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output[-4000:]


def losses(run: Path) -> list[dict[str, Any]]:
    """What the run logged, one row an update."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def student_weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "student" / "transformer" / "diffusion_pytorch_model.safetensors")


def assert_same_bits(left: Path, right: Path) -> None:
    """The students of two runs are equal in every weight."""
    ours, others = student_weights(left), student_weights(right)
    assert ours.keys() == others.keys()
    different = [name for name in ours if not torch.equal(ours[name], others[name])]
    assert not different, f"{len(different)} of {len(ours)} tensors differ, such as {different[0]}"
