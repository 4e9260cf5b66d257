"""Which keys of a recipe alter the numbers that training computes; a run goes on under any change of the others.

The one declaration: a key that stands in none of the tables below fails `tests/recipe/test_effects.py`. What is the
same but for rounding (devices, micro-batches, recomputed activations) alters nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from workbench.recipe.config import Recipe
from workbench.recipe.reading import flat_values

Command = Literal["distill", "pretrain"]
ALWAYS = (
    "model.folder",
    "data.encoded",
    "mixture.tasks",
    "mixture.categories",
    "mixture.batch_size",
    "mixture.prompts",
    "mixture.prompt_share",
    "trainer.precision",
    "seed",
)
"""Keys that alter the numbers of distillation and of pretraining. A key stands for all that is below it."""
IN_DISTILLATION = (
    "model.student",
    "model.roles",
    "model.lora_rank",
    "model.lora_alpha",
    "model.frozen",
    "teachers",
    "guidance",
    "dmd",
    "optim",
    "trainer.start",
)
IN_PRETRAINING = (
    "pretrain.lr",
    "pretrain.lora_rank",
    "pretrain.lora_start",
    "pretrain.text_encoder_lr",
    "pretrain.beta2",
    "pretrain.warmup_steps",
    "pretrain.ema_decay",
    "pretrain.clip",
    "pretrain.prompt_drop",
    "pretrain.time_shift",
    "pretrain.final_lr_fraction",
    "pretrain.optimizer",
)
NEVER = (
    "model.license",
    "model.base_model",
    "model.gradient_checkpointing",
    "model.stored_blocks",
    "data.source",
    "data.samples",
    "data.resolution",
    "data.aspects",
    "data.min_side",
    "data.max_aspect",
    "data.max_buckets",
    "data.broken",
    "data.max_broken",
    "data.samples_per_shard",
    "data.raw",
    "data.encode_batch_size",
    "data.encode_workers",
    "data.encode_dtype",
    "data.keep_raw",
    "data.num_workers",
    "mixture.micro_batch_size",
    "pretrain.steps",
    "pretrain.compile",
    "trainer.folder",
    "trainer.loggers",
    "trainer.updates",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
    "trainer.compile",
    "trainer.cuda_graphs",
    "trainer.deterministic",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "trainer.sample_every",
    "trainer.task_gradients_every",
    "trainer.max_skipped_updates",
    "trainer.keep",
    "evaluation",
)
"""Keys that alter no number of training. Of data and weights the content counts, not where they lie: what `data.*`
changes about the data shows in the hash of what is encoded."""


def alters(key: str, command: Command) -> bool:
    """Whether the dotted `key` alters the numbers of `command`."""
    tables = (ALWAYS, IN_DISTILLATION if command == "distill" else IN_PRETRAINING)
    return any(covers(name, key) for table in tables for name in table)


def covers(name: str, key: str) -> bool:
    """Whether the dotted `key` is `name` or below it."""
    return key == name or key.startswith(f"{name}.")


def differences(
    before: Recipe, now: Recipe, command: Command, inputs: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {})
) -> list[str]:
    """`key was A, is B` for every key that alters the numbers of `command` and differs, sorted by key.

    inputs: before and now, key -> hash of the data or weights that its path names: where both are known, equal
    content is the same whatever the paths, and other content is not, whatever the paths.
    """
    flat = [_ordered(recipe) for recipe in (before, now)]
    found = []
    for key in sorted(flat[0].keys() | flat[1].keys()):
        if not alters(key, command):
            continue
        values, hashes = [of.get(key) for of in flat], [of.get(key) for of in inputs]
        if None not in hashes and hashes[0] == hashes[1]:
            continue
        if None not in hashes:
            found.append(f"{key} was {values[0]} (content {hashes[0]}), is {values[1]} (content {hashes[1]})")
        elif values[0] != values[1]:
            found.append(f"{key} was {values[0]}, is {values[1]}")
    return found


def _ordered(recipe: Recipe) -> dict[str, str | float]:
    """Every value by its dotted key; the order of the specialists, which the columns of lambda tables go by, is one."""
    flat = flat_values(recipe)
    if len(recipe.teachers.specialists) > 1:
        flat["teachers.specialists.(order)"] = ", ".join(recipe.teachers.specialists)
    return flat
