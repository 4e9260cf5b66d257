"""What the benchmark measures: its options, and their defaults for a tiny and for a full-size network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from workbench.backbones import families
from workbench.batch import Task
from workbench.bench import data
from workbench.common.arguments import read_options
from workbench.common.errors import UserError

MIXES: dict[str, tuple[Task, ...]] = {"t2i": ("t2i",), "edit": ("edit",), "5:5": ("t2i", "edit")}
GRAPH_WARMUP = 24
"""Iterations after which nearly every student step has come twice: graphs are recorded then."""
FULL: Mapping[str, Any] = {
    "precision": "bf16-mixed",
    # Networks of this size are not bound by launches, and few iterations are measured.
    "cuda_graphs": "off",
    "roles": "lora",
    "specialists": 2,
    "gradient_checkpointing": True,
    "stored_blocks": -1,
    "batch_size": 1,
    "text_tokens": 128,
    "padded": False,
    "side": 64,
    "mix": "apart",
    "cfg_scale": 4.0,
    "repeats": 2,
    "warmup": 0,
    "in_turns": False,
    "phases": False,
    "compile": True,
}
"""The public model at 1024 pixels, LoRA roles over one base, on one GPU."""


@dataclass(frozen=True)
class Options:
    """The defaults are those of `size=tiny`; `FULL` holds what `size=full` changes.

    model: pipeline folder, or `random:blocks=8,width=256,heads=4,text=192,channels=64` (these are the defaults; with
    `size=full` they are the public model's, so that `random:blocks=4` cuts it short).
    pipeline: class of the random network's pipeline in diffusers; of the first family that is known, if empty.
    specialists: random adapters over the base teacher, one teacher a student step, so that they cost memory alone.
    gradient_checkpointing: of both engines; stored_blocks: blocks of this engine that keep their activations all the
    same, -1 for as many as leave the peak at memory_gib, 0 for what a run takes of the GPU.
    batch_size: samples of each task. text_tokens: of the longest prompt; padded: prompts differ in length.
    side: latent tokens of an image's edge. mix: t2i, edit, 5:5 (both in one step), apart (t2i, then edit) or all three.
    repeats: measured iterations of each engine, after `warmup` others (-1: as many as graphs need to be recorded).
    in_turns: measure the engines in turns, iteration by iteration. Otherwise one after another, each with its optimiser
    states alone, after one evaluation of every kind.
    engine: both, or `ours` alone where the plain arrangement would not fit.
    reuse: also measure the engine with this `dmd.fake_samples`, against the same plain arrangement with fresh samples.
    frozen: with `fp8` measure the engine once more, with and without reuse, over frozen blocks in 8-bit floats
    (`model.frozen`), after everything else.
    phases: also time each phase of the engine, run eagerly. compile: the engine's blocks, with `backend`.
    seconds: start no further measurement after so many, 0 for no limit. threads: of torch on the CPU, 0 leaves it.
    json: file that results are written to, after every measurement.
    """

    size: Literal["tiny", "full"] = "tiny"
    model: str = "random:"
    pipeline: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["32-true", "tf32", "bf16-mixed"] = "32-true"
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    roles: Literal["full", "lora"] = "full"
    lora_rank: int = 32
    specialists: int = 0
    gradient_checkpointing: bool = False
    stored_blocks: int = 0
    memory_gib: float = 0.0
    batch_size: int = 16
    text_tokens: int = 24
    padded: bool = True
    side: int = 8
    fake_updates: int = 5
    cfg_scale: float = 1.5
    mix: Literal["all", "apart", "t2i", "edit", "5:5"] = "all"
    repeats: int = 5
    warmup: int = -1
    in_turns: bool = True
    reuse: Literal["none", "rollout", "student_rollout"] = "student_rollout"
    engine: Literal["both", "ours"] = "both"
    frozen: Literal["auto", "fp8"] = "auto"
    phases: bool = True
    compile: bool = False
    backend: str = "inductor"
    seconds: float = 0.0
    threads: int = 0
    json: str = ""

    def __post_init__(self) -> None:
        counts = {"batch_size": self.batch_size, "fake_updates": self.fake_updates, "repeats": self.repeats}
        for name, count in counts.items():
            if count < 1:
                raise UserError(f"{name} must be at least 1, got {count}")
        if self.side < 2 or self.warmup < -1 or self.specialists < 0 or self.stored_blocks < -1:
            raise UserError("side must be at least 2, specialists 0, warmup and stored_blocks -1")
        if self.side % 2:
            raise UserError(f"side must be even (a text slot stands for 2 x 2 latent tokens), got {self.side}")
        if self.text_tokens <= data.PREFIX_SLOT:
            raise UserError(f"text_tokens must be above {data.PREFIX_SLOT}, got {self.text_tokens}")
        if self.specialists and self.roles != "lora":
            raise UserError("specialists are adapters over a shared base: set roles=lora")
        if self.frozen == "fp8" and self.precision != "bf16-mixed":
            raise UserError("frozen=fp8 gives products in bfloat16: set precision=bf16-mixed")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device=cuda, but torch sees no GPU here: use cpu or auto")

    @property
    def class_name(self) -> str:
        """Class of the pipeline in diffusers."""
        if not self.model.startswith(f"{data.RANDOM}:"):
            return families.class_of(families.resolve(self.model))
        return self.pipeline or data.FIRST

    @property
    def mixes(self) -> dict[str, tuple[Task, ...]]:
        """Tasks of a step, by the name of the mix."""
        match self.mix:
            case "all":
                return MIXES
            case "apart":
                return {name: MIXES[name] for name in ("t2i", "edit")}
            case name:
                return {name: MIXES[name]}

    @property
    def torch_device(self) -> torch.device:
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")

    @property
    def num_warmup(self) -> int:
        """Iterations that are run and not kept."""
        if self.warmup >= 0:
            return self.warmup
        return GRAPH_WARMUP if self.torch_device.type == "cuda" and self.cuda_graphs != "off" else 1

    @property
    def engines(self) -> tuple[str, ...]:
        """Rows of the table in order: the plain arrangement, this engine, this engine with reused rollouts; then this
        engine over quantised weights."""
        plain = ("plain",) if self.engine == "both" else ()
        ours = ("ours",) if self.reuse == "none" else ("ours", self.reuse)
        return (*plain, *ours, *(quantised(name) for name in ours if self.frozen == "fp8"))


def quantised(engine: str) -> str:
    """Row of an engine over quantised weights."""
    return f"{engine}, fp8"


def read(arguments: Sequence[str]) -> Options:
    """Options from `key=value` items.

    Raises:
        UserError: an unknown key or an impossible value.
    """
    return read_options(Options, arguments, FULL if "size=full" in arguments else None)
