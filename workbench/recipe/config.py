"""Recipes: frozen dataclasses that hold the only defaults and check themselves; `reading.py` reads them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from workbench.common.errors import nearest
from workbench.recipe.checks import bounded, fraction, positive, require, weights_sum_to_one

SIDE_MULTIPLE = 32
"""Sides of images, in pixels, that every known family takes are multiples of it."""


@dataclass(frozen=True)
class Model:
    """Which weights play which role.

    folder: diffusers pipeline folder of the base teacher; `tiny` names the one that ships.
    student: what the student starts from, the base teacher when absent: a pipeline folder, such as `RUN/student`, or a
    LoRA file over the base teacher; with `lora` roles a LoRA file alone. The fake score starts at the base teacher.
    roles: `full` copies of the weights, or `lora` adapters over one shared frozen base.
    frozen: `fp8` multiplies the blocks of frozen networks in 8-bit floats, forward and backward, on a GPU of compute
    capability 8.9 or later (docs/scale.md); auto: as trainer.precision says.
    gradient_checkpointing: recompute the activations of blocks in the backward pass, except in the last
    `stored_blocks` of each network: some seconds for some memory. auto: as many as a GPU has memory for, measured
    before the first update; none on a CPU.
    license, base_model: of the teacher, for the model card of a student, where the teacher's folder does not say them:
    a licence as the Hub spells it, and the teacher's name there (`OWNER/NAME`).
    """

    folder: str = "tiny"
    student: str | None = None
    roles: Literal["full", "lora"] = "full"
    lora_rank: int = 32
    lora_alpha: float = 32.0
    frozen: Literal["auto", "fp8"] = "auto"
    gradient_checkpointing: bool = False
    stored_blocks: int | str = "auto"
    license: str = ""
    base_model: str = ""

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[\w.+-]{0,80}", self.license) is not None,
            f"model.license is a licence as the Hub spells it, such as apache-2.0 or other, not {self.license!r}",
        )
        require(
            re.fullmatch(r"([\w-][\w.-]*/[\w-][\w.-]*)?", self.base_model) is not None,
            f"model.base_model is a name on the Hub, OWNER/NAME, not {self.base_model!r}",
        )
        require(
            self.roles == "full" or self.student is None or self.student.endswith(".safetensors"),
            f"model.roles=lora starts a student from a LoRA file, not from {self.student}: `workbench export --lora "
            "RUN student.safetensors`, then model.student=student.safetensors; or set model.roles=full",
        )
        positive("model", lora_rank=self.lora_rank, lora_alpha=self.lora_alpha)
        given = self.stored_blocks
        require(
            given == "auto" or (type(given) is int and given >= 0),
            f"model.stored_blocks must be auto, or a number of blocks from 0 on, got {given}",
        )
        require(
            self.gradient_checkpointing or self.stored_blocks in ("auto", 0),
            "model.stored_blocks does nothing without model.gradient_checkpointing=true: all blocks are stored then",
        )


@dataclass(frozen=True)
class Teachers:
    """Specialists besides the base teacher, and the guidance scale of all teachers.

    specialists: name -> pipeline folder, or LoRA file (`.safetensors`) over the base teacher, which then takes up no
    second copy of the weights. `tiny/NAME.safetensors` is a file that ships.
    cfg_rescale: how far each token of a guided velocity is brought back to its unguided norm; see `guidance.rescale`.
    """

    specialists: dict[str, str] = field(default_factory=dict)
    cfg_scale: float = 1.0
    cfg_rescale: float = 0.0

    def __post_init__(self) -> None:
        for name in self.specialists:
            require(
                name.isidentifier(),
                f"teachers.specialists.{name}: name a specialist with letters, digits and underscores alone",
            )
        require(
            math.isfinite(self.cfg_scale) and self.cfg_scale >= 1,
            f"teachers.cfg_scale must be at least 1 (1 is no guidance), got {self.cfg_scale}",
        )
        fraction("teachers", cfg_rescale=self.cfg_rescale)
        require(
            self.cfg_rescale == 0 or self.cfg_scale > 1,
            "teachers.cfg_rescale does nothing without guidance: raise teachers.cfg_scale above 1, or leave it out",
        )


@dataclass(frozen=True)
class Schedule:
    """A named table: the mix goes from `early` to `weights` over the student steps; see `schedules.late_share`.

    weights, early: weight of each specialist by name; what is left of 1 is the base teacher's.
    at: where `switch` changes to `weights`: from 1 on the number of a step, below 1 a share of the steps, which suits
    students of any number of them.
    """

    kind: Literal["constant", "switch", "ramp", "cosine", "alternate"] = "constant"
    weights: dict[str, float] = field(default_factory=dict)
    early: dict[str, float] = field(default_factory=dict)
    at: float | None = None

    def problem(self) -> str | None:
        """Error message without the class name, or None."""
        for key, mix in (("weights", self.weights), ("early", self.early)):
            for name, weight in mix.items():
                if not 0 <= weight <= 1:
                    return f".{key}.{name} must lie in [0, 1], got {weight}"
            if sum(mix.values()) > 1 + 1e-6:
                return f".{key} sums to {sum(mix.values()):g}: at most 1, what is left is the base teacher's"
        match self.kind:
            case "constant" if self.early or self.at is not None:
                return " is constant: leave out early and at, or choose kind switch, ramp, cosine or alternate"
            case "switch" if self.at is None:
                return " switches: say at which student step with at=1 or more, or share of them with at=0.5"
            case "switch" if self.at is not None and not (0 < self.at < 1 or (self.at >= 1 and self.at % 1 == 0)):
                return f".at is a student step from 1 on, or a share of the steps between 0 and 1, not {self.at:g}"
            case "ramp" | "cosine" | "alternate" if self.at is not None:
                return f".at is read by kind switch alone: leave it out, or choose that instead of {self.kind}"
        return None


@dataclass(frozen=True)
class Guidance:
    """lambda[k, m](c): for each class (`task/category`, `task` or `default`, the nearest one counts) a table of K rows,
    one a student step, noisiest first, each over the base teacher and the specialists in the order of
    `teachers.specialists`; or a schedule that becomes one. Empty: the base teacher alone."""

    tables: dict[str, list[list[float]]] = field(default_factory=dict)
    schedules: dict[str, Schedule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, schedule in self.schedules.items():
            problem = schedule.problem()
            require(problem is None, f"guidance.schedules.{name}{problem}")
            require(name not in self.tables, f"guidance has a table and a schedule for {name}: leave out one of them")


@dataclass(frozen=True)
class Data:
    """Where samples come from.

    source: `openmoji` (the world that ships), or a user's images or prompts, for `pack`: a folder, or a CSV, JSONL,
    Parquet or txt file (docs/data.md).
    samples: task -> category -> how many samples `pack` draws from the world; empty: the world's default numbers.
    encode_batch_size: most captions or pictures that are encoded at once; after running out of memory half as many.
    encode_workers: processes that encode shards side by side, each with an encoder of its own; they take the GPUs of
    the machine in turn. With torchrun or SLURM every rank is one instead.
    encode_dtype: of text encoder and autoencoder. auto: bfloat16 on a GPU with trainer.precision=bf16-mixed.
    keep_raw: let encoded shards keep the images too, which pretraining reads.
    num_workers: processes that draw the world.
    raw: folder, http(s) address or `pipe:` command of raw shards. encoded: folder or http(s) address of encoded ones.
    resolution: pictures have about its square in pixels. aspects: `keep` the aspect of a picture, as near as one of the
    buckets of `datamodules.shards.buckets` is, or crop all of them `square`. max_buckets: so many of the buckets at
    most, the square first, then by aspect.
    min_side, max_aspect: pictures with a smaller side in pixels, or a longer shape, are broken.
    broken: `stop` at a sample that cannot be used, or `skip` it, up to `max_broken` of them.
    """

    source: str = "openmoji"
    samples: dict[str, dict[str, int]] = field(default_factory=dict)
    resolution: int = 128
    aspects: Literal["keep", "square"] = "keep"
    min_side: int = 32
    max_aspect: float = 4.0
    max_buckets: int = 13
    broken: Literal["stop", "skip"] = "stop"
    max_broken: int = 100
    samples_per_shard: int = 1000
    raw: str = "data/raw"
    encoded: str = "data/encoded"
    encode_batch_size: int = 32
    encode_workers: int = 1
    encode_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    keep_raw: bool = False
    num_workers: int = 1

    def __post_init__(self) -> None:
        positive(
            "data",
            samples_per_shard=self.samples_per_shard,
            encode_batch_size=self.encode_batch_size,
            encode_workers=self.encode_workers,
            max_buckets=self.max_buckets,
            min_side=self.min_side,
        )
        require(self.max_aspect >= 1, f"data.max_aspect must be at least 1 (a square), got {self.max_aspect:g}")
        require(self.max_broken >= 0, f"data.max_broken must not be negative, got {self.max_broken}")
        require(self.num_workers >= 0, f"data.num_workers must not be negative, got {self.num_workers}")
        require(
            self.resolution > 0 and self.resolution % SIDE_MULTIPLE == 0,
            f"data.resolution must be a multiple of {SIDE_MULTIPLE} pixels, got {self.resolution}",
        )
        for task, counts in self.samples.items():
            for name, count in counts.items():
                require(count >= 0, f"data.samples.{task}.{name} must not be negative, got {count}")


@dataclass(frozen=True)
class Mixture:
    """The global batch of one update: `batch_size` samples over all tasks, ranks and micro-batches.

    tasks: share of each task. categories: share of each category within its task; empty: as the data come.
    micro_batch_size: most samples that one rank runs at once.
    prompts: so many of the data's samples make up the whole run, drawn by its seed, over categories as the batches are;
    0: all of them. prompt_share: instead, this share of each category's samples.
    """

    tasks: dict[str, float] = field(default_factory=lambda: {"t2i": 0.5, "edit": 0.5})
    categories: dict[str, dict[str, float]] = field(default_factory=dict)
    batch_size: int = 32
    micro_batch_size: int = 128
    prompts: int = 0
    prompt_share: float = 1.0

    def has_weight(self, category: str) -> bool:
        """Whether any sample of this qualified category is planned."""
        task, _, name = category.partition("/")
        of_task = self.categories.get(task)
        return self.tasks.get(task, 0.0) > 0 and (not of_task or of_task.get(name, 0.0) > 0)

    def __post_init__(self) -> None:
        positive("mixture", batch_size=self.batch_size, micro_batch_size=self.micro_batch_size)
        require(self.batch_size <= 1 << 16, f"mixture.batch_size must be at most {1 << 16}, got {self.batch_size}")
        positive("mixture", prompt_share=self.prompt_share)
        fraction("mixture", prompt_share=self.prompt_share)
        require(self.prompts >= 0, f"mixture.prompts must not be negative, got {self.prompts}")
        require(
            self.prompts == 0 or self.prompt_share == 1,
            "mixture.prompts and mixture.prompt_share both limit the prompts: leave out one of them",
        )
        for name in (*self.tasks, *self.categories):
            require(
                name in ("t2i", "edit"),
                f"mixture knows the tasks t2i and edit, not {name!r}{nearest(name, ('t2i', 'edit'))}",
            )
        require(bool(self.tasks), "mixture.tasks must name at least one task")
        weights_sum_to_one("mixture.tasks", self.tasks)
        for task, weights in self.categories.items():
            weights_sum_to_one(f"mixture.categories.{task}", weights)


@dataclass(frozen=True)
class Dmd:
    """Distribution matching: the student's time grid and rollout, the re-noising time p_t, the fake-score ratio R.

    renoise_tied: whether p_t of the student's update depends on its step k; see `rollout.renoise_interval`.
    fake_samples: what the R fake-score updates of one student update learn from. `fresh`: R rollouts of conditions of
    their own, each up to an independently drawn step. `rollout`: one rollout of fresh conditions, each update
    another of its steps. `student_rollout`: likewise the rollout that the student's own update goes on from. The
    steps are uniform in all of them; reuse makes the samples of one student update dependent, and shows fewer prompts.
    fake_per_step: the fake score knows which student step made its sample. Without, it learns the mixture over steps,
    and a student whose steps follow different teachers has no fixed point at them.
    first_step_weight: of the term that keeps the diversity of the noise at the first step (`dmd.first_step_loss`),
    which is `added` to distribution matching there, or taken `instead` of it (DP-DMD, arXiv 2602.03139).
    data_weight: of flow matching on the pictures of the data, at the student's own times.
    adversarial_weight: of the student's adversarial loss (`method.adversarial`), added to distribution matching; DMD2
    takes .001 to .005. classifier_weight: of the classifier's loss in that of the fake score.
    """

    student_steps: int = 4
    student_shift: float = 3.0
    student_times: list[float] = field(default_factory=list)
    rollout: Literal["euler", "renoise"] = "euler"
    renoise_shift: float = 3.0
    renoise_min: float = 0.02
    renoise_max: float = 0.98
    renoise_tied: Literal["no", "below", "above"] = "no"
    fake_updates: int = 2
    fake_samples: Literal["fresh", "rollout", "student_rollout"] = "fresh"
    fake_per_step: bool = False
    decoupled: bool = False
    first_step_weight: float = 0.0
    first_step: Literal["added", "instead"] = "added"
    first_step_teacher_steps: int = 4
    data_weight: float = 0.0
    adversarial_weight: float = 0.0
    classifier_weight: float = 0.01

    @property
    def needs_targets(self) -> str | None:
        """The option that needs a picture of every sample, if one is set."""
        weights = {"data_weight": self.data_weight, "adversarial_weight": self.adversarial_weight}
        return next((name for name, weight in weights.items() if weight), None)

    @property
    def fake_groups(self) -> int:
        """Groups of conditions that the fake score needs for itself in one student update."""
        match self.fake_samples:
            case "fresh":
                return self.fake_updates
            case "rollout":
                return 1
            case "student_rollout":
                return 0

    def __post_init__(self) -> None:
        positive(
            "dmd",
            student_steps=self.student_steps,
            student_shift=self.student_shift,
            renoise_shift=self.renoise_shift,
            fake_updates=self.fake_updates,
            classifier_weight=self.classifier_weight,
            first_step_teacher_steps=self.first_step_teacher_steps,
        )
        for name, weight in (
            ("first_step_weight", self.first_step_weight),
            ("data_weight", self.data_weight),
            ("adversarial_weight", self.adversarial_weight),
        ):
            require(math.isfinite(weight) and weight >= 0, f"dmd.{name} must not be negative, got {weight}")
        require(
            self.first_step == "added" or self.first_step_weight > 0,
            "dmd.first_step=instead trains the first step by dmd.first_step_weight alone: set it above 0",
        )
        fraction("dmd", renoise_min=self.renoise_min, renoise_max=self.renoise_max)
        require(
            0 < self.renoise_min < self.renoise_max,
            f"dmd needs 0 < renoise_min < renoise_max, got {self.renoise_min} and {self.renoise_max}",
        )
        if self.student_times:
            times = self.student_times
            require(
                len(times) == self.student_steps,
                f"dmd.student_times has {len(times)} entries for student_steps={self.student_steps}",
            )
            require(
                times[0] == 1 and times[-1] > 0 and all(a > b for a, b in zip(times, times[1:], strict=False)),
                f"dmd.student_times must start at 1 and fall strictly, staying above 0, got {list(times)}",
            )


@dataclass(frozen=True)
class Optim:
    """AdamW of both roles. Warm-up is linear over student updates; decay is a cosine to `final_lr_fraction`.

    moments: how they are held, the weights staying in float32: `8bit` in blocks with a scale (`engine.moments`), a
    quarter of the memory, and with beta1=0 an eighth; for some speed.
    ema_decay: of the student's moving average, which is what a run delivers; 0: its weights as they are, and no average
    in memory or checkpoints.
    """

    student_lr: float = 1e-4
    fake_lr: float = 2e-4
    beta1: float = 0.0
    beta2: float = 0.999
    weight_decay: float = 0.0
    student_clip: float = 1.0
    fake_clip: float = 1.0
    warmup_updates: int = 10
    final_lr_fraction: float = 1.0
    ema_decay: float = 0.98
    moments: Literal["float32", "8bit"] = "float32"

    def __post_init__(self) -> None:
        positive(
            "optim",
            student_lr=self.student_lr,
            fake_lr=self.fake_lr,
            student_clip=self.student_clip,
            fake_clip=self.fake_clip,
        )
        require(self.warmup_updates >= 0, f"optim.warmup_updates must not be negative, got {self.warmup_updates}")
        require(self.weight_decay >= 0, f"optim.weight_decay must not be negative, got {self.weight_decay}")
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2), ("ema_decay", self.ema_decay)):
            require(0 <= beta < 1, f"optim.{name} must lie in [0, 1), got {beta}")
        fraction("optim", final_lr_fraction=self.final_lr_fraction)


@dataclass(frozen=True)
class Pretrain:
    """Flow matching of a teacher: `steps` optimiser steps at `lr`, the text encoder at a separate rate
    (0 freezes it).

    lora_rank: 0 trains all weights; otherwise an adapter of that rank over the frozen transformer: a specialist.
    lora_start: LoRA file of at most that rank, from which the adapter goes on.
    optimizer: `muon` for the matrices inside the transformer's blocks (at lr as AdamW would take it) and AdamW for all
    else, or `adamw` alone.
    compile: blocks through torch.compile, worth its minute of compiling in a long run on a GPU.
    """

    steps: int = 2000
    lr: float = 1e-3
    lora_rank: int = 0
    lora_start: str = ""
    text_encoder_lr: float = 1e-3
    beta2: float = 0.99
    warmup_steps: int = 100
    ema_decay: float = 0.999
    clip: float = 1.0
    prompt_drop: float = 0.1
    time_shift: float = 2.0
    final_lr_fraction: float = 0.02
    optimizer: Literal["adamw", "muon"] = "adamw"
    compile: bool = False

    def __post_init__(self) -> None:
        positive("pretrain", steps=self.steps, lr=self.lr, clip=self.clip, time_shift=self.time_shift)
        require(self.text_encoder_lr >= 0, f"pretrain.text_encoder_lr must not be negative, got {self.text_encoder_lr}")
        require(self.lora_rank >= 0, f"pretrain.lora_rank must not be negative, got {self.lora_rank}")
        require(
            self.lora_rank == 0 or self.text_encoder_lr == 0,
            "pretrain.lora_rank trains an adapter of the transformer alone: set pretrain.text_encoder_lr=0",
        )
        require(
            self.lora_rank > 0 or not self.lora_start,
            "pretrain.lora_start is what an adapter goes on from: set pretrain.lora_rank too",
        )
        require(0 <= self.ema_decay < 1, f"pretrain.ema_decay must lie in [0, 1), got {self.ema_decay}")
        fraction("pretrain", prompt_drop=self.prompt_drop, beta2=self.beta2, final_lr_fraction=self.final_lr_fraction)


LOGGERS = ("tensorboard", "wandb", "mlflow", "swanlab")
"""What `trainer.loggers` may name."""


@dataclass(frozen=True)
class Trainer:
    """The run folder and the machine.

    strategy: over several devices, `ddp` gives each all the weights and averages the gradients of what is trained;
    `fsdp` shards the weights (Lightning's ModelParallelStrategy, FSDP2). auto: `ddp` for LoRA roles whose frozen
    weights take up less than half of a device, and `fsdp` for others.
    precision: `bf16-mixed` computes in bfloat16 and keeps what is trained in float32; with LoRA roles, and sharded,
    what is frozen is held in bfloat16. `tf32` rounds the factors of float32 matrix products alone.
    compile: compile the transformer's `blocks`, which takes a minute or two at the start; `auto` does on a GPU from
    10^9 parameters on.
    cuda_graphs: whether distillation on one GPU replays its steps; `auto`: where the networks are small.
    deterministic: the same bits at every run on a GPU too, for some speed.
    task_gradients_every: student updates between two looks at how much of the gradient each task has (`task_gradients/`
    and `per_step/gradient_norm/TASK`), 0 for none; a look holds one more copy of the student's gradient.
    keep: the student that a run delivers: its last, or the best of its milestones where that is clearly better.
    start: a run whose newest checkpoint a new distillation starts from, at update 0: the weights of student and fake
    score, the student's average and the optimisers' moments (docs/runs.md).
    loggers: what scalars, pictures and the recipe go to, besides the files of the run folder: `tensorboard`, and the
    services `wandb`, `mlflow` and `swanlab`, each an extra to install (docs/loggers.md).
    """

    folder: str = "runs/distill"
    start: str = ""
    updates: int = 200
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    precision: Literal["32-true", "tf32", "bf16-mixed"] = "32-true"
    compile: Literal["auto", "blocks", "none"] = "auto"
    cuda_graphs: Literal["auto", "on", "off"] = "auto"
    deterministic: bool = False
    log_every: int = 5
    checkpoint_every: int = 50
    sample_every: int = 50
    task_gradients_every: int = 0
    max_skipped_updates: int = 10
    keep: Literal["last", "best"] = "last"
    loggers: list[str] = field(default_factory=lambda: ["tensorboard"])

    def __post_init__(self) -> None:
        positive(
            "trainer",
            updates=self.updates,
            devices=self.devices,
            num_nodes=self.num_nodes,
            log_every=self.log_every,
            checkpoint_every=self.checkpoint_every,
            sample_every=self.sample_every,
        )
        for name, count in (
            ("max_skipped_updates", self.max_skipped_updates),
            ("task_gradients_every", self.task_gradients_every),
        ):
            require(count >= 0, f"trainer.{name} must not be negative, got {count}")
        for name in self.loggers:
            hint = nearest(name, LOGGERS)
            require(name in LOGGERS, f"trainer.loggers knows {', '.join(LOGGERS)}, not {name!r}{hint}")
        require(len({*self.loggers}) == len(self.loggers), f"trainer.loggers names one twice: {self.loggers}")
        one_gpu = self.devices * self.num_nodes == 1 and self.accelerator != "cpu" and self.strategy != "fsdp"
        require(
            self.cuda_graphs != "on" or one_gpu,
            "trainer.cuda_graphs=on needs one GPU: leave it at auto, which means graphs where they can be",
        )


JUDGES = ("local", "second", "vlm")
"""What `evaluation.judges` may name."""


@dataclass(frozen=True)
class Vlm:
    """Vision-language judges, asked where `evaluation.judges` names `vlm`.

    judges: names; judge A is the environment's WORKBENCH_JUDGE_A_BASE_URL, _MODEL and _API_KEY.
    concurrency: questions to one judge at a time. attempts: times one question is asked at most.
    max_tokens: longest reply, hidden reasoning included. repeats: times every answer is scored by each judge, whose
    mean counts and whose spread is the judge's own noise. cache: folder of replies, shared by all runs.
    pairs: cases a category that are compared pairwise among the models, in both orders; 0 for none.
    """

    judges: list[str] = field(default_factory=lambda: ["A", "B"])
    concurrency: int = 8
    timeout_s: float = 120.0
    attempts: int = 6
    max_tokens: int = 4096
    repeats: int = 1
    cache: str = "runs/judge-cache"
    pairs: int = 0

    def __post_init__(self) -> None:
        positive(
            "evaluation.vlm",
            concurrency=self.concurrency,
            timeout_s=self.timeout_s,
            attempts=self.attempts,
            max_tokens=self.max_tokens,
            repeats=self.repeats,
        )
        require(self.pairs >= 0, f"evaluation.vlm.pairs must not be negative, got {self.pairs}")
        require(bool(self.judges), "evaluation.vlm.judges must name at least one judge")
        require(len({*self.judges}) == len(self.judges), f"evaluation.vlm.judges names one twice: {self.judges}")
        for name in self.judges:
            require(
                name.isascii() and name.isalnum() and name == name.upper(),
                f"evaluation.vlm.judges are capital letters and digits, as in WORKBENCH_JUDGE_A_MODEL, got {name!r}",
            )


@dataclass(frozen=True)
class Evaluation:
    """What is scored: cases a category of each benchmark, sampling seeds, and how the full teacher samples, or a
    pipeline folder that is scored alone.

    teacher_steps, teacher_cfg_scale, teacher_shift: in place of what the folder's own pipeline does, which is followed
    where they are null: its scheduler, its grid or its family's steps and guidance. A shift replaces the scheduler.
    teacher_sigmas: as the stock pipeline's `sigmas`, the final 0 left out: bent by the scheduler or by teacher_shift,
    which leaves them as they are at 1.

    cases: a JSONL file of a user's cases (docs/cases.md) instead of the world's splits. categories: the ones that are
    scored, all when empty. slice_seed: which cases of a category a slice takes; 0 takes the first ones.
    batch_size: 0 chooses by device and model.
    milestone_cases: search cases a category that the local judge scores at every trainer.sample_every; 0 for none.
    judges: `local`, the network that ships, by whose scores and features all benchmarks, studies and distances go, and
    which knows the world that ships alone; `second`, a network of another architecture, which chooses nothing and shows
    whether the first can be believed (where both are named, a file of other cases leaves them out); `vlm`,
    vision-language judges. Scores of the others stand next to the first's.
    ocr: whether a reader that others trained reads the texts that cases ask for; auto: where `rapidocr` is installed.
    """

    split: Literal["search", "report"] = "report"
    cases: str = ""
    t2i_cases: int = 60
    editing_cases: int = 60
    categories: list[str] = field(default_factory=list)
    slice_seed: int = 0
    seeds: list[int] = field(default_factory=lambda: [0])
    batch_size: int = 0
    teacher_steps: int | None = None
    teacher_cfg_scale: float | None = None
    teacher_shift: float | None = None
    teacher_sigmas: list[float] = field(default_factory=list)
    num_bootstrap: int = 1000
    milestone_cases: int = 0
    judges: list[str] = field(default_factory=lambda: ["local", "second"])
    ocr: Literal["auto", "on", "off"] = "auto"
    vlm: Vlm = field(default_factory=Vlm)

    def __post_init__(self) -> None:
        teacher = {
            "teacher_steps": self.teacher_steps,
            "teacher_cfg_scale": self.teacher_cfg_scale,
            "teacher_shift": self.teacher_shift,
        }
        given = {name: value for name, value in teacher.items() if value is not None}
        positive("evaluation", **given, num_bootstrap=self.num_bootstrap)
        require(
            not (self.teacher_sigmas and self.teacher_steps),
            "evaluation.teacher_sigmas has as many steps as it has sigmas: leave out evaluation.teacher_steps",
        )
        pairs = zip(self.teacher_sigmas, self.teacher_sigmas[1:], strict=False)
        require(
            not self.teacher_sigmas
            or (self.teacher_sigmas[0] == 1 and self.teacher_sigmas[-1] > 0 and all(a > b for a, b in pairs)),
            f"evaluation.teacher_sigmas must fall from 1 and end above 0, got {self.teacher_sigmas}",
        )
        require(bool(self.seeds), "evaluation.seeds must name at least one seed")
        require(len({*self.seeds}) == len(self.seeds), f"evaluation.seeds names one twice: {self.seeds}")
        for judge in self.judges:
            hint = nearest(judge, JUDGES)
            require(judge in JUDGES, f"evaluation.judges knows {', '.join(JUDGES)}, not {judge!r}{hint}")
        require(len({*self.judges}) == len(self.judges), f"evaluation.judges names one twice: {self.judges}")
        require(
            self.milestone_cases == 0 or "local" in self.judges,
            "evaluation.milestone_cases are scored by the local judge: add local to evaluation.judges, or set it to 0",
        )
        for name, count in (
            ("t2i_cases", self.t2i_cases),
            ("editing_cases", self.editing_cases),
            ("batch_size", self.batch_size),
            ("slice_seed", self.slice_seed),
            ("milestone_cases", self.milestone_cases),
        ):
            require(count >= 0, f"evaluation.{name} must not be negative, got {count}")


@dataclass(frozen=True)
class Recipe:
    """One run: all that `recipe.yaml` of a run folder holds."""

    model: Model = field(default_factory=Model)
    teachers: Teachers = field(default_factory=Teachers)
    guidance: Guidance = field(default_factory=Guidance)
    data: Data = field(default_factory=Data)
    mixture: Mixture = field(default_factory=Mixture)
    dmd: Dmd = field(default_factory=Dmd)
    optim: Optim = field(default_factory=Optim)
    pretrain: Pretrain = field(default_factory=Pretrain)
    trainer: Trainer = field(default_factory=Trainer)
    evaluation: Evaluation = field(default_factory=Evaluation)
    seed: int = 0

    def __post_init__(self) -> None:
        bounded("", self)
        require(
            not self.trainer.start or self.model.student is None,
            "trainer.start and model.student both say where the student starts: leave out one of them",
        )
        require(
            self.model.frozen == "auto" or self.trainer.precision == "bf16-mixed",
            "model.frozen=fp8 gives products in bfloat16: it needs trainer.precision=bf16-mixed",
        )
        require(
            self.model.frozen == "auto" or self.trainer.strategy != "fsdp",
            "model.frozen=fp8 is not sharded: every device holds it whole, so leave out trainer.strategy=fsdp",
        )
        require(
            not self.dmd.decoupled or (self.teachers.cfg_scale > 1 and self.teachers.cfg_rescale == 0),
            "dmd.decoupled splits guidance off: it needs teachers.cfg_scale above 1 and no teachers.cfg_rescale",
        )
        require(
            not self.dmd.fake_per_step or self.trainer.strategy != "fsdp",
            "dmd.fake_per_step has a parameter that is not sharded: leave out trainer.strategy=fsdp",
        )
